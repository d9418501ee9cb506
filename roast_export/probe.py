"""One virtual weight read back out of an exported file, by each runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from roast_export import onnx_ops, torch_ops
from roast_export.compare import compare_bits, failed
from roast_export.fuse import as_matrix, transposed
from roast_export.program import VirtualLayer
from roast_export.report import Check
from roast_export.runtimes import Run, Runtime

_AS_GATHER = {
    name: "RoastGatherDrawn" if onnx_ops.is_drawn(name) else "RoastGather" for name in onnx_ops.LINEARS
}

_INPUTS = {
    "probe_ids": helper.make_tensor_value_info("probe_ids", TensorProto.INT64, [None]),
    "probe_x": helper.make_tensor_value_info("probe_x", TensorProto.FLOAT, [None, None]),
}

CHUNK = 1 << 24
"""Elements of a table that are read at a time: 64 MiB of float32."""

EMULATED_INPUTS = 256
"""Inputs of a layer that an emulated product goes over."""


def check(
    proto: onnx.ModelProto, node: onnx.NodeProto, layer: VirtualLayer, runtimes: list[Runtime]
) -> Iterator[Check]:
    """Every element of the weight behind `node`, bit by bit, against torch's own gather of `layer`."""
    try:
        model = _model_of(proto, node, _AS_GATHER.get(node.op_type, node.op_type)).SerializeToString()
        mapping, _ = onnx_ops.mapping_of(node)
        product = _model_of(proto, node, node.op_type).SerializeToString()
    except Exception as error:
        yield failed("file", "weight", node.name, "all elements", error)
        return
    for runtime in runtimes:
        try:
            if node.op_type in onnx_ops.EMBEDDINGS:
                look_up = _with(runtime.open(model), "probe_ids")
                yield check_rows(layer, node.name, runtime.name, look_up)
                continue
            across = mapping == transposed(as_matrix(layer.mapping))
            expected, actual = expected_weight(layer), runtime.open(model)({})[0]
            if node.op_type in onnx_ops.LINEARS:
                # A product takes a weight of more axes as a matrix: nn.Bilinear, nn.ConvTranspose1d.
                expected = expected.reshape(len(expected), -1)
            # Compared as the layer has it, so that the report's index is the weight's.
            found = np.ascontiguousarray(actual.T) if across and actual.ndim == 2 else actual
            yield compare_bits(runtime.name, node.name, "all elements", expected, found)
            # A fused kernel has its own way to the weight; finite only, because 0 * inf is not 0.
            if node.op_type in onnx_ops.LINEARS and runtime.native and np.isfinite(expected).all():
                weight = np.ascontiguousarray(expected.T) if across else expected
                look = _with(runtime.open(product), "probe_x")
                checked = check_product(weight, node.name, runtime, look)
                yield replace(checked, index=checked.index[::-1]) if across else checked
        except Exception as error:
            yield failed(runtime.name, "weight", node.name, "all elements", error)


def _with(run: Run, name: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda value: run({name: value})[0]


def expected_weight(layer: VirtualLayer) -> NDArray[np.float32]:
    """PyTorch's own gather, in aten operators: the library is among what is proved."""
    with torch_ops.without_library():
        weight = torch_ops.gather(layer.memory, layer.mapping.to_list(), layer.scale)
    return cast("NDArray[np.float32]", weight.numpy())


def check_product(
    weight: NDArray[np.float32], name: str, runtime: Runtime, product: Callable[[NDArray[np.float32]], Any]
) -> Check:
    """The identity times the weight is the weight, in every bit but the sign of zero.

    Under emulation EMULATED_INPUTS rows of it, evenly spread: the gather has compared every element.
    """
    out_features, in_features = weight.shape
    inputs = np.arange(in_features)
    if runtime.emulated and in_features > EMULATED_INPUTS:
        inputs = np.linspace(0, in_features - 1, EMULATED_INPUTS).astype(np.int64)
    step = max(1, CHUNK // max(weight.shape))
    for begin in range(0, len(inputs), step):
        taken = inputs[begin : begin + step]
        rows = np.zeros((len(taken), in_features), np.float32)
        rows[np.arange(len(taken)), taken] = 1
        expected = weight[:, taken].T + np.float32(0)
        actual = product(rows) + np.float32(0)
        found = compare_bits(runtime.name, name, f"identity rows from {taken[0]}", expected, actual)
        if not found.passed:
            where = (found.index[1], int(taken[found.index[0]])) if found.index else ()
            return replace(found, index=where)
    case = "identity" if len(inputs) == in_features else f"identity, {len(inputs)} rows of {in_features}"
    return Check(runtime.name, "weight", name, case, out_features * len(inputs), True)


def check_rows(
    layer: VirtualLayer, name: str, runtime: str, look_up: Callable[[NDArray[np.int64]], Any]
) -> Check:
    """A table is read in chunks of rows; the first chunk that differs is the answer."""
    rows, dim = layer.mapping.shape
    step = max(1, CHUNK // dim)
    for begin in range(0, rows, step):
        ids = torch.arange(begin, min(rows, begin + step))
        with torch_ops.without_library():
            expected = torch_ops.embedding(layer.memory, ids, layer.mapping.to_list(), layer.scale).numpy()
        found = compare_bits(runtime, name, f"rows from {begin}", expected, look_up(ids.numpy()))
        if not found.passed:
            return replace(found, index=(begin + found.index[0], *found.index[1:]) if found.index else ())
    return Check(runtime, "weight", name, "all elements", rows * dim, True)


def _model_of(proto: onnx.ModelProto, node: onnx.NodeProto, operator: str) -> onnx.ModelProto:
    """The one node as `operator`, with its array and functions as the file has them."""
    memory = onnx_ops.array_of(node)
    names = {
        "RoastEmbedding": [memory, "probe_ids"],
        "RoastLinear": ["probe_x", memory],
        "RoastLinearBias": ["probe_x", memory, "probe_bias"],
        "RoastGatherSigned": list(node.input),
    }.get(operator.removesuffix("Drawn"), [memory])
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.op_type = operator
    del alone.input[:], alone.output[:]
    alone.input.extend(names)
    alone.output.append("result")
    inputs = [_INPUTS[name] for name in names if name in _INPUTS]
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in names]
    if "probe_bias" in names:
        bias = np.zeros(onnx_ops.mapping_of(node)[0].shape[0], np.float32)
        stored.append(onnx.numpy_helper.from_array(bias, "probe_bias"))
    graph = helper.make_graph([alone], "probe", inputs, [result], stored)
    opsets = [o for o in proto.opset_import if o.domain in ("", onnx_ops.DOMAIN)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=list(proto.functions), ir_version=proto.ir_version
    )
