"""An exported ExecuTorch program as the proof sees it.

Every weight is cut out of the program in the file and run alone (pte_probe.py). That the model's outputs
depend on the arrays through these weights only is checked in the file's instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from roast_export import runtime_executorch, runtime_executorch_arm64
from roast_export.artifact import Artifact, Tell, each_weight
from roast_export.compare import failed
from roast_export.errors import RoastError
from roast_export.gate import dense_check
from roast_export.note import Note, parse_note
from roast_export.program import VirtualLayer
from roast_export.pte_probe import array_of, check_native, check_portable
from roast_export.pte_program import PteProgram, read_program
from roast_export.report import Check
from roast_export.runtimes import Runtime
from roast_export.subject import Subject
from roast_export.to_executorch import PORTABLE_BYTES, XNNPACK

MAGIC = b"ET12"


@dataclass
class PteFile(Artifact):
    """See Artifact."""

    program: PteProgram | None = None
    note: Note | None = None
    places: list[list[int]] = field(default_factory=list)
    """For each weight in the note: its value in the program; of a lookup, also that of the ids."""

    @property
    def tensor_bytes(self) -> int:
        assert self.program is not None
        return self.program.tensor_bytes

    @property
    def code_limit(self) -> int:
        return PORTABLE_BYTES * len(self.layers) if self.portable else 0

    def runtimes(self) -> list[Runtime]:
        assert self.program is not None
        here, arm64 = runtime_executorch, runtime_executorch_arm64
        if self.program.plan.delegates:
            return [*here.xnnpack_runtimes(not self.portable), *arm64.xnnpack_runtimes(not self.portable)]
        known = [*here.runtimes(), *arm64.runtimes()]
        return [runtime for runtime in known if runtime.native != self.portable]

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        assert self.program is not None
        assert self.note is not None
        yield self.note.check(subject.layers)
        stored = [(str(k), self.program.stored(k)) for k in self._stored()]
        yield dense_check(subject.layers, stored, "file")
        try:
            yield self._other_ways(subject)
        except Exception as error:
            yield failed("file", "structure", "arrays are read through weights only", "", error)

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        assert self.program is not None
        yield from self.program.named()

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        assert self.program is not None
        assert self.note is not None
        program, weights = self.program, self.note.weights

        def check(runtime: Runtime, k: int, layer: VirtualLayer) -> Iterator[Check]:
            place = self.places[k]
            if self.portable:
                yield from check_portable(program, place, layer, runtime)
            else:
                yield from check_native(program, place[0], layer, runtime)

        yield from each_weight([weight.name for weight in weights], subject, usable, tell, check)

    def measured(self, usable: list[Runtime]) -> list[tuple[str, dict[str, Any]]]:
        here = [runtime for runtime in self.runtimes() if "arm64" not in runtime.name]
        names = {runtime.name for runtime in usable}
        return [
            (runtime.name, {"kind": "executorch", "native": not self.portable})
            for runtime in here
            if runtime.name in names
        ]

    def _stored(self) -> list[int]:
        assert self.program is not None
        return [k for k in range(len(self.program.values)) if self.program.is_stored(k)]

    def _other_ways(self, subject: Subject) -> Check:
        """No output depends on an array other than through a weight that is compared."""
        assert self.program is not None
        assert self.note is not None
        program, names = self.program, {weight.array for weight in self.note.weights}
        arrays = {layer.memory.numpy().tobytes() for layer in subject.layers}
        arrays |= {data.tobytes() for name, data in program.named() if name in names}
        compared = [place[0] for place in self.places]
        reached: set[int] = set()
        for target in [*program.plan.outputs, *self._fed()]:
            # One by one: what one target reads may lie where another one was.
            reached |= program.sources([target], compared)
        stored = [value for value in reached if program.is_stored(value)]
        ways = [value for value in stored if program.stored(value).tobytes() in arrays]
        note = f"an output depends on stored tensor {ways[0]}, an array, past the weights" if ways else ""
        rule = "arrays are read through weights only"
        return Check("file", "structure", rule, "all outputs", len(reached), not ways, note=note)

    def _fed(self) -> set[int]:
        """What goes into the operators and lookups that are compared, beside arrays."""
        assert self.program is not None
        if self.portable:
            return {value for place in self.places for value in place[1:]}
        compared = {place[0] for place in self.places}
        calls = [call for call in self.program.calls if not call.writes.isdisjoint(compared)]
        return {value for call in calls for value in call.reads - {array_of(call)}}


def open_pte(path: Path) -> PteFile:
    """The file at `path`. Raises RoastError if it is not one of ours."""
    if runtime_executorch.unavailable() is None:
        # It is wanted later, and gets ready while this process reads the file and traces the model.
        runtime_executorch.PROCESS.start()
    program = read_program(path)
    for value in range(len(program.values)):
        if program.is_stored(value):
            program.stored(value)  # Its bytes are there.
    text = program.note()
    if text is None:
        raise RoastError(f"{path} was not written by this roast-export: it has no note; export it again")
    note = parse_note(text, path)
    others = {delegate.id for delegate in program.plan.delegates} - {XNNPACK}
    if others:
        raise RoastError(
            f"{path} needs {', '.join(sorted(others))}, which no file of ours does; export it again"
        )
    native = any(operator.name.startswith("roast::") for operator in program.plan.operators)
    try:
        places = [[int(value) for value in weight.place.split()] for weight in note.weights]
    except ValueError as error:
        raise RoastError(f"{path} is damaged ({error}); export it again") from error
    if any(not place or not all(0 <= value < len(program.values) for value in place) for place in places):
        raise RoastError(f"{path} is damaged: its note speaks of values that it has not; export it again")
    return PteFile(
        path=path,
        target="executorch",
        layers=[weight.layer() for weight in note.weights],
        inputs=note.inputs,
        ranges=note.ranges,
        outputs=note.outputs,
        array_bytes=note.array_bytes,
        portable=not native,
        program=program,
        note=note,
        places=places,
    )
