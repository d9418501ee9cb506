"""What must hold of the file itself: its size, its structure, and no dense weight in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch

from roast_export import onnx_ops, torch_ops
from roast_export.compare import compare_bits, failed
from roast_export.program import VirtualLayer, kept_bytes
from roast_export.report import Check, Layer, Report
from roast_export.runtimes import native_unavailable, optimised_copy
from roast_export.subject import Subject, roast_nodes
from roast_export.to_onnx import array_names, size_of

SLACK = 1.02
GRAPH_BYTES = 64 * 1024
LAYER_BYTES = 1024
"""The size gate: SLACK * (arrays + kept parameters) + GRAPH_BYTES + LAYER_BYTES for each layer."""


def describe(subject: Subject) -> Report:
    """The facts of the file, before anything is compared."""
    arrays = {onnx_ops.array_of(node) for node in roast_nodes(subject.proto)}
    tensors = {tensor.name: tensor for tensor in subject.proto.graph.initializer}
    report = Report(model=type(subject.model).__name__, path=str(subject.path), target="onnx")
    report.layers = [_layer(node) for node in roast_nodes(subject.proto)]
    report.file_bytes = size_of(subject.path)
    report.array_bytes = sum(_bytes(tensors[name]) for name in arrays if name in tensors)
    report.kept_bytes = kept_bytes(subject.program)
    report.limit_bytes = int(
        SLACK * (report.array_bytes + report.kept_bytes) + GRAPH_BYTES + LAYER_BYTES * len(report.layers)
    )
    report.inputs = {value.name: _signature(value) for value in subject.proto.graph.input}
    report.warnings = [
        f"the array {layer.array} has {int((~torch.isfinite(layer.memory)).sum())} NaN or infinite elements"
        for layer in {layer.array: layer for layer in subject.layers}.values()
        if not bool(torch.isfinite(layer.memory).all())
    ]
    return report


def size_check(report: Report) -> Check:
    return Check(
        "file", "size", "size gate", "1.02 * (arrays + kept) + 64 KiB + 1 KiB per layer", 1,
        report.file_bytes <= report.limit_bytes, bound=report.limit_bytes,
        expected=report.limit_bytes, actual=report.file_bytes,
    )  # fmt: skip


def structure_checks(subject: Subject) -> list[Check]:
    """onnx's own checker, and no dense weight in the file or in what onnxruntime makes of it."""
    checks = [_checker(subject.path), _dense_check(subject, subject.proto, "file")]
    if not subject.materialized and native_unavailable() is None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "optimised.onnx"
            try:
                optimised_copy(subject.path, copy)
                checks.append(_dense_check(subject, onnx.load(copy), "onnxruntime optimised"))
            except Exception as error:
                checks.append(failed("onnxruntime optimised", "structure", "re-saved model", "", error))
    return checks


def parameter_checks(subject: Subject) -> list[Check]:
    """Arrays and kept parameters that the file stores under their own name: equal bits."""
    names = array_names(subject.layers)
    state = {names.get(name, name): tensor for name, tensor in subject.program.state_dict.items()}
    checks = []
    for tensor in subject.proto.graph.initializer:
        if tensor.name in state:
            expected = state[tensor.name].detach().cpu().numpy()
            actual = onnx.numpy_helper.to_array(tensor)
            checks.append(compare_bits("file", tensor.name, "stored values", expected, actual))
    return checks


def _checker(path: Path) -> Check:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        return failed("file", "structure", "onnx.checker", "full check", error)
    return Check("file", "structure", "onnx.checker", "full check", 1, True)


def _dense_check(subject: Subject, proto: onnx.ModelProto, where: str) -> Check:
    """No tensor holds a virtual weight's values, nor one index for each of its elements."""
    by_size: dict[int, list[VirtualLayer]] = {}
    for layer in subject.layers:
        by_size.setdefault(layer.mapping.numel, []).append(layer)
    tensors = [*proto.graph.initializer, *_constants(proto)]
    for tensor in tensors:
        size = int(np.prod(tensor.dims)) if tensor.dims else 1
        for layer in by_size.get(size, ()):
            if size > layer.mapping.n_memory // 8 and size >= 64 and _expands(tensor, layer):
                return Check(
                    where, "structure", "no dense weight", layer.name, len(tensors), False,
                    note=f"{tensor.name or 'a constant'} {list(tensor.dims)} holds {layer.name}, expanded",
                )  # fmt: skip
    return Check(where, "structure", "no dense weight", "all tensors", len(tensors), True)


def _expands(tensor: onnx.TensorProto, layer: VirtualLayer) -> bool:
    values = onnx.numpy_helper.to_array(tensor)
    if values.dtype.kind in "iu":
        return True
    weight = torch_ops.gather(layer.memory, layer.mapping.to_list(), layer.scale)
    return bool(np.array_equal(np.sort(values, axis=None), np.sort(weight.numpy(), axis=None)))


def _constants(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for node in [*proto.graph.node, *(node for f in proto.functions for node in f.node)]:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _layer(node: onnx.NodeProto) -> Layer:
    mapping, scale = onnx_ops.mapping_of(node)
    return Layer(
        name=node.name,
        operator=node.op_type,
        shape=mapping.shape,
        n_memory=mapping.n_memory,
        tile=mapping.tile,
        scale=scale,
        array=onnx_ops.array_of(node),
        fields=tuple(mapping.to_list()),
    )


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _signature(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = [d.dim_param or str(d.dim_value) for d in kind.shape.dim]
    return f"{onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)}[{', '.join(dims)}]"
