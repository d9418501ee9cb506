"""An exported ONNX file as the proof sees it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from roast_export import localise, onnx_ops, probe, runtime_openvino
from roast_export.all_runtimes import optional_onnx_runtimes
from roast_export.artifact import Artifact, Tell, expected_layer
from roast_export.calls import plain_name
from roast_export.cases import Case
from roast_export.compare import failed, first_line
from roast_export.data_file import tensors_of
from roast_export.errors import RoastError
from roast_export.gate import dense_check
from roast_export.onnx_lookup import is_narrow
from roast_export.program import Dims
from roast_export.ranges import RANGES, Range, read_ranges
from roast_export.report import Check, Layer
from roast_export.runtimes import Runtime, native_unavailable, onnx_runtimes, optimised_copy
from roast_export.size import onnx_tensor_bytes
from roast_export.subject import Subject
from roast_export.to_onnx import size_of

INT64_REQUIRED = (
    "a lookup of this file computes in 64 bits: without the library, it must not run where int64 is cut "
    "to int32 (OpenVINO)"
)


@dataclass
class OnnxFile(Artifact):
    """See Artifact."""

    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return onnx_ops.layers_in(self.proto.graph)

    @property
    def file_bytes(self) -> int:
        return size_of(self.path)

    @property
    def tensor_bytes(self) -> int:
        return onnx_tensor_bytes(self.proto)

    def runtimes(self) -> list[Runtime]:
        drawn = any(onnx_ops.is_drawn(node.op_type) for node in self.nodes)
        reason = "this file needs the library (weights drawn from MT19937)" if drawn else None
        found = [*onnx_runtimes(), *optional_onnx_runtimes()]
        usable = [runtime if runtime.native else runtime.refusing(reason) for runtime in found]
        if not _needs_int64(self.nodes):
            return usable
        cutting = runtime_openvino.NAME
        return [r.refusing(INT64_REQUIRED) if r.name == cutting else r for r in usable]

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        yield self._checker()
        yield dense_check(subject.layers, tensors_in(self.proto), "file")
        if self.materialized or native_unavailable() is not None:
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "optimised.onnx"
            try:
                optimised_copy(self.path, copy)
                yield dense_check(subject.layers, tensors_in(onnx.load(copy)), "onnxruntime optimised")
            except Exception as error:
                yield failed("onnxruntime optimised", "structure", "re-saved model", "", error)

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for tensor in self.proto.graph.initializer:
            yield tensor.name, onnx.numpy_helper.to_array(tensor)

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        for done, node in enumerate(self.nodes):
            tell("weights", done, len(self.nodes))
            layer = expected_layer(subject.layers, node.name)
            if layer is None:
                error = RoastError("the model has no such layer")
                yield failed("file", "weight", node.name, "", error)
                continue
            yield from probe.check(self.proto, node, layer, usable)

    def first_difference(self, subject: Subject, runtime: Runtime, case: Case) -> list[Check]:
        return named_difference(self.proto, subject, runtime, case)

    def measured(self, usable: list[Runtime]) -> list[tuple[str, dict[str, Any]]]:
        names = {runtime.name for runtime in usable}
        return [
            (label, {"kind": "onnx", "native": label == "native", "fold": label == "folded"})
            for label in ("native", "portable", "folded")
            if f"onnxruntime {label}" in names
        ]

    def _checker(self) -> Check:
        try:
            onnx.checker.check_model(str(self.path), full_check=True)
        except Exception as error:
            return failed("file", "structure", "onnx.checker", "full check", error)
        return Check("file", "structure", "onnx.checker", "full check", 1, True)


def named_difference(proto: onnx.ModelProto, subject: Subject, runtime: Runtime, case: Case) -> list[Check]:
    """The first layer that differs, by the values that a graph names as the traced one does."""

    def compute(expected: localise.Values) -> localise.Values:
        run = runtime.open(localise.onnx_values(proto, expected).SerializeToString())
        feeds = {value.name: case.feeds[plain_name(value.name)] for value in proto.graph.input}
        return localise.as_arrays(list(expected), run(feeds))

    names = {output for node in proto.graph.node for output in node.output}
    return localise.first_difference(subject, runtime.name, case, names, compute)


def open_onnx(path: Path) -> OnnxFile:
    """The file at `path`. Raises RoastError if it is no ONNX model of ours."""
    try:
        proto = onnx.load(path, load_external_data=True)
    except FileNotFoundError:
        raise RoastError(f"{path} does not exist") from None
    except Exception as error:
        raise RoastError(f"{path} is not an ONNX model ({first_line(error)}); export it again") from error
    nodes = onnx_ops.layers_in(proto.graph)
    if not nodes:
        raise RoastError(
            f"{path} was not written by roast-export: it has no node of the domain {onnx_ops.DOMAIN}; "
            "export the model again"
        )
    arrays = {onnx_ops.array_of(node) for node in nodes}
    for _ in tensors_in(proto):
        pass  # Each can be read.
    return OnnxFile(
        path=path,
        target="onnx",
        layers=[layer_of(node) for node in nodes],
        inputs={plain_name(value.name): signature(value) for value in proto.graph.input},
        spelled=spelled(proto),
        outputs=[value.name for value in proto.graph.output],
        ranges=stated_ranges(proto),
        array_bytes=sum(_bytes(tensor) for tensor in proto.graph.initializer if tensor.name in arrays),
        materialized=any(
            p.key == "roast.weights" and p.value == "materialized" for p in proto.metadata_props
        ),
        portable=not any(onnx_ops.is_drawn(node.op_type) for node in nodes),
        warnings=[INT64_REQUIRED] if _needs_int64(nodes) else [],
        proto=proto,
    )


def spelled(proto: onnx.ModelProto) -> dict[str, str]:
    """The inputs whose name is no identifier, by the name that it becomes."""
    return {
        plain: value.name for value in proto.graph.input if (plain := plain_name(value.name)) != value.name
    }


def _needs_int64(nodes: list[onnx.NodeProto]) -> bool:
    tables = [onnx_ops.mapping_of(node)[0] for node in nodes if node.op_type == "RoastEmbedding"]
    return not all(map(is_narrow, tables))


def tensors_in(proto: onnx.ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and values of each tensor. Raises ValueError or TypeError where its bytes do not fit its type."""
    for tensor in tensors_of(proto):
        yield tensor.name, onnx.numpy_helper.to_array(tensor)


def layer_of(node: onnx.NodeProto) -> Layer:
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


def stated_ranges(proto: onnx.ModelProto) -> dict[str, Range]:
    """Bounds of the dynamic dimensions. Raises RoastError if they are damaged."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == RANGES), "{}")
    try:
        return read_ranges(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise RoastError(f"the file's {RANGES} is damaged ({error}); export it again") from error


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def signature(value: onnx.ValueInfoProto) -> tuple[str, Dims]:
    """Element type and lengths of an input or output."""
    kind = value.type.tensor_type
    dims: Dims = [d.dim_param or int(d.dim_value) for d in kind.shape.dim]
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), dims
