"""The note in torch's archives that says what a file of ours holds: member `extra/roast.json`."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from roast_export.errors import RoastError
from roast_export.mapping import VERSION, Mapping
from roast_export.program import Dims, Program, VirtualLayer, output_names, signature
from roast_export.report import Layer

NOTE = "roast.json"


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
    producer: str = field(default_factory=lambda: f"roast-export {version('roast-export')}")
    mapping_version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def note_of(program: Program, target: str, portable: bool, uses: list[tuple[str, VirtualLayer]]) -> Note:
    """uses: each use of a virtual weight with the place where the file keeps it."""
    weights: dict[str, Weight] = {}
    for place, layer in uses:
        weight = Weight(layer.name, place, layer.kind, layer.mapping.to_list(), layer.scale, layer.array)
        weights.setdefault(place, weight)
    arrays = {layer.array: layer.memory for _, layer in uses}
    return Note(
        target,
        portable,
        signature(program),
        output_names(program),
        list(weights.values()),
        sum(memory.numel() * memory.element_size() for memory in arrays.values()),
    )


def read_note(path: Path) -> Note:
    """The note of a file. Raises RoastError if it has none, or one of another version."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.partition("/")[2] == f"extra/{NOTE}")
            content: dict[str, Any] = json.loads(archive.read(name))
        content["weights"] = [Weight(**weight) for weight in content["weights"]]
        content["inputs"] = {key: (kind, dims) for key, (kind, dims) in content["inputs"].items()}
        found = Note(**content)
        for weight in found.weights:
            weight.layer()
    except FileNotFoundError:
        raise RoastError(f"{path} does not exist") from None
    except StopIteration:
        raise RoastError(f"{path} was not written by roast-export: it has no {NOTE}") from None
    except (zipfile.BadZipFile, OSError, KeyError, TypeError, ValueError) as error:
        raise RoastError(f"{path} is damaged or of another version ({error}); export it again") from error
    return found
