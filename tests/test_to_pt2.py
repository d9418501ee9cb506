"""torch.export archives, native and portable: what is in them and where they open."""

import importlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from models import MIXED_DYNAMIC, SMALL_DYNAMIC, Mixed, Small, mixed_inputs, small_inputs
from torch import nn

import roast_export
from roast_export import families, torch_ops
from roast_export.archive import runs_code
from roast_export.errors import ExportError, InputError
from roast_export.libraries import torch_library_path
from roast_export.modules import RoastLinear, VirtualWeight
from roast_export.note import read_note
from roast_export.program import layers_of, quiet
from roast_export.to_pt2 import TAG, decomposed
from roast_export.trace import trace

verifying = importlib.import_module("roast_export.verify")
both = pytest.mark.parametrize("portable", [False, True], ids=["native", "portable"])


pytestmark = pytest.mark.usefixtures("nothing_is_measured")


def compressed(kind, ratio=8, **options):
    torch.manual_seed(0)
    return roast_export.compress(kind().eval(), ratio, **options)


@pytest.fixture(scope="module")
def small():
    return compressed(Small)


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    found = {portable: folder / f"{portable}.pt2" for portable in (False, True)}
    options = {"example_inputs": small_inputs(), "dynamic_shapes": SMALL_DYNAMIC, "verify": False}
    for portable, path in found.items():
        roast_export.export(small, path, to="pt2", portable=portable, **options)
    return found


def opened(path):
    with quiet():
        return torch.export.load(path)


def spaces(program):
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}


@both
def test_mixed_model(tmp_path, portable):
    model = compressed(Mixed, 10, min_params=256)
    report = roast_export.export(
        model, tmp_path / "m.pt2", to="pt2", portable=portable,
        example_inputs=mixed_inputs(), dynamic_shapes=MIXED_DYNAMIC,
    )  # fmt: skip
    assert report.passed
    assert report.file_bytes <= report.limit_bytes
    assert len({c.case for c in report.checks if "batch=" in c.case}) >= 3


@both
def test_operators_and_tensors(small, files, portable):
    program = opened(files[portable])
    assert spaces(program) == ({"aten"} if portable else {"aten", "roast"})
    array = small.first.virtual["weight"].memory
    tensors = {t.untyped_storage().data_ptr(): t for t in program.state_dict.values()}
    kept = sum(p.nbytes for name, p in small.named_parameters() if not name.endswith("memory"))
    assert sum(t.nbytes for t in tensors.values()) == array.nbytes + kept
    assert not program.constants


@both
def test_it_holds_data_only_and_no_path_of_this_machine(files, portable):
    assert runs_code(files[portable]) is None
    with zipfile.ZipFile(files[portable]) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"/site-packages" not in content
    assert b"models.py" not in content


@both
def test_other_batches(small, files, portable):
    run = opened(files[portable]).module()
    for batch in (2, 3, 9):
        inputs = small_inputs(batch)
        with torch.no_grad():
            found, expected = run(**inputs), small(**inputs)
        torch.testing.assert_close(found["scores"], expected["scores"], atol=2e-5, rtol=1e-5)
        assert torch.equal(found["best"], expected["best"])


def test_gathered_weights_are_those_of_the_model(small, files):
    """The nodes that the note names compute the weights, bit by bit."""
    program, note = opened(files[True]), read_note(files[True])
    nodes = {node.name for node in program.graph.nodes}
    assert all(set(weight.place.split()) <= nodes for weight in note.weights)
    report = roast_export.verify(small, files[True], example_inputs=small_inputs())
    elements = {c.name: c.elements for c in report.checks if c.kind == "weight" and "export" in c.runtime}
    assert elements == {"table.weight": 50 * 48, "first.weight": 96 * 48, "last.weight": 33 * 96}


def test_every_use_is_marked(small):
    program = trace(small, small_inputs())
    uses = len(layers_of(program))
    marks = {(n.meta.get("custom") or {}).get(TAG) for n in decomposed(program).graph.nodes}
    assert marks == {None, *range(uses)}
    assert uses == 4


def without_package(code, *arguments):
    code = f"import sys, torch\n{code}\nassert 'roast_export' not in sys.modules"
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


RUN = """
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(torch.export.load(sys.argv[1]).module()(**inputs)["scores"], sys.argv[3])
"""


def test_portable_runs_without_the_package(small, files, tmp_path):
    inputs = small_inputs(3)
    torch.save(inputs, tmp_path / "in.pt")
    done = without_package(RUN, files[True], tmp_path / "in.pt", tmp_path / "out.pt")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = small(**inputs)["scores"]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, atol=2e-5, rtol=1e-5)


def test_native_without_the_library_is_refused_by_torch(files):
    """torch's own words; what to do stands in our note, which is plain JSON."""
    done = without_package("torch.export.load(sys.argv[1])", files[False])
    assert done.returncode == 1
    assert "roast" in done.stderr


@pytest.mark.skipif(torch_ops.LIBRARY_ABSENT is not None, reason=str(torch_ops.LIBRARY_ABSENT))
def test_native_opens_with_the_library_alone(small, files, tmp_path):
    inputs = small_inputs(3)
    torch.save(inputs, tmp_path / "in.pt")
    code = "torch.ops.load_library(sys.argv[4])" + RUN
    library = torch_library_path()
    done = without_package(code, files[False], tmp_path / "in.pt", tmp_path / "out.pt", library)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = small(**inputs)["scores"]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, atol=2e-5, rtol=1e-5)


def test_it_is_a_model_file_again(small, files, tmp_path):
    """A native archive loads as a model, and exports further."""
    model = roast_export.load(files[False])
    report = roast_export.export(model, tmp_path / "s.ts", to="torchscript", example_inputs=small_inputs())
    assert report.passed
    assert {layer.name for layer in report.layers} == {"table.weight", "first.weight", "last.weight"}


@both
def test_names_of_dimensions(small, tmp_path, portable):
    """From an archive: names for some fix the others, and errors say which of its dimensions are free."""
    roast_export.save(small, tmp_path / "s.pt", small_inputs())
    model = roast_export.load(tmp_path / "s.pt")
    options = {"to": "pt2", "portable": portable, "verify": False}
    shapes = {"ids": {0: "n"}}
    report = roast_export.export(model, tmp_path / "s.pt2", dynamic_shapes=shapes, **options)
    assert report.inputs == {"ids": "int64[n, 5]", "extra": "float32[n, 5, 48]"}
    for wrong, message in (
        ({"extra": {2: "width"}}, r"input 'extra', axis 2 is fixed by the model; dynamic are: ids:0, ids:1"),
        ({"nope": {0: "b"}}, "no input is called 'nope'; the model takes ids, extra"),
    ):
        with pytest.raises(InputError, match=message):
            roast_export.export(model, tmp_path / "x.pt2", dynamic_shapes=wrong, **options)
    assert not (tmp_path / "x.pt2").exists()


@pytest.mark.parametrize(
    "mapping",
    [
        families.fakeroast_pareto((24, 30), 200, [3, 5, 7, 9], 11, sign_seed=4),
        families.fakeroast_random((24, 30), 200, 5, draw_bits=64),
    ],
    ids=["signs", "slots"],
)
def test_what_is_drawn_from_mt19937_needs_the_library(tmp_path, mapping):
    memory = torch.from_numpy(np.float32(np.arange(mapping.n_memory)))
    model = nn.Sequential(RoastLinear(VirtualWeight(nn.Parameter(memory), mapping))).eval()
    x = (torch.randn(2, 30),)
    assert roast_export.export(model, tmp_path / "n.pt2", to="pt2", example_inputs=x).passed
    with pytest.raises(ExportError, match=r"0\.weight: slots or signs drawn from MT19937 have no portable"):
        roast_export.export(model, tmp_path / "p.pt2", to="pt2", portable=True, example_inputs=x)
    assert [path.name for path in tmp_path.iterdir()] == ["n.pt2"]
