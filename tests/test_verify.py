"""The proof must fail when anything is wrong. Each test changes one thing in a good file."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from models import SMALL_DYNAMIC, Small, small_inputs
from onnx import helper, numpy_helper
from torch import nn

import roast_export
from roast_export import onnx_file, probe
from roast_export.cases import Case
from roast_export.compare import compare_bits, compare_values
from roast_export.errors import InputError, RoastError
from roast_export.localise import first_difference
from roast_export.report import Report
from roast_export.runtimes import Runtime
from roast_export.to_onnx import SHARED_ARRAY
from roast_export.trace import trace


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return roast_export.compress(Small().eval(), 8)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "s.onnx"
    roast_export.export(
        model, path, example_inputs=small_inputs(), dynamic_shapes=SMALL_DYNAMIC, verify=False
    )
    return path


def verdict(model, proto, tmp_path, **options):
    path = tmp_path / "changed.onnx"
    onnx.save(proto, path)
    return roast_export.verify(model, path, example_inputs=small_inputs(), **options)


def initializer(proto, name):
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def change(tensor, place, factor):
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[place] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def node(proto, name):
    return next(n for n in proto.graph.node if n.name == name)


def attribute(proto, layer, name):
    return next(a for a in node(proto, layer).attribute if a.name == name)


def test_control_nothing_changed(model, good, tmp_path):
    report = verdict(model, onnx.load(good), tmp_path)
    assert report.passed
    assert [item.path for item in report.measurements] == ["native", "portable", "folded"]


def test_one_array_value(model, good, tmp_path):
    proto = onnx.load(good)
    change(initializer(proto, SHARED_ARRAY), 100, 1 + 2**-20)
    report = verdict(model, proto, tmp_path)
    assert not report.passed
    failed = {check.name for check in report.failures if check.kind == "weight"}
    assert SHARED_ARRAY in failed
    stored = next(check for check in report.failures if check.name == SHARED_ARRAY)
    assert stored.index == (100,)
    assert stored.expected != stored.actual


@pytest.mark.parametrize("name", ["hash1", "sign_hash", "tile", "range", "align"])
def test_one_field_of_the_record(model, good, tmp_path, name):
    proto = onnx.load(good)
    found = attribute(proto, "first.weight", name)
    if name in ("range", "align"):
        found.i -= 1
    else:
        found.ints[-1] = {"hash1": found.ints[-1] + 1, "sign_hash": found.ints[-1] + 1, "tile": 8}[name]
    report = verdict(model, proto, tmp_path)
    assert not report.passed
    assert {c.name for c in report.failures if c.kind == "weight"} == {"first.weight"}


def test_one_scale(model, good, tmp_path):
    proto = onnx.load(good)
    attribute(proto, "table.weight", "scale").f *= 1 + 2**-22
    report = verdict(model, proto, tmp_path)
    assert {c.name for c in report.failures if c.kind == "weight"} == {"table.weight"}


def test_one_bias_names_the_layer(model, good, tmp_path):
    proto = onnx.load(good)
    change(initializer(proto, "first.bias"), 3, 1.5)
    report = verdict(model, proto, tmp_path)
    assert not report.passed
    assert any(c.name == "first.bias" and c.index == (3,) for c in report.failures)
    notes = [c.note for c in report.failures if c.note.startswith("first differing layer")]
    assert notes
    assert all("first" in note.removeprefix("first differing layer") for note in notes)


def test_a_node_that_does_something_else(model, good, tmp_path):
    """No stored value is wrong here; only the outputs can tell, and the layer must still be named."""
    proto = onnx.load(good)
    change_at = next(n for n in proto.graph.node if n.op_type == "LayerNormalization")
    next(a for a in change_at.attribute if a.name == "epsilon").f = 0.1
    report = verdict(model, proto, tmp_path)
    assert not [c for c in report.failures if c.kind == "weight"]
    notes = {c.note for c in report.failures if c.note.startswith("first differing layer")}
    assert notes
    assert all("norm" in note for note in notes)


def test_junk_breaks_the_size_gate(model, good, tmp_path):
    proto = onnx.load(good)
    junk = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(junk, "junk"))
    assert [c.name for c in verdict(model, proto, tmp_path).failures] == ["size gate"]


@pytest.mark.parametrize("what", ["weight", "transposed", "index"])
def test_a_dense_weight_in_the_file(model, good, tmp_path, what):
    proto = onnx.load(good)
    weight = model.first.weight.detach().numpy()
    index = model.first.virtual["weight"].mapping.indices()
    values = {"weight": weight, "transposed": weight.T.copy(), "index": index}[what]
    proto.graph.initializer.append(numpy_helper.from_array(values, "hidden"))
    failures = verdict(model, proto, tmp_path).failures
    assert any(c.name == "no dense weight" and "hidden" in c.note for c in failures)


def test_dense_model_re_saved_by_the_optimiser_is_caught(model, good, tmp_path, monkeypatch):
    """If a kernel did not keep onnxruntime from folding, the re-saved model would show it."""
    monkeypatch.setattr(onnx_file, "optimised_copy", lambda path, to: _folded(path, to))
    failures = verdict(model, onnx.load(good), tmp_path).failures
    assert [c.runtime for c in failures] == ["onnxruntime optimised"]


def _folded(path, to):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(to)
    onnxruntime.InferenceSession(path, options)


def test_missing_library_is_a_named_skip(model, good, tmp_path, monkeypatch):
    monkeypatch.setenv("ROAST_ORT_LIBRARY", str(tmp_path / "nowhere.so"))
    report = verdict(model, onnx.load(good), tmp_path)
    assert "nowhere.so" in report.skipped["onnxruntime native"]
    assert report.passed


def test_nothing_verified_is_a_failure():
    assert not Report(model="m", path="p", target="onnx").passed


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_not_a_model(model, tmp_path, content):
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RoastError, match=r"x\.onnx"):
        roast_export.verify(model, path, example_inputs=small_inputs())


def test_a_dense_onnx_file(tmp_path, model):
    torch.onnx.export(
        nn.Linear(3, 2).eval(), (torch.zeros(1, 3),), tmp_path / "d.onnx", dynamo=True, verbose=False
    )
    with pytest.raises(RoastError, match=r"no node of the domain ai\.roast"):
        roast_export.verify(model, tmp_path / "d.onnx", example_inputs=small_inputs())


def test_unknown_runtime(model, good):
    with pytest.raises(InputError, match="no runtime is called 'tensorrt'"):
        roast_export.verify(model, good, example_inputs=small_inputs(), runtimes=["tensorrt"])


def test_bound_can_be_set(model, good, tmp_path):
    report = verdict(model, onnx.load(good), tmp_path, atol=0.0, rtol=1e-12)
    assert {c.kind for c in report.failures} <= {"output"}
    assert report.failures


def test_another_model_of_the_same_shape(good):
    torch.manual_seed(1)
    other = roast_export.compress(Small().eval(), 8, seed=9)
    report = roast_export.verify(other, good, example_inputs=small_inputs())
    assert {"table.weight", "first.weight", "last.weight"} <= {
        c.name.partition("#")[0] for c in report.failures
    }


@pytest.mark.parametrize(
    ("expected", "actual", "passes"),
    [
        ([1.0, np.nan], [1.0, np.nan], True),
        ([1.0, 2.0], [1.0, np.nan], False),
        ([1.0, np.inf], [1.0, np.inf], True),
        ([1.0, np.inf], [1.0, -np.inf], False),
        ([1.0, 100.0], [1.0, 100.0009], True),
        ([1.0, 100.0], [1.0, 100.1], False),
        ([], [], True),
    ],
)
def test_compare_values(expected, actual, passes):
    arrays = (np.array(expected, np.float32), np.array(actual, np.float32))
    assert compare_values("r", "n", "c", *arrays, 1e-5, 1e-5).passed is passes


def test_compare_integers_exactly():
    a = np.array([1, 2, 3])
    assert compare_values("r", "n", "c", a, a.copy(), 1.0, 1.0).passed
    assert not compare_values("r", "n", "c", a, a + np.array([0, 1, 0]), 1.0, 1.0).passed


@pytest.mark.parametrize(
    ("expected", "actual", "passes"),
    [
        (np.float32([0.0]), np.float32([-0.0]), False),
        (np.float32([1.0]), np.nextafter(np.float32([1.0]), np.float32(2)), False),
        (np.float32([np.nan]), -np.float32([np.nan]), True),
        (np.float32([1.0]), np.float64([1.0]), False),
        (np.float32([1.0]), np.float32([[1.0]]), False),
        (np.float32([1.5, 2.5]), np.float32([1.5, 2.5]), True),
    ],
)
def test_compare_bits(expected, actual, passes):
    assert compare_bits("r", "n", "c", expected, actual).passed is passes


@pytest.mark.parametrize(("emulated", "rows"), [(False, 700), (True, probe.EMULATED_INPUTS)])
def test_a_product_with_the_identity(emulated, rows):
    """All of it, or under emulation as many rows as it says, from the first to the last."""
    runtime = Runtime("r", lambda _: lambda _: [], lambda: None, emulated=emulated)
    weight = np.random.default_rng(0).standard_normal((5, 700), np.float32)
    right = probe.check_product(weight, "w", runtime, lambda x: x @ weight.T)
    assert right.passed
    assert right.elements == 5 * rows
    for place in (0, 699):
        wrong = weight.copy()
        wrong[2, place] += 1
        found = probe.check_product(weight, "w", runtime, lambda x, wrong=wrong: x @ wrong.T)
        assert not found.passed
        assert found.index == (2, place)


def test_unknown_layer_name(model, good, tmp_path):
    proto = onnx.load(good)
    node(proto, "first.weight").name = "elsewhere"
    report = verdict(model, proto, tmp_path)
    assert any(c.name == "elsewhere" and "no such layer" in c.note for c in report.failures)


def test_a_layer_that_is_gone(model, good, tmp_path):
    """The same outputs from a dense weight: what this project promises not to do."""
    proto = onnx.load(good)
    gone = node(proto, "first.weight")
    dense = numpy_helper.from_array(model.first.weight.detach().numpy().T.copy(), "dense")
    proto.graph.initializer.append(dense)
    x, _, bias = gone.input
    place = list(proto.graph.node).index(gone)
    proto.graph.node.insert(place, helper.make_node("Add", ["product", bias], gone.output))
    proto.graph.node.insert(place, helper.make_node("MatMul", [x, "dense"], ["product"]))
    proto.graph.node.remove(gone)
    failures = verdict(model, proto, tmp_path).failures
    assert {(c.kind, c.name) for c in failures} == {
        ("size", "size gate"),
        ("structure", "no dense weight"),
        ("weight", "first.weight"),
    }


def test_a_value_of_the_same_name_is_another_one_if_what_follows_it_is_right():
    """torch.onnx calls values of its own as the traced graph calls others."""
    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh()).eval()
    network, x = roast_export.compress(layers, 4, min_params=512), torch.randn(2, 64)
    program = trace(network, (x,))
    subject = SimpleNamespace(program=program, limits=None)
    case = Case("example", {"input": x.numpy()}, [])

    def named(*wrong):
        def compute(values):
            assert {"relu", "tanh"} <= set(values)
            return {name: value + (name in wrong) for name, value in values.items()}

        names = {node.name for node in program.graph.nodes}
        return [check.note for check in first_difference(subject, "r", case, names, compute)]

    assert named() == []
    assert named("relu") == []
    assert named("tanh") == ["first differing layer: 3 (value tanh)"]
    last = [node.name for node in program.graph.nodes if node.op == "call_function"]
    assert named(*last[last.index("relu") :]) == ["first differing layer: 1 (value relu)"]
