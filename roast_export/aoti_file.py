"""An AOTInductor package as the proof sees it. Opening one runs its machine code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from roast_export import probe, torch_ops
from roast_export.arrays import array_of
from roast_export.artifact import Artifact, Tell, each_weight
from roast_export.compare import compare_bits
from roast_export.errors import RoastError
from roast_export.note import Note, read_note
from roast_export.program import Program, VirtualLayer
from roast_export.report import Check
from roast_export.runtimes import Run, Runtime
from roast_export.subject import Subject
from roast_export.torch_runtimes import library_absent, run_on

CODE_BYTES = 2 << 20
CODE_BYTES_OF_LAYER = 16 << 10
"""What AOTInductor's own code may take, beside the size gate of the data."""


INLINED = 8
"""Elements up to which AOTInductor may write a tensor into the code, number by number."""


@dataclass
class AotiFile(Artifact):
    """See Artifact. Constants lie in the machine code, so they are looked for by their bytes."""

    note: Note | None = None
    code: bytes = b""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Arguments of each call of an operator on a virtual weight, by name, as the package states them."""

    @property
    def code_limit(self) -> int:
        return CODE_BYTES + CODE_BYTES_OF_LAYER * len(self.layers)

    def runtimes(self) -> list[Runtime]:
        native = library_absent() is None
        name = "AOTInductor native" if native else "AOTInductor without library"
        return [Runtime(name, partial(open_aoti, names=self.outputs), lambda: None, native=native)]

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        assert self.note is not None
        yield self.note.check(subject.layers)
        for layer in subject.layers:
            dense = probe.expected_weight(layer).tobytes()
            passed = len(dense) < 1024 or dense not in self.code
            yield Check("file", "structure", "no dense weight", layer.name, 1, passed)
        for name, tensor in _used(subject.program).items():
            if tensor.numel() <= INLINED:
                continue
            # What the code holds under no name is as good as any: equal bytes, somewhere in it.
            passed = array_of(tensor).tobytes() in self.code
            note = "" if passed else "its bytes are not in the package"
            yield Check("file", "weight", name, "stored values", tensor.numel(), passed, note=note)

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        return iter(())

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        assert self.note is not None
        weights = self.note.weights
        called = {(tuple(call["mapping"]), float(call["scale"])) for call in self.calls}

        def check(runtime: Runtime, k: int, layer: VirtualLayer) -> Iterator[Check]:
            mapping, scale = weights[k].mapping, float(weights[k].scale)
            if (tuple(mapping), scale) not in called:
                raise RoastError("the package calls no operator with this mapping and scale")
            # The bytes of the array are looked for apart, by structure_checks.
            actual = torch_ops.gather(layer.memory, mapping, scale).numpy()
            yield compare_bits(runtime.name, layer.name, "all elements", probe.expected_weight(layer), actual)

        yield from each_weight([weight.name for weight in weights], subject, usable, tell, check)


def open_aoti(path: str | bytes, names: Sequence[str] = ()) -> Run:
    assert isinstance(path, str), "a package is opened from its file"
    model = torch._inductor.aoti_load_package(path)
    return run_on(model, pytree.treespec_loads(model.loader.get_call_spec()[0]), names)


def open_aoti_file(path: Path) -> AotiFile:
    """The file at `path`; nothing in it runs yet. Raises RoastError if it is not one of ours."""
    note = read_note(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        code = b"".join(archive.read(name) for name in names if name.endswith(".so"))
        nodes = [json.loads(archive.read(name)) for name in names if name.endswith(".wrapper.json")]
    calls = [
        {argument["name"]: next(iter(argument["arg"].values())) for argument in node["node"]["inputs"]}
        for content in nodes
        for node in content["nodes"]
        if node["node"]["target"].startswith("roast::")
    ]
    return AotiFile(
        path=path,
        target="aoti",
        layers=[weight.layer() for weight in note.weights],
        inputs=note.inputs,
        ranges=note.ranges,
        outputs=note.outputs,
        array_bytes=note.array_bytes,
        note=note,
        code=code,
        calls=calls,
    )


def _used(program: Program) -> dict[str, torch.Tensor]:
    """Parameters and buffers that the graph reads."""
    if not isinstance(program, torch.export.ExportedProgram):
        return {}
    signature = program.graph_signature
    names = (signature.inputs_to_parameters | signature.inputs_to_buffers).values()
    read = {node.name for node in program.graph.nodes if node.users}
    stored = {v: k for k, v in (signature.inputs_to_parameters | signature.inputs_to_buffers).items()}
    values = {**program.constants, **program.state_dict}
    return {name: values[name].detach() for name in names if stored[name] in read}
