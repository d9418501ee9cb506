"""Products with a virtual weight become one node; everything else stays as it was."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from roast_export import families, onnx_ops
from roast_export.fuse import fuse_linear, transposed

OUT, IN = 40, 70
MAPPING = families.roast((OUT, IN), 5008, seed=3, tile=(32, 32), align=16)
BIAS = np.random.default_rng(5).standard_normal(OUT).astype(np.float32)


def build(nodes, mapping=MAPPING, x_shape=("n", IN), extra=(), outputs=("y",)):
    """A model of `nodes` after a RoastGather called W."""
    gather = helper.make_node(
        "RoastGather",
        ["memory"],
        ["W"],
        domain=onnx_ops.DOMAIN,
        name="layer.weight",
        **onnx_ops.attributes(mapping, 0.1, "RoastGather"),
    )
    memory = np.random.default_rng(1).standard_normal(mapping.n_memory).astype(np.float32)
    stored = [numpy_helper.from_array(memory, "memory"), numpy_helper.from_array(BIAS, "bias"), *extra]
    graph = helper.make_graph(
        [gather, *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        stored,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(onnx_ops.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def fused(proto):
    model = ir.from_proto(proto)
    for value, info in zip(model.graph.outputs, proto.graph.output, strict=True):
        assert value.name == info.name
    count = fuse_linear(model)
    return count, ir.to_proto(model)


def run(proto, x):
    used = {node.op_type for node in proto.graph.node}
    del proto.functions[:]
    proto.functions.extend(onnx_ops.functions(used, 20))
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})


def transpose(source="W", to="T"):
    return helper.make_node("Transpose", [source], [to], perm=[1, 0])


MATMUL = helper.make_node("MatMul", ["x", "T"], ["y"])
FLIPPED = transposed(MAPPING)

FUSED = {
    "case 1": ([transpose(), MATMUL], MAPPING, "RoastLinear"),
    "case 1, bias behind": (
        [
            transpose(),
            helper.make_node("MatMul", ["x", "T"], ["p"]),
            helper.make_node("Add", ["p", "bias"], ["y"]),
        ],
        MAPPING,
        "RoastLinearBias",
    ),
    "case 1, bias before": (
        [
            transpose(),
            helper.make_node("MatMul", ["x", "T"], ["p"]),
            helper.make_node("Add", ["bias", "p"], ["y"]),
        ],
        MAPPING,
        "RoastLinearBias",
    ),
    "case 2": ([helper.make_node("Gemm", ["x", "W", "bias"], ["y"], transB=1)], MAPPING, "RoastLinearBias"),
    "case 2, no bias": ([helper.make_node("Gemm", ["x", "W"], ["y"], transB=1)], MAPPING, "RoastLinear"),
    "case 3": ([helper.make_node("MatMul", ["x", "W"], ["y"])], FLIPPED, "RoastLinear"),
    "case 3, Gemm": ([helper.make_node("Gemm", ["x", "W", "bias"], ["y"])], FLIPPED, "RoastLinearBias"),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name):
    nodes, mapping, operator = FUSED[name]
    before = build(nodes, mapping)
    before = onnx.shape_inference.infer_shapes(before)
    before.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUT]))
    count, after = fused(before)
    assert count == 1
    assert [node.op_type for node in after.graph.node] == [operator]
    assert after.graph.node[0].name == "layer.weight"
    assert onnx_ops.mapping_of(after.graph.node[0])[0] == MAPPING
    x = np.random.default_rng(2).standard_normal((3, IN)).astype(np.float32)
    np.testing.assert_allclose(run(after, x)[0], run(before, x)[0], rtol=1e-5, atol=1e-5)


VECTOR = numpy_helper.from_array(np.ones((1, OUT), np.float32), "row")
NOT_FUSED = {
    "alpha": ([helper.make_node("Gemm", ["x", "W", "bias"], ["y"], transB=1, alpha=2.0)], MAPPING),
    "beta": ([helper.make_node("Gemm", ["x", "W", "bias"], ["y"], transB=1, beta=2.0)], MAPPING),
    "transposed x": ([helper.make_node("Gemm", ["x", "W"], ["y"], transA=1)], FLIPPED),
    "bias of another shape": ([helper.make_node("Gemm", ["x", "W", "row"], ["y"], transB=1)], MAPPING),
    "virtual on the left": ([helper.make_node("MatMul", ["W", "x"], ["y"])], MAPPING),
    "flat view, no transpose": (
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        families.roast((IN, OUT), 5008, seed=3, tile=(1, 16), align=16).__class__(
            shape=(IN, OUT), matrix=(1, IN * OUT), n_memory=5008, tile=(1, 16), range=300, align=16
        ),
    ),
}


@pytest.mark.parametrize("name", NOT_FUSED)
def test_left_alone(name):
    nodes, mapping = NOT_FUSED[name]
    before = build(nodes, mapping, extra=[VECTOR])
    count, after = fused(before)
    assert count == 0
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]


def test_other_readers_keep_the_gather():
    nodes = [transpose(), MATMUL, helper.make_node("Relu", ["W"], ["z"])]
    count, after = fused(build(nodes, outputs=("y", "z")))
    assert count == 1
    assert [node.op_type for node in after.graph.node] == ["RoastGather", "RoastLinear", "Relu"]


def test_a_sum_of_two_products_is_no_bias():
    """Both operands of the Add are computed; neither is a stored vector."""
    nodes = [
        transpose(),
        helper.make_node("MatMul", ["x", "T"], ["p"]),
        helper.make_node("Add", ["p", "p"], ["y"]),
    ]
    count, after = fused(build(nodes))
    assert count == 1
    assert [node.op_type for node in after.graph.node] == ["RoastLinear", "Add"]


def test_transposed_mapping_is_the_transposed_weight():
    memory = np.arange(MAPPING.n_memory, dtype=np.float32)
    np.testing.assert_array_equal(transposed(MAPPING).weight(memory), MAPPING.weight(memory).T)
    assert transposed(transposed(MAPPING)) == MAPPING
