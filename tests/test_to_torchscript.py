"""TorchScript archives: what is in them, where they run, what torch.jit's optimisers may not do."""

import importlib
import re
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from models import MIXED_DYNAMIC, SMALL_DYNAMIC, Control, Mixed, Small, mixed_inputs, small_inputs
from torch import nn

import roast_export
from roast_export import families, torch_ops
from roast_export.errors import ExportError, VerificationError
from roast_export.gate import dense_check
from roast_export.libraries import torch_library_path
from roast_export.modules import RoastLinear, VirtualWeight, virtual_weights
from roast_export.program import layers_of, quiet
from roast_export.script_file import _constants
from roast_export.trace import trace

verifying = importlib.import_module("roast_export.verify")
native_only = pytest.mark.skipif(torch_ops.LIBRARY_ABSENT is not None, reason=str(torch_ops.LIBRARY_ABSENT))
FORMS = {"native": ("torchscript", False), "portable": ("torchscript", True), "lite": ("lite", True)}
forms = pytest.mark.parametrize("form", FORMS)


pytestmark = pytest.mark.usefixtures("nothing_is_measured")


def compressed(kind, ratio=8, **options):
    torch.manual_seed(0)
    return roast_export.compress(kind().eval(), ratio, **options)


@pytest.fixture(scope="module")
def small():
    return compressed(Small)


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("files"), {}
    options = {"example_inputs": small_inputs(), "dynamic_shapes": SMALL_DYNAMIC, "verify": False}
    for form, (target, portable) in FORMS.items():
        found[form] = folder / f"{form}.ts"
        roast_export.export(small, found[form], to=target, portable=portable, **options)
    return found


def opened(path):
    with quiet():
        return torch.jit.load(str(path)).eval()


def tensors(module):
    """Every tensor once, by its storage."""
    found = {
        t.untyped_storage().data_ptr(): t for t in [*module.parameters(), *module.buffers()] if t.numel()
    }
    return list(found.values())


@pytest.mark.parametrize("form", ["native", "portable"])
def test_mixed_model(tmp_path, form):
    """LSTM, GRU, attention, grouped and dilated convolution, tied table; every matrix virtual."""
    model = compressed(Mixed, 10, min_params=256)
    target, portable = FORMS[form]
    report = roast_export.export(
        model, tmp_path / "m.ts", to=target, portable=portable,
        example_inputs=mixed_inputs(), dynamic_shapes=MIXED_DYNAMIC,
    )  # fmt: skip
    assert report.passed
    weights = [c for c in report.checks if c.kind == "weight" and c.case == "all elements"]
    assert sum(check.elements for check in weights) >= sum(
        w.mapping.numel for w in {id(w): w for w in virtual_weights(model).values()}.values()
    )
    assert len({c.case for c in report.checks if "batch=" in c.case}) >= 3
    assert report.inputs["ids"] == "int64[batch, 7]"
    assert report.file_bytes <= report.limit_bytes
    assert {c.runtime for c in report.checks if c.kind == "structure"} == {
        "file",
        "torch.jit.freeze",
        "optimize_for_inference",
    }


@forms
def test_array_record_and_kept_parameters_are_all_there_is(small, files, form):
    module = opened(files[form])
    kept = sum(p.nbytes for name, p in small.named_parameters() if not name.endswith("memory"))
    array = small.first.virtual["weight"].memory
    stored = tensors(module)
    assert sum(t.nbytes for t in stored) == array.nbytes + kept
    assert sum(torch.equal(t.detach(), array.detach()) for t in stored if t.shape == array.shape) == 1
    with zipfile.ZipFile(files[form]) as archive:
        data = [m.file_size for m in archive.infolist() if re.search(r"/(data|constants)/\d+$", m.filename)]
    assert sum(data) <= array.nbytes + kept + 64 * len(data)


def operators(path):
    """Names of the operators that the file's code calls, submodules and all."""
    with quiet():
        names = set(torch.jit.export_opnames(opened(path)))
    with zipfile.ZipFile(path) as archive:
        code = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    names |= {f"{space}::{op}" for text in code for space, op in re.findall(r"ops\.(\w+)\.(\w+)", text)}
    return {name.partition(".")[0] for name in names}


@forms
def test_which_operators_are_called(files, form):
    spaces = {name.partition("::")[0] for name in operators(files[form])}
    assert spaces == ({"aten", "prim", "roast"} if form == "native" else {"aten", "prim"})


@forms
def test_the_source_tells_nothing_of_this_machine(files, form):
    with zipfile.ZipFile(files[form]) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"/site-packages" not in content
    assert str(verifying.__file__).encode() not in content


def test_dict_of_outputs_by_position_and_by_name(small, files):
    inputs = small_inputs(4)
    with torch.no_grad():
        expected = small(**inputs)
        by_name, by_place = opened(files["native"])(**inputs), opened(files["portable"])(*inputs.values())
    for found in (by_name, by_place):
        assert set(found) == {"scores", "best"}
        torch.testing.assert_close(found["scores"], expected["scores"], atol=2e-5, rtol=1e-5)
        assert torch.equal(found["best"], expected["best"])


class Naive(nn.Module):
    """What one would write first: the operator on constants, which torch.jit folds."""

    def __init__(self, memory, fields):
        super().__init__()
        self.memory = nn.Parameter(memory, requires_grad=False)
        self.fields: list[int] = fields

    def forward(self, x):
        return x @ torch.ops.roast.gather(self.memory, self.fields, 1.0).t()


@pytest.mark.parametrize("optimise", [torch.jit.freeze, torch.jit.optimize_for_inference])
@pytest.mark.parametrize("form", ["native", "portable"])
def test_optimisers_do_not_expand_weights(small, files, tmp_path, optimise, form):
    layers = layers_of(trace(small, small_inputs()))
    with quiet():
        frozen = optimise(opened(files[form]))
        torch.jit.save(frozen, str(tmp_path / "frozen.ts"))
        again = torch.jit.load(str(tmp_path / "frozen.ts"))
    for module in (frozen, again):
        assert dense_check(layers, _constants(module), "frozen").passed
    inputs = small_inputs(3)
    with torch.no_grad():
        found, expected = again(**inputs), small(**inputs)
    torch.testing.assert_close(found["scores"], expected["scores"], atol=2e-5, rtol=1e-5)
    with zipfile.ZipFile(tmp_path / "frozen.ts") as archive:
        sizes = [m.file_size for m in archive.infolist() if re.search(r"/(data|constants)/\d+$", m.filename)]
    smallest_weight = min(layer.mapping.numel for layer in layers)
    assert max(sizes) < 4 * smallest_weight


@native_only
@pytest.mark.parametrize("optimise", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_control_a_naive_module_is_folded_and_caught(small, optimise):
    layers = layers_of(trace(small, small_inputs()))
    first = next(layer for layer in layers if layer.name == "first.weight")
    naive = Naive(first.memory, first.mapping.to_list())
    with quiet():
        frozen = optimise(torch.jit.script(naive.eval()))
    # Its scale is 1, so the values differ from the layer's: the layer to look for has scale 1 too.
    sought = [type(first)(**{**first.__dict__, "scale": 1.0})]
    assert not dense_check(sought, _constants(frozen), "frozen").passed


def without_package(code, *arguments):
    """Run it in a process that has torch and not this package."""
    code = f"import sys, torch\n{code}\nassert 'roast_export' not in sys.modules"
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


RUN = """
ids, extra = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(load(sys.argv[1])(ids, extra)["scores"], sys.argv[3])
"""


@pytest.mark.parametrize(
    ("form", "before"),
    [
        ("portable", "load = torch.jit.load"),
        ("lite", "from torch.jit.mobile import _load_for_lite_interpreter as load"),
        pytest.param(
            "native",
            "torch.ops.load_library(sys.argv[4]); load = torch.jit.load",
            marks=native_only,
        ),
    ],
)
def test_it_runs_without_the_package(small, files, tmp_path, form, before):
    inputs = small_inputs(3)
    torch.save(list(inputs.values()), tmp_path / "in.pt")
    library = torch_library_path() if form == "native" else ""
    done = without_package(before + RUN, files[form], tmp_path / "in.pt", tmp_path / "out.pt", library)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = small(**inputs)["scores"]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, atol=2e-5, rtol=1e-5)


def test_without_the_library_the_message_says_what_to_do(files):
    done = without_package("torch.jit.load(sys.argv[1])", files["native"])
    assert done.returncode == 1
    assert "Unknown builtin op: roast::" in done.stderr
    assert "import_roast_export_or_load_libroast_torch_first" in done.stderr


@forms
def test_control_flow_that_nothing_can_trace(tmp_path, form):
    """A loop and a branch on values: the file takes the same turns as the model."""
    model = compressed(Control, 8, min_params=500)
    target, portable = FORMS[form]
    report = roast_export.export(
        model, tmp_path / "c.ts", to=target, portable=portable,
        example_inputs=(torch.randint(0, 60, (2, 7)),), dynamic_shapes={"ids": {0: "batch", 1: "seq"}},
    )  # fmt: skip
    assert report.passed
    assert {layer.name for layer in report.layers} == set(virtual_weights(model))
    module = opened(tmp_path / "c.ts")
    turns, taken = set(), []
    counting = model.step.register_forward_hook(lambda *_: taken.append("loop"))
    watching = model.last.register_forward_pre_hook(lambda _, x: taken.append(bool(x[0].sum() > 0)))
    for seed in range(12):
        ids = torch.full((1 + seed % 3, 3 + seed), 5 * seed)
        with torch.no_grad():
            expected, found = model(ids), module(ids)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        turns.add(taken.pop())
    assert turns == {False, True}
    assert taken
    counting.remove()
    watching.remove()
    again = roast_export.verify(model, tmp_path / "c.ts", example_inputs=(torch.randint(0, 60, (2, 7)),))
    assert again.passed


def test_control_flow_has_no_onnx_and_no_pt2(tmp_path):
    model = compressed(Control, 8, min_params=500)
    for target in ("onnx", "pt2"):
        with pytest.raises(ExportError, match=r"torch\.export cannot trace this model"):
            roast_export.export(
                model, tmp_path / "c", to=target, example_inputs=(torch.randint(0, 60, (2, 7)),)
            )


class Sentence(nn.Module):
    """A BERT in miniature: positions, mask, two heads; batch and length dynamic."""

    def __init__(self):
        super().__init__()
        self.table, self.place = nn.Embedding(90, 32), nn.Embedding(24, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)

    def forward(self, ids, mask):
        x = self.table(ids) + self.place(torch.arange(ids.shape[1]))
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        bias = torch.where(mask[:, None, None, :] > 0, 0.0, float("-inf"))
        attended = torch.softmax(q @ k.transpose(-1, -2) / 4 + bias, -1) @ v
        return self.norm(x + self.out(attended.transpose(1, 2).flatten(2)))


SENTENCE = {"ids": torch.arange(12).view(2, 6), "mask": torch.ones(2, 6, dtype=torch.int64)}
BOTH = {"ids": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}


@pytest.mark.parametrize("form", ["native", "portable"])
def test_batch_and_sequence_are_dynamic(tmp_path, form):
    """Two inputs whose batch torch.export cannot prove equal: the user's names say that they are."""
    model = compressed(Sentence, 8, min_params=256)
    target, portable = FORMS[form]
    report = roast_export.export(
        model, tmp_path / "s.ts", to=target, portable=portable, example_inputs=SENTENCE, dynamic_shapes=BOTH
    )
    assert report.inputs == {"ids": "int64[batch, sequence]", "mask": "int64[batch, sequence]"}
    module = opened(tmp_path / "s.ts")
    for batch, length in ((1, 1), (5, 24), (3, 2)):
        ids, mask = torch.randint(0, 90, (batch, length)), torch.ones(batch, length, dtype=torch.int64)
        with torch.no_grad():
            torch.testing.assert_close(module(ids, mask), model(ids, mask), atol=2e-5, rtol=1e-5)


def test_no_warning_reaches_the_user(tmp_path, small):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for target, portable in FORMS.values():
            options = {"example_inputs": small_inputs(), "verify": target == "lite"}
            roast_export.export(small, tmp_path / "s.ts", to=target, portable=portable, **options)
    assert [str(w.message) for w in caught if "jit" in str(w.message) or "roast_export" in w.filename] == []


def drawn_model(mapping):
    weight = VirtualWeight(nn.Parameter(torch.from_numpy(np.float32(np.arange(mapping.n_memory)))), mapping)
    return nn.Sequential(RoastLinear(weight), nn.ReLU()).eval()


@pytest.mark.parametrize("form", ["portable", "lite"])
def test_signs_from_mt19937_are_stored_packed(tmp_path, form):
    model = drawn_model(families.fakeroast_pareto((24, 30), 200, [3, 5, 7, 9], 11, sign_seed=4))
    target, portable = FORMS[form]
    path, x = tmp_path / "p.ts", (torch.randn(2, 30),)
    assert roast_export.export(model, path, to=target, portable=portable, example_inputs=x).passed
    assert 24 * 30 // 8 in {buffer.numel() for buffer in opened(path).buffers()}


def test_slots_from_mt19937_need_the_library(tmp_path):
    model, x = drawn_model(families.fakeroast_random((24, 30), 200, 5, draw_bits=64)), (torch.randn(2, 30),)
    assert roast_export.export(model, tmp_path / "n.ts", to="torchscript", example_inputs=x).passed
    with pytest.raises(ExportError, match="slots drawn from MT19937 have no portable form; export without"):
        roast_export.export(model, tmp_path / "p.ts", to="torchscript", portable=True, example_inputs=x)
    assert [path.name for path in tmp_path.iterdir()] == ["n.ts"]


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self):
        return self.layer.weight.sum()


def test_a_model_without_inputs_has_no_torchscript_form(tmp_path):
    with pytest.raises(ExportError, match="a model without inputs"):
        roast_export.export(compressed(Constant, 4), tmp_path / "x.ts", to="torchscript", example_inputs=())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_leaves_nothing(tmp_path, small, monkeypatch):
    writing = importlib.import_module("roast_export.to_torchscript")
    right = writing.ScriptWeight

    def wrong(memory, mapping, scale):
        return right(memory, mapping, 2 * scale if mapping.shape == (96, 48) else scale)

    monkeypatch.setattr(writing, "ScriptWeight", wrong)
    with pytest.raises(VerificationError, match=r"first\.weight in torchscript"):
        roast_export.export(small, tmp_path / "s.ts", to="torchscript", example_inputs=small_inputs())
    assert list(tmp_path.iterdir()) == []
