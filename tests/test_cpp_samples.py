"""samples/cpp: built with the installed wheels, and compared with the same models in Python."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import roast_export
from roast_export.errors import RoastError
from roast_export.libraries import ort_library_path, torch_library_path
from roast_export.mapping import Hash, Mapping, Sign

SAMPLES = Path(__file__).parent.parent / "samples" / "cpp"
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
TOOLS = [shutil.which(name, path=PATH) for name in ("cmake", "ninja", "c++")]
if None in TOOLS or sys.platform != "linux":
    pytest.skip("needs Linux, cmake, ninja and a C++ compiler", allow_module_level=True)


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Path:
    """The folder of run_torchscript and run_onnx. It is kept between sessions: torch's headers take long."""
    folder: Path = request.config.cache.mkdir("cpp_samples")
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be building
        for command in (
            ["cmake", "-S", str(SAMPLES), "-B", str(folder / "build"), "-G", "Ninja",
             f"-DCMAKE_MAKE_PROGRAM={TOOLS[1]}", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
             f"-DONNXRUNTIME_LIBRARY={runtime}"],
            ["cmake", "--build", str(folder / "build")],
        ):  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH})
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build"


def torch_library() -> str:
    try:
        return torch_library_path()
    except RoastError as error:
        pytest.skip(str(error))


def ort_library() -> str:
    try:
        return ort_library_path()
    except RoastError as error:
        pytest.skip(str(error))


def run(program: Path, *arguments: object) -> str:
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", env={})
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(program: Path, *arguments: object) -> str:
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", env={})
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stdout == ""
    return done.stderr


def read(printed: str) -> dict[str, np.ndarray]:
    """What the programs print: a line 'name type[sizes]', and one value a line."""
    found: dict[str, np.ndarray] = {}
    lines = iter(printed.splitlines())
    for header in lines:
        name, spec = header.split()
        dtype, _, sizes = spec.rstrip("]").partition("[")
        shape = tuple(int(size) for size in sizes.split(",") if size)
        values = [next(lines) for _ in range(int(np.prod(shape, dtype=np.int64)))]
        found[name] = np.array(values, dtype).reshape(shape)
    return found


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == np.ascontiguousarray(want).tobytes()


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


class Bag(nn.Module):
    """An embedding, a product and a gathered weight over one array."""

    def __init__(self) -> None:
        super().__init__()
        p, n = 2038074743, 4144
        rest = {
            "range": (n - 1024) // 16 + 1,
            "align": 16,
            "sign": Sign.TILE,
            "sign_hash": Hash(p, 71, 93, 0, 2),
        }
        self.memory = nn.Parameter(torch.randn(n))
        self.bias = nn.Parameter(torch.randn(70))
        self.table = Mapping((50, 96), n, (50, 96), tile=(1, 32), hash1=Hash(p, 5, 7), range=n).to_list()
        self.layer = Mapping((70, 96), n, (70, 96), True, (32, 32), hash1=Hash(p, 9, 4), **rest).to_list()
        self.other = Mapping((3, 70), n, (3, 70), True, (32, 32), hash1=Hash(p, 2, 3), **rest).to_list()

    def forward(self, ids: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.ops.roast.embedding(self.memory, ids, self.table, 0.5)
        hidden = torch.ops.roast.linear(rows.sum(1) * scale, self.memory, self.bias, self.layer, 0.25)
        weight = torch.ops.roast.gather(self.memory, self.other, -0.125)
        return hidden @ weight.t(), ids + 1


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[np.ndarray]]:
    """A TorchScript file, its inputs, and what Python makes of them."""
    torch_library()
    folder = tmp_path_factory.mktemp("script")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(Bag().eval())
    model.save(str(folder / "bag.pt"))
    ids, scale = torch.arange(12).reshape(4, 3) * 4, torch.tensor([[0.1], [1.0], [-3.0], [7.0]])
    with torch.no_grad():
        outputs = [output.numpy() for output in model(ids, scale)]
    inputs = [save(folder / "ids.npy", ids.numpy()), save(folder / "scale.npy", scale.numpy())]
    return folder / "bag.pt", inputs, outputs


def test_torchscript_gives_the_same_bits_without_python(programs, script):
    model, inputs, wanted = script
    printed = read(
        run(programs / "run_torchscript", model, *inputs, "--ops", torch_library(), "--threads", 2)
    )
    assert list(printed) == ["output0", "output1"]
    for got, want in zip(printed.values(), wanted, strict=True):
        assert_same_bits(got, want)


def test_control_other_inputs_give_other_bits(programs, script, tmp_path):
    model, inputs, wanted = script
    other = save(tmp_path / "scale.npy", np.load(inputs[1]) + 1)
    printed = read(run(programs / "run_torchscript", model, inputs[0], other, "--ops", torch_library()))
    assert printed["output0"].tobytes() != wanted[0].tobytes()
    assert_same_bits(printed["output1"], wanted[1])


def test_torchscript_without_the_library_says_what_to_pass(programs, script):
    model, inputs, _ = script
    message = refusal(programs / "run_torchscript", model, *inputs)
    assert "operators roast:: are not registered: pass --ops libroast_torch.so" in message


def test_torchscript_refuses_what_it_cannot_use(programs, script, tmp_path):
    program, (model, inputs, _) = programs / "run_torchscript", script
    ops = ("--ops", torch_library())
    assert "usage:" in refusal(program)
    assert "usage:" in refusal(program, model, "--what")
    assert "usage:" in refusal(program, model, "--ops")
    assert "cannot open shared object" in refusal(program, model, *inputs, "--ops", tmp_path / "none.so")
    assert "is not libroast_torch" in refusal(program, model, *inputs, "--ops", ort_library())
    assert "none.pt" in refusal(program, tmp_path / "none.pt", *inputs, *ops)
    assert "none.npy: cannot be opened" in refusal(program, model, tmp_path / "none.npy", *ops)
    outside = save(tmp_path / "ids.npy", np.array([[50]]))
    one = save(tmp_path / "one.npy", np.ones((1, 1), np.float32))
    assert "an id is outside [0, 50): 50 at place 0" in refusal(program, model, outside, one, *ops)


BAD_ARRAYS = {
    "empty": b"",
    "text": b"1.0 2.0 3.0 and so on",
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "header cut off": b"\x93NUMPY\x01\x00\xff\xff{'descr': '<f4', ",
    "no shape": b"\x93NUMPY\x01\x00\x30\x00{'descr': '<f4', 'fortran_order': False, }      \n",
    "no type": b"\x93NUMPY\x01\x00\x30\x00{'fortran_order': False, 'shape': (1,), }       \nabcd",
    "too few bytes": b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    + b" " * 9 + b"\nabcd",
    "size overflows": b"\x93NUMPY\x01\x00\x60\x00{'descr': '<f4', 'fortran_order': False, "
    b"'shape': (4611686018427387905,), }" + b" " * 20 + b"\nabcd",
    "shape too long for a number": b"\x93NUMPY\x01\x00\x60\x00{'descr': '<f4', 'fortran_order': False, "
    b"'shape': (99999999999999999999999,), }" + b" " * 16 + b"\nabcd",
    "strange size": b"\x93NUMPY\x01\x00\x40\x00{'descr': '<fx', 'fortran_order': False, 'shape': (1,), }"
    + b" " * 9 + b"\nabcd",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_malformed_array_is_refused(programs, script, tmp_path, name):
    path = tmp_path / "x.npy"
    path.write_bytes(BAD_ARRAYS[name])
    message = refusal(programs / "run_torchscript", script[0], path, "--ops", torch_library())
    assert f"run_torchscript: {path}: " in message


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 40))
    return roast_export.compress(model, ratio=5).eval()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An exported model, its input, and its folder."""
    folder = tmp_path_factory.mktemp("graph")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    roast_export.export(small(), folder / "small.onnx", example_inputs=(x,), verify=False)
    return folder / "small.onnx", save(folder / "x.npy", x.numpy()), folder


def test_an_exported_torchscript_file_gives_the_same_bits(programs, graph):
    _, x, folder = graph
    ops = torch_library()
    path = folder / "small.pt"
    roast_export.export(
        small(), path, to="torchscript", example_inputs=(torch.from_numpy(np.load(x)),), verify=False
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        want = torch.jit.load(path)(torch.from_numpy(np.load(x))).numpy()
    printed = read(run(programs / "run_torchscript", path, x, "--ops", ops))
    assert_same_bits(printed["output"], want)


@pytest.mark.parametrize("native", [True, False])
def test_onnx_gives_the_same_bits_without_python(programs, graph, native):
    model, x, _ = graph
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if native:
        options.register_custom_ops_library(ort_library())
    session = onnxruntime.InferenceSession(str(model), options)
    feed = {session.get_inputs()[0].name: np.load(x)}
    wanted = dict(zip([y.name for y in session.get_outputs()], session.run(None, feed), strict=True))
    ops = ("--ops", ort_library()) if native else ()
    printed = read(run(programs / "run_onnx", model, x, "--threads", 1, *ops))
    assert list(printed) == list(wanted)
    for name, want in wanted.items():
        assert_same_bits(printed[name], want)


def test_onnx_refuses_what_it_cannot_use(programs, graph, tmp_path):
    program, (model, x, _) = programs / "run_onnx", graph
    assert "usage:" in refusal(program)
    assert "the model takes 1 inputs: " in refusal(program, model)
    assert "none.so" in refusal(program, model, x, "--ops", tmp_path / "none.so")
    assert "none.onnx" in refusal(program, tmp_path / "none.onnx", x)
    complex_numbers = save(tmp_path / "c.npy", np.zeros((3, 64), np.complex64))
    assert "type <c8 is not supported" in refusal(program, model, complex_numbers)
    narrow = save(tmp_path / "n.npy", np.zeros((3, 63), np.float32))
    assert "run_onnx: " in refusal(program, model, narrow)
