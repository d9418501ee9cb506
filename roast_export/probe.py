"""One virtual weight read back out of an exported file, by each runtime."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import torch
from onnx import TensorProto, helper

from roast_export import onnx_ops, torch_ops
from roast_export.compare import compare_bits, failed
from roast_export.program import VirtualLayer
from roast_export.report import Check
from roast_export.runtimes import Run, Runtime

CHUNK = 1 << 24
"""Elements of a table that are read at a time: 64 MiB of float32."""


def check(
    proto: onnx.ModelProto, node: onnx.NodeProto, layer: VirtualLayer, runtimes: list[Runtime]
) -> Iterator[Check]:
    """Every element of the weight behind `node`, bit by bit, against torch's own gather of `layer`."""
    try:
        model = _model_of(proto, node).SerializeToString()
    except Exception as error:
        yield failed("file", "weight", node.name, "all elements", error)
        return
    for runtime in runtimes:
        try:
            run = runtime.open(model)
            if node.op_type == "RoastEmbedding":
                yield _check_rows(layer, node.name, runtime.name, run)
            else:
                expected = torch_ops.gather(layer.memory, layer.mapping.to_list(), layer.scale).numpy()
                yield compare_bits(runtime.name, node.name, "all elements", expected, run({})[0])
        except Exception as error:
            yield failed(runtime.name, "weight", node.name, "all elements", error)


def _check_rows(layer: VirtualLayer, name: str, runtime: str, run: Run) -> Check:
    """A table is read in chunks of rows; the first chunk that differs is the answer."""
    rows, dim = layer.mapping.shape
    step = max(1, CHUNK // dim)
    for begin in range(0, rows, step):
        ids = torch.arange(begin, min(rows, begin + step))
        expected = torch_ops.embedding(layer.memory, ids, layer.mapping.to_list(), layer.scale).numpy()
        found = compare_bits(runtime, name, f"rows from {begin}", expected, run({"ids": ids.numpy()})[0])
        if not found.passed:
            return found
    return Check(runtime, "weight", name, "all elements", rows * dim, True)


def _model_of(proto: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    """The one node with its array and functions, as the file has them."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    inputs = []
    used = [tensors[name] for name in node.input if name in tensors]
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    if node.op_type == "RoastEmbedding":
        alone.input[1] = "ids"
        inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])]
    alone.output[0] = "weight"
    weight = helper.make_tensor_value_info("weight", TensorProto.FLOAT, None)
    graph = helper.make_graph([alone], "probe", inputs, [weight], used)
    opsets = [o for o in proto.opset_import if o.domain in ("", onnx_ops.DOMAIN)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=list(proto.functions), ir_version=proto.ir_version
    )
