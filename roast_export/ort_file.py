"""An exported .ort file as the proof sees it.

The native form holds the `ai.roast` nodes with names and records, so its weights are read back one by
one. The portable form is standard operators without names: it is compared through its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from roast_export import onnx_ops, probe, runtime_minimal
from roast_export.artifact import Artifact, Tell, expected_layer
from roast_export.compare import failed
from roast_export.errors import RoastError
from roast_export.gate import dense_check
from roast_export.onnx_file import layer_of
from roast_export.program import Dims
from roast_export.report import Check
from roast_export.runtimes import Runtime, ort_runtimes
from roast_export.subject import Subject

LAYER_CODE_BYTES = 11 * 1024
"""What one layer's arithmetic takes in the portable form, beside the size gate."""


@dataclass
class OrtFile(Artifact):
    """See Artifact."""

    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    """The stored tensors, and the nodes of `ai.roast`."""

    @property
    def code_limit(self) -> int:
        return LAYER_CODE_BYTES * len(self.layers) if self.portable else 0

    def runtimes(self) -> list[Runtime]:
        minimal = [runtime for runtime in runtime_minimal.runtimes() if runtime.native != self.portable]
        return [*ort_runtimes(self.portable), *minimal]

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        yield dense_check(subject.layers, self.parameters(), "file")

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for tensor in self.proto.graph.initializer:
            yield tensor.name, onnx.numpy_helper.to_array(tensor)

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        for done, node in enumerate(self.proto.graph.node):
            tell("weights", done, len(self.proto.graph.node))
            layer = expected_layer(subject.layers, node.name)
            if layer is None:
                error = RoastError("the model has no such layer")
                yield failed("file", "weight", node.name, "", error)
                continue
            yield from probe.check(self.proto, node, layer, usable)


def open_ort(path: Path) -> OrtFile:
    """The file at `path`. Raises RoastError if it is no .ort of ours."""
    try:
        session = _session(path)
        proto = _as_onnx(path)
    except RoastError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RoastError(f"{path} is not an .ort file that runs here: {reason}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    if "roast.mapping_version" not in metadata:
        raise RoastError(f"{path} was not written by roast-export")
    portable = not proto.graph.node
    arrays = {onnx_ops.array_of(node) for node in proto.graph.node}
    arrays |= {name.removeprefix("roast.sha256.") for name in metadata if name.startswith("roast.sha256.")}
    return OrtFile(
        path=path,
        target="ort",
        layers=[layer_of(node) for node in proto.graph.node],
        inputs={value.name: _signature(value) for value in session.get_inputs()},
        outputs=[value.name for value in session.get_outputs()],
        array_bytes=sum(
            onnx.numpy_helper.to_array(tensor).nbytes
            for tensor in proto.graph.initializer
            if tensor.name in arrays
        ),
        portable=portable,
        names_weights=not portable,
        warnings=["the portable .ort has no names: weights are compared through outputs"] if portable else [],
        proto=proto,
    )


def _session(path: Path) -> Any:
    import onnxruntime

    from roast_export.runtimes import create_session, native_unavailable

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if native_unavailable() is None:
        return create_session(path, options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _as_onnx(path: Path) -> onnx.ModelProto:
    """Stored tensors and our nodes. onnxruntime's own tools read the format; they have no public entry."""
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor

    stored = OrtFormatModelProcessor(str(path), {}, None)._model.Graph()
    tensors = [stored.Initializers(k) for k in range(stored.InitializersLength())]
    nodes = [stored.Nodes(k) for k in range(stored.NodesLength())]
    graph = helper.make_graph(
        [_node(node) for node in nodes if node.Domain().decode() == onnx_ops.DOMAIN],
        "ort",
        [],
        [],
        [_tensor(tensor) for tensor in tensors if tensor.StringDataLength() == 0],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(onnx_ops.DOMAIN, onnx_ops.DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _tensor(stored: Any) -> onnx.TensorProto:
    tensor = onnx.TensorProto()
    tensor.name = stored.Name().decode()
    tensor.data_type = stored.DataType()
    tensor.dims.extend(int(stored.Dims(k)) for k in range(stored.DimsLength()))
    tensor.raw_data = stored.RawDataAsNumpy().tobytes() if stored.RawDataLength() else b""
    return tensor


def _node(stored: Any) -> onnx.NodeProto:
    inputs = [stored.Inputs(k).decode() for k in range(stored.InputsLength())]
    outputs = [stored.Outputs(k).decode() for k in range(stored.OutputsLength())]
    node = helper.make_node(
        stored.OpType().decode(), inputs, outputs, name=stored.Name().decode(), domain=onnx_ops.DOMAIN
    )
    kinds = onnx.AttributeProto
    for k in range(stored.AttributesLength()):
        attribute = stored.Attributes(k)
        value: Any
        if attribute.Type() == kinds.INT:
            value = int(attribute.I())
        elif attribute.Type() == kinds.FLOAT:
            value = float(attribute.F())
        else:
            value = [int(x) for x in np.atleast_1d(attribute.IntsAsNumpy())]
        node.attribute.append(helper.make_attribute(attribute.Name().decode(), value))
    return node


def _signature(value: Any) -> tuple[str, Dims]:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    return kind, [length if isinstance(length, int) else str(length) for length in value.shape]
