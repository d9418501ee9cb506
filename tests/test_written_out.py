"""Weights of a portable .ort are read back bit by bit, though it has no names; what is changed is named."""

from collections import OrderedDict

import numpy as np
import onnx
import pytest
import torch
from models import MIXED_DYNAMIC, SMALL_DYNAMIC, Mixed, Small, mixed_inputs, small_inputs
from onnx import helper, numpy_helper
from ort_bytes import with_array_value, with_coefficient, with_number
from torch import nn

import roast_export
from roast_export import written_out
from roast_export.array_reads import Graph
from roast_export.ort_graph import read_graph
from roast_export.program import layers_of
from roast_export.runtimes import ort_runtimes
from roast_export.trace import trace

RUNTIME = "onnxruntime .ort portable"
NAMES = {"table.weight", "first.weight", "last.weight"}


def exported(model, path, inputs, dynamic):
    options = {"example_inputs": inputs, "dynamic_shapes": dynamic, "verify": False, "portable": True}
    roast_export.export(model, path, to="ort", **options)
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return roast_export.compress(Small().eval(), 4)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    return exported(model, tmp_path_factory.mktemp("good") / "s.ort", small_inputs(), SMALL_DYNAMIC)


def memory_of(model):
    return model.table.virtual["weight"].memory.detach().numpy()


def failures(model, path):
    """Names of the weights that differ."""
    report = roast_export.verify(model, path, example_inputs=small_inputs())
    return {check.name for check in report.failures if check.kind == "weight"}


def checks(model, proto):
    """What the search finds in a graph."""
    layers = layers_of(trace(model, small_inputs(), SMALL_DYNAMIC))
    return list(written_out.check(proto, layers, ort_runtimes(True), lambda *step: None))


def test_control_every_layer_is_found_once(model, good):
    report = roast_export.verify(model, good, example_inputs=small_inputs())
    assert report.passed, str(report)
    found = [check for check in report.checks if check.runtime == RUNTIME and check.kind == "weight"]
    assert sorted(check.name for check in found) == sorted(NAMES)
    assert sum(check.elements for check in found) == 50 * 48 + 96 * 48 + 33 * 96
    assert not [warning for warning in report.warnings if "relative error" not in warning]


def test_layers_of_every_kind_are_found(tmp_path):
    torch.manual_seed(0)
    mixed = roast_export.compress(Mixed().eval(), 20)
    path = exported(mixed, tmp_path / "m.ort", mixed_inputs(), MIXED_DYNAMIC)
    report = roast_export.verify(mixed, path, example_inputs=mixed_inputs())
    assert report.passed, str(report)
    found = [check.name for check in report.checks if check.runtime == RUNTIME and check.kind == "weight"]
    assert len(found) == len(set(found)) == 17


def test_one_array_value(model, good, tmp_path):
    memory = memory_of(model)
    slot = int(model.first.virtual["weight"].mapping.indices()[3, 4])
    path = with_array_value(good, tmp_path / "x.ort", memory, slot)
    assert {"first.weight", "roast_memory"} <= failures(model, path)
    report = roast_export.verify(model, path, example_inputs=small_inputs())
    wrong = next(c for c in report.failures if c.name == "first.weight")
    assert model.first.virtual["weight"].mapping.indices()[wrong.index] == slot
    assert wrong.source.startswith(f"[{','.join(map(str, wrong.index))}] is ")
    assert f".memory[{slot}] * " in wrong.source
    assert "from hash1 (p=" in wrong.source


def column_part(mapping):
    """What onnxruntime stores of a table's b, q and g: the hash of each column but for its row, less p."""
    columns = np.arange(0, mapping.shape[1], mapping.align)
    return mapping.hash1(np.zeros_like(columns), columns // mapping.tile[1]) - mapping.hash1.p


@pytest.mark.parametrize(
    ("layer", "name"),
    [("table", "a"), ("table", "b and g"), ("wide", "g"), ("wide", "b"), ("last", "g"), ("last", "b")],
)
def test_one_coefficient(tmp_path, layer, name):
    """Layers of more than 31 tiles a side: of smaller ones onnxruntime stores the places of the tiles."""
    torch.manual_seed(0)
    parts = {"table": nn.Embedding(90, 64), "wide": nn.Linear(64, 1100), "last": nn.Linear(1100, 33)}
    model = roast_export.compress(nn.Sequential(OrderedDict(parts)).eval(), 20)
    inputs = (torch.randint(0, 90, (2, 3)),)
    path = exported(model, tmp_path / "w.ort", inputs, None)
    assert roast_export.verify(model, path, example_inputs=inputs).passed
    mapping = getattr(model, layer).virtual["weight"].mapping
    if name == "b and g":
        columns = column_part(mapping)
        wrong = with_number(path, tmp_path / "x.ort", columns, columns + 1)
    else:
        wrong = with_coefficient(path, tmp_path / "x.ort", getattr(mapping.hash1, name))
    report = roast_export.verify(model, wrong, example_inputs=inputs)
    assert {check.name for check in report.failures if check.kind == "weight"} == {f"{layer}.weight"}


def test_one_scale(model, good, tmp_path):
    scale = np.float32([model.table.virtual["weight"].scale])
    path = with_number(good, tmp_path / "x.ort", scale, np.nextafter(scale, np.float32(9)))
    assert failures(model, path) == {"table.weight"}


def test_one_bias(model, good, tmp_path):
    bias = model.first.bias.detach().numpy()
    changed = bias.copy()
    changed[3] *= 1.5
    report = roast_export.verify(
        model, with_number(good, tmp_path / "x.ort", bias, changed), example_inputs=small_inputs()
    )
    wrong = [check for check in report.failures if check.kind == "weight"]
    assert [(check.name, check.index) for check in wrong] == [("first.bias", (3,))]


def test_another_model_of_the_same_shape(good):
    torch.manual_seed(1)
    other = roast_export.compress(Small().eval(), 4, seed=9)
    assert NAMES <= failures(other, good)


def product_of(proto, shape):
    """The node that multiplies with a weight of this shape, and the place of the weight in it."""
    graph = Graph(proto)
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if node.op_type in ("MatMul", "Gemm") and name in graph.constant and name not in graph.stored:
                session = graph.piece(name)
                found = written_out.open_unoptimised(session.SerializeToString())({})[0]
                if found.shape in (shape, shape[::-1]):
                    return node, place, found
    raise AssertionError("there is no such product")


def test_a_layer_that_is_gone(model, good):
    proto = read_graph(good)
    node, place, weight = product_of(proto, (33, 96))
    proto.graph.initializer.append(numpy_helper.from_array(weight, "dense"))
    node.input[place] = "dense"
    failed = [check for check in checks(model, proto) if not check.passed]
    assert ("last.weight", "the file has no such layer") in [(check.name, check.note) for check in failed]


def test_a_weight_that_is_read_rightly_and_then_changed(model, good):
    """The right weight is in the graph; what is multiplied with is another read."""
    proto = read_graph(good)
    node, place, _ = product_of(proto, (96, 48))
    indices = model.first.virtual["weight"].mapping.indices().astype(np.int64)
    indices[5, 5] = (indices[5, 5] + 1) % len(memory_of(model))
    across = node.op_type == "MatMul" or not any(a.name == "transB" and a.i for a in node.attribute)
    virtual = model.first.virtual["weight"]
    factors = virtual.mapping.signs() * np.float32(virtual.scale)
    for name, values in (("slots", indices), ("factors", factors)):
        stored = np.ascontiguousarray(values.T if across else values)
        proto.graph.initializer.append(numpy_helper.from_array(stored, name))
    proto.graph.node.append(helper.make_node("Gather", ["roast_memory", "slots"], ["taken"]))
    proto.graph.node.append(helper.make_node("Mul", ["taken", "factors"], ["other"]))
    node.input[place] = "other"
    failed = [check for check in checks(model, proto) if not check.passed]
    assert [(check.name, check.index) for check in failed] == [("first.weight", (5, 5))]


@pytest.mark.parametrize("operator", ["ReduceSum", "Gather"])
def test_a_read_that_no_layer_has(model, good, operator):
    proto = read_graph(good)
    if operator == "Gather":
        proto.graph.initializer.append(numpy_helper.from_array(np.arange(7), "few"))
        proto.graph.node.append(helper.make_node("Gather", ["roast_memory", "few"], ["some"]))
        proto.graph.node.append(helper.make_node("ReduceSum", ["some"], ["more"]))
    else:
        proto.graph.node.append(helper.make_node("ReduceSum", ["roast_memory"], ["total"]))
        proto.graph.node.append(helper.make_node("Add", ["total", "extra"], ["more"]))
    proto.graph.output.append(onnx.ValueInfoProto(name="more"))
    failed = [check for check in checks(model, proto) if not check.passed]
    assert [check.name for check in failed] == ["roast_memory"]
    assert "does not have" in failed[0].note


def test_a_lookup_of_constant_ids(tmp_path):
    """Positions are looked up by constants, and onnxruntime folds what depends on them alone."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(40, 64)
            self.last = nn.Linear(64, 50)
            self.register_buffer("places", torch.tensor([3, 1, 4, 1, 5]))

        def forward(self, x):
            return self.last(x + self.table(self.places))

    torch.manual_seed(0)
    model = roast_export.compress(Positions().eval(), 4)
    inputs = (torch.randn(2, 5, 64),)
    path = exported(model, tmp_path / "p.ort", inputs, None)
    report = roast_export.verify(model, path, example_inputs=inputs)
    assert report.passed, str(report)
    assert {c.name for c in report.checks if c.runtime == RUNTIME and c.kind == "weight"} == {
        "table.weight",
        "last.weight",
    }
    mapping = model.table.virtual["weight"].mapping
    memory = model.table.virtual["weight"].memory.detach().numpy()
    wrong = with_array_value(path, tmp_path / "x.ort", memory, int(mapping.indices()[4, 0]))
    report = roast_export.verify(model, wrong, example_inputs=inputs)
    assert "table.weight" in {check.name for check in report.failures}


def test_a_graph_survives_reading(good):
    proto = read_graph(good)
    assert {tensor.name for tensor in proto.graph.initializer} >= {"roast_memory", "first.bias"}
    assert [value.name for value in proto.graph.output] == ["scores", "best"]
    kinds = {node.op_type: node for node in proto.graph.node}
    epsilon = next(a for a in kinds["LayerNormalization"].attribute if a.name == "epsilon")
    assert epsilon.type == onnx.AttributeProto.FLOAT
    assert {opset.domain for opset in proto.opset_import} >= {""}
