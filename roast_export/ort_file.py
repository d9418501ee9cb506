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

from roast_export import localise, onnx_ops, probe, runtime_minimal, written_out
from roast_export.artifact import Artifact, Tell, expected_layer
from roast_export.calls import plain_name
from roast_export.cases import Case
from roast_export.compare import failed
from roast_export.errors import RoastError
from roast_export.gate import dense_check
from roast_export.onnx_file import layer_of, named_difference, signature, spelled, stated_ranges, tensors_in
from roast_export.ort_graph import read_graph
from roast_export.report import Check
from roast_export.runtimes import Runtime, native_unavailable, open_unoptimised, ort_runtimes
from roast_export.size import onnx_tensor_bytes
from roast_export.subject import Subject
from roast_export.to_ort import code_bytes


@dataclass
class OrtFile(Artifact):
    """See Artifact."""

    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    """The file's graph."""

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return onnx_ops.layers_in(self.proto.graph)

    @property
    def tensor_bytes(self) -> int:
        return onnx_tensor_bytes(self.proto)

    @property
    def code_limit(self) -> int:
        return code_bytes([layer.operator for layer in self.layers]) if self.portable else 0

    def runtimes(self) -> list[Runtime]:
        minimal = [runtime for runtime in runtime_minimal.runtimes() if runtime.native != self.portable]
        return [*ort_runtimes(self.portable), *minimal]

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

    def measured(self, usable: list[Runtime]) -> list[tuple[str, dict[str, Any]]]:
        names = {runtime.name for runtime in ort_runtimes(self.portable)}
        # What is not optimised when it is loaded has nothing to keep from folding.
        options = {"kind": "onnx", "native": not self.portable, "fold": True}
        return [(runtime.name, dict(options)) for runtime in usable if runtime.name in names]

    def first_difference(self, subject: Subject, runtime: Runtime, case: Case) -> list[Check]:
        if not self.portable:
            return named_difference(self.proto, subject, runtime, case)

        def compute() -> localise.Values:
            proto = onnx.ModelProto()
            proto.CopyFrom(self.proto)
            names = [name for node in proto.graph.node for name in node.output if name]
            del proto.graph.output[:]
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
            # The values between the operators: nothing here may be left out by an optimiser.
            run = open_unoptimised(proto.SerializeToString())
            return localise.as_arrays(names, run(self.feeds(case.feeds)))

        return localise.first_absent(subject, runtime.name, case, compute)


def open_ort(path: Path) -> OrtFile:
    """The file at `path`. Raises RoastError if it is no .ort of ours."""
    try:
        proto = read_graph(path)
        nodes = onnx_ops.layers_in(proto.graph)
        for _ in tensors_in(proto):
            pass  # Each can be read.
        # What nothing here can run is still read: that its runtime is missing or refused is in the report.
        if not nodes or native_unavailable() is None:
            (_session if nodes else open_unoptimised)(str(path))
    except RoastError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RoastError(f"{path} is not an .ort file that runs here: {reason}; export it again") from error
    metadata = {entry.key for entry in proto.metadata_props}
    if "roast.mapping_version" not in metadata:
        raise RoastError(f"{path} was not written by roast-export; export the model again")
    arrays = {onnx_ops.array_of(node) for node in nodes}
    arrays |= {name.removeprefix("roast.sha256.") for name in metadata if name.startswith("roast.sha256.")}
    return OrtFile(
        path=path,
        target="ort",
        layers=[layer_of(node) for node in nodes],
        inputs={plain_name(value.name): signature(value) for value in proto.graph.input},
        spelled=spelled(proto),
        outputs=[value.name for value in proto.graph.output],
        ranges=stated_ranges(proto),
        array_bytes=sum(
            onnx.numpy_helper.to_array(tensor).nbytes
            for tensor in proto.graph.initializer
            if tensor.name in arrays
        ),
        portable=not nodes,
        proto=proto,
    )


def _session(path: str) -> Any:
    import onnxruntime

    from roast_export.runtimes import create_session

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return create_session(path, options)
