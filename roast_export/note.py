"""The note that says what a file of ours holds: in torch's archives the member `extra/roast.json`."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from roast_export.errors import RoastError
from roast_export.mapping import VERSION, Mapping, check_scale
from roast_export.program import DimNames, Dims, Program, VirtualLayer, output_names, signature
from roast_export.ranges import named_ranges, read_ranges
from roast_export.report import Check, Layer

NOTE = "roast.json"
LARGEST_NOTE = 1 << 26


@dataclass(frozen=True)
class Weight:
    """One virtual weight of a file."""

    name: str
    place: str
    """Dotted name of what holds it: a module, or the nodes of a graph."""
    operator: str
    mapping: list[int]
    scale: float
    array: str

    def layer(self) -> Layer:
        m = Mapping.from_list(self.mapping)
        return Layer(
            self.name, self.operator, m.shape, m.n_memory, m.tile, self.scale, self.array, tuple(self.mapping)
        )


@dataclass(frozen=True)
class Note:
    """What is in the file. mapping_version: of docs/mapping.md."""

    target: str
    portable: bool
    inputs: dict[str, tuple[str, Dims]]
    outputs: list[str]
    weights: list[Weight]
    array_bytes: int
    ranges: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    """Least and most length of the dynamic dimensions that have bounds, by name."""
    producer: str = field(default_factory=lambda: f"roast-export {version('roast-export')}")
    mapping_version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def check(self, layers: Sequence[VirtualLayer]) -> Check:
        """Whether the note states the records of the model's weights, and the bytes of their arrays."""
        known = {(layer.name, tuple(layer.mapping.to_list()), layer.scale) for layer in layers}
        stated = [(w.name.partition("#")[0], tuple(w.mapping), w.scale) for w in self.weights]
        false = [
            f"another mapping or scale of {name}" for name, *record in stated if (name, *record) not in known
        ]
        arrays = {layer.array: layer.memory for layer in layers}
        stored = sum(memory.numel() * memory.element_size() for memory in arrays.values())
        if self.array_bytes != stored:
            false.append(f"{self.array_bytes} bytes of arrays, which have {stored}")
        note = f"it states {'; '.join(false)}" if false else ""
        return Check("file", "structure", "the file's note", "", len(stated) + 1, not false, note=note)


def note_of(
    program: Program,
    target: str,
    portable: bool,
    uses: list[tuple[str, VirtualLayer]],
    dim_names: DimNames | None = None,
) -> Note:
    """uses: each use of a virtual weight with the place where the file keeps it. dim_names: see signature."""
    weights: dict[str, Weight] = {}
    for place, layer in uses:
        weight = Weight(layer.name, place, layer.kind, layer.mapping.to_list(), layer.scale, layer.array)
        weights.setdefault(place, weight)
    arrays = {layer.array: layer.memory for _, layer in uses}
    return Note(
        target,
        portable,
        signature(program, dim_names),
        output_names(program),
        list(weights.values()),
        sum(memory.numel() * memory.element_size() for memory in arrays.values()),
        named_ranges(program, dim_names),
    )


def read_note(path: Path) -> Note:
    """The note of a file. Raises RoastError if it has none, or one of another version."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(m for m in archive.infolist() if m.filename.partition("/")[2] == f"extra/{NOTE}")
            if member.file_size > LARGEST_NOTE:
                raise ValueError(f"its {NOTE} has {member.file_size:,} bytes")
            return _note(json.loads(archive.read(member)))
    except FileNotFoundError:
        raise RoastError(f"{path} does not exist") from None
    except StopIteration:
        raise RoastError(
            f"{path} was not written by roast-export: it has no {NOTE}; export the model again"
        ) from None
    except _DAMAGE as error:
        raise RoastError(f"{path} is damaged or of another version ({error}); export it again") from error


def parse_note(text: bytes, path: Path) -> Note:
    """The note that a file holds. Raises RoastError if it is none, or one of another version."""
    try:
        return _note(json.loads(text))
    except _DAMAGE as error:
        raise RoastError(f"{path} is damaged or of another version ({error}); export it again") from error


_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, AttributeError, KeyError, TypeError, ValueError,
    RuntimeError, OverflowError,
)  # fmt: skip
"""What zipfile and json raise on bytes that are not theirs, and `_note` on values that are not ours."""


def _note(content: dict[str, Any]) -> Note:
    """Everything in the note has its type from here on."""
    fields = dict(content)
    fields["weights"] = [Weight(**weight) for weight in content["weights"]]
    fields["inputs"] = {name: (kind, list(dims)) for name, (kind, dims) in content["inputs"].items()}
    fields["ranges"] = read_ranges(content.get("ranges", {}))
    found = Note(**fields)
    if found.mapping_version != VERSION:
        raise ValueError(f"mapping version {found.mapping_version!r}")
    texts = [found.target, found.producer, *found.outputs, *(kind for kind, _ in found.inputs.values())]
    for weight in found.weights:
        texts += [weight.name, weight.place, weight.operator, weight.array]
        check_scale(weight.scale)
        weight.layer()
    lengths = [length for _, dims in found.inputs.values() for length in dims]
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(length) in (int, str) for length in lengths)
        or not isinstance(found.outputs, list)
        or type(found.portable) is not bool
        or type(found.array_bytes) is not int
    ):
        raise ValueError(f"its {NOTE} has a value of the wrong type")
    return found
