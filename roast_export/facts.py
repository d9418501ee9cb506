"""What a checkpoint does not store: the facts file (docs/checkpoints.md)."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from roast_export.errors import InputError
from roast_export.reading import opened


@dataclass(frozen=True)
class LayerFacts:
    """Facts of one layer; None where the file says nothing."""

    scale: float | None = None
    init_scale: float | None = None
    kind: str | None = None
    seed: int | None = None
    offset: int | None = None
    draw_bits: int | None = None
    coefficients: tuple[int, ...] | None = None
    block_k: int | None = None
    block_n: int | None = None
    block: int | None = None
    random_numbers: tuple[int, ...] | None = None
    tile: tuple[int, ...] | None = None
    val_offset: int | None = None
    chunk: int | None = None
    padding_idx: int | None = None
    dense: bool = False


_TYPES = {f.name: f.type for f in fields(LayerFacts)}
_LENGTHS = {"coefficients": (4,), "tile": (2,), "random_numbers": (4, 8)}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": ("random", "hashednet", "pareto", "roast", "identity"),
    "draw_bits": (32, 64),
}


@dataclass(frozen=True)
class Facts:
    """Facts by layer: `defaults` for all, `layers` by dotted name or shell pattern, later ones win."""

    defaults: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, name: str) -> LayerFacts:
        merged = dict(self.defaults)
        for pattern, given in self.layers.items():
            if fnmatchcase(name, pattern):
                merged |= given
        return LayerFacts(**merged)

    def check_names(self, names: Iterable[str]) -> None:
        """Raises InputError if a pattern fits no layer: a misspelt name would be ignored otherwise."""
        names = list(names)
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                known = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
                raise InputError(f"facts: no compressed layer is called {pattern!r}; there are {known}")


def read_facts(given: Facts | Mapping[str, Any] | str | os.PathLike[str] | None) -> Facts:
    """Facts from a .toml or .json file, or from a dict of the same form.

    Raises:
        InputError: the file cannot be read, or a fact is unknown or of the wrong type.
    """
    if given is None:
        return Facts()
    if isinstance(given, Facts):
        return given
    if isinstance(given, Mapping):
        return _checked(given, "facts")
    path = Path(given)
    try:
        with opened(path, error=InputError, wanted="name a .toml or .json file") as file:
            text = file.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}; write it in UTF-8") from error
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no valid {path.suffix.lstrip('.') or 'toml'}: {error}; see docs/checkpoints.md"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a table with 'defaults' and 'layers'; see docs/checkpoints.md")
    return _checked(content, str(path))


def _checked(content: Mapping[str, Any], where: str) -> Facts:
    unknown = sorted(set(content) - {"defaults", "layers"})
    if unknown:
        raise InputError(f"{where}: unknown table {unknown[0]!r}; there are 'defaults' and 'layers'")
    defaults = _checked_table(content.get("defaults", {}), f"{where}, defaults")
    layers = content.get("layers", {})
    if not isinstance(layers, Mapping):
        raise InputError(f"{where}: 'layers' must be a table of layers")
    return Facts(defaults, {k: _checked_table(v, f"{where}, layer {k!r}") for k, v in layers.items()})


def _checked_table(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: must be a table of facts")
    return {key: _checked_value(str(key), value, where) for key, value in given.items()}


def _checked_value(key: str, value: Any, where: str) -> Any:
    kind = _TYPES.get(key)
    if kind is None:
        raise InputError(f"{where}: unknown fact {key!r}; known are {', '.join(_TYPES)}")
    wanted = str(kind).partition(" ")[0]
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        "float": whole or isinstance(value, float),
        "int": whole,
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
        "tuple[int,": isinstance(value, list | tuple)
        and all(isinstance(x, int) and not isinstance(x, bool) and abs(x) < 1 << 63 for x in value),
    }[wanted]
    lengths = _LENGTHS.get(key)
    if not fits or (lengths and len(value) not in lengths):
        name = {"tuple[int,": f"a list of {' or '.join(map(str, lengths or ()))} integers"}.get(
            wanted, wanted
        )
        raise InputError(f"{where}: {key} = {value!r} must be {name}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise InputError(f"{where}: {key} = {value!r} must be one of {', '.join(map(str, _CHOICES[key]))}")
    if wanted == "float":
        return float(value)
    return tuple(value) if lengths else value
