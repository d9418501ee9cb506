"""An exported .ort file as the proof sees it.

The native form holds the `ai.roast` nodes with names and records, so its weights are read back one by
one. The portable form is standard operators without names: written_out.py finds the weights in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from roast_export import onnx_ops, probe, written_out
from roast_export.artifact import Artifact, Tell, expected_layer
from roast_export.compare import failed
from roast_export.errors import RoastError
from roast_export.gate import dense_check
from roast_export.onnx_file import layer_of
from roast_export.ort_graph import read_graph
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
    """The file's graph."""

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.domain == onnx_ops.DOMAIN]

    @property
    def code_limit(self) -> int:
        return LAYER_CODE_BYTES * len(self.layers) if self.portable else 0

    def runtimes(self) -> list[Runtime]:
        return ort_runtimes(self.portable)

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        yield dense_check(subject.layers, self.parameters(), "file")

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for tensor in self.proto.graph.initializer:
            yield tensor.name, onnx.numpy_helper.to_array(tensor)

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        if self.portable:
            yield from written_out.check(self.proto, subject.layers, usable, tell)
            return
        for done, node in enumerate(self.nodes):
            tell("weights", done, len(self.nodes))
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
        proto = read_graph(path)
    except RoastError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RoastError(f"{path} is not an .ort file that runs here: {reason}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    if "roast.mapping_version" not in metadata:
        raise RoastError(f"{path} was not written by roast-export")
    nodes = [node for node in proto.graph.node if node.domain == onnx_ops.DOMAIN]
    arrays = {onnx_ops.array_of(node) for node in nodes}
    arrays |= {name.removeprefix("roast.sha256.") for name in metadata if name.startswith("roast.sha256.")}
    return OrtFile(
        path=path,
        target="ort",
        layers=[layer_of(node) for node in nodes],
        inputs={value.name: _signature(value) for value in session.get_inputs()},
        outputs=[value.name for value in session.get_outputs()],
        array_bytes=sum(
            onnx.numpy_helper.to_array(tensor).nbytes
            for tensor in proto.graph.initializer
            if tensor.name in arrays
        ),
        portable=not nodes,
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


def _signature(value: Any) -> tuple[str, Dims]:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    return kind, [length if isinstance(length, int) else str(length) for length in value.shape]
