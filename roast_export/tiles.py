"""What an index table shows of the hash behind it: tile sizes and the first slots of tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export import families
from roast_export.families import UHASH_PRIME
from roast_export.mapping import Hash, Mapping, Sign

LOOKED_AT = 512
"""Rows and columns of a table that are searched for tile borders."""

BLOCKS = (1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 192, 256, 384, 512, 768, 1024)
"""Tile sizes tried where a weight is smaller than one tile, so that its table shows no border."""

MAX_SIZES = 24
MAX_PROBES = 24


@dataclass(frozen=True)
class Probe:
    """First slots of some tiles of one table, under one view of it.

    i, j: tile numbers before the offset; start: what the hash modulo `range` must give.
    """

    kind: str
    i: NDArray[np.int64]
    j: NDArray[np.int64]
    start: NDArray[np.int64]
    range: int
    shift: tuple[int, int]
    """What is added to i and j besides the offset."""
    n_memory: int
    tile: tuple[int, int]
    mapping: Callable[[list[int], int], Mapping]
    """(coefficients, offset) -> the record of the whole table, without signs."""

    @property
    def count(self) -> int:
        return int(self.start.size)


def classify(table: Any, tile: tuple[int, int] | None) -> list[str]:
    """The kinds that a table may be of, the likeliest first."""
    flat = table.index.reshape(-1)[:4096].astype(np.int64)
    steps = np.diff(flat) % table.n_memory
    runs = float((steps == 1).mean()) if steps.size else 1.0
    kinds = ["identity"] if flat.size and runs > 0.9 and flat[-1] == flat.size - 1 else []
    if runs > 0.9:
        kinds += ["pareto", "roast"]
    elif tile or _has_tiles(table.index):
        kinds += ["roast", "pareto"]
    return [*kinds, "random", "hashednet", *(k for k in ("pareto", "roast") if k not in kinds)]


def probe(table: Any, kind: str, layer: str, tile: tuple[int, int] | None) -> Iterator[Probe]:
    """Every view of the table under which it may be of this kind."""
    if kind == "roast":
        layers = ("linear", "embedding") if layer == "unknown" else (layer,)
        for name in layers:
            for size in [tile] if tile else _tile_sizes(roast_view(table.index, name), name)[:MAX_SIZES]:
                # Tiles of one element are a table without runs, of another kind.
                if (tile or math.prod(size) > 1) and math.prod(size) < table.n_memory:
                    yield _roast_probe(table, name, size)
        return
    flat = table.index.reshape(-1)
    n, m = flat.size, table.n_memory
    if m > UHASH_PRIME:
        return
    make = families.fakeroast_hashednet if kind == "hashednet" else families.fakeroast_pareto

    def record(coefficients: list[int], offset: int) -> Mapping:
        return _unsigned(make(table.shape, m, coefficients, offset, sign_seed=0))

    place = _spread(n)
    start = flat[place].astype(np.int64)
    yield Probe(kind, np.zeros_like(place), place, start, m, (0, 0), m, (1, 1), record)


def _roast_probe(table: Any, layer: str, tile: tuple[int, int]) -> Probe:
    view = roast_view(table.index, layer)
    rows, cols = -(-view.shape[0] // tile[0]), -(-view.shape[1] // tile[1])
    numbers = _spread(rows * cols)
    i, j = numbers // cols, numbers % cols
    start = view[i * tile[0], j * tile[1]].astype(np.int64)

    def record(coefficients: list[int], offset: int) -> Mapping:
        made = families.fakeroast_roast(
            table.shape, table.n_memory, coefficients, offset, tile, layer=layer, sign_seed=0
        )
        return _unsigned(made)

    range_ = table.n_memory - math.prod(tile)
    return Probe("roast", i, j, start, range_, (0, view.shape[0]), table.n_memory, tile, record)


def seeds_that_fit(seen: Probe, coefficients: NDArray[np.int64], offset: int) -> list[int]:
    """Rows of coefficients int64[seeds, 4] that give the first slots (all but one in eight)."""
    alive = np.arange(len(coefficients))
    missed = np.zeros(len(coefficients), np.int64)
    allowed = seen.count // 8
    for t in range(seen.count):
        i, j, start = _shifted(seen, t, np.int64(offset))
        missed[alive] += _level(seen.kind, coefficients[alive])(i, j) % seen.range != start
        alive = alive[missed[alive] <= allowed]
    return [int(seed) for seed in alive[:8]]


def offsets_that_fit(seen: Probe, coefficients: list[int], limit: int) -> list[int]:
    """Offsets below `limit` at which these coefficients give the first slots."""
    level = _level(seen.kind, np.array(coefficients, np.int64))
    found: list[int] = []
    allowed = seen.count // 8
    for low in range(0, limit, 1 << 20):
        alive = np.arange(low, min(low + (1 << 20), limit))
        missed = np.zeros(alive.size, np.int64)
        for t in range(seen.count):
            i, j, start = _shifted(seen, t, alive)
            missed += level(i, j) % seen.range != start
            kept = missed <= allowed
            alive, missed = alive[kept], missed[kept]
            if not alive.size:
                break
        found += alive[:8].tolist()
        if len(found) >= 8:
            break
    return found


def _shifted(seen: Probe, t: int, offset: Any) -> tuple[Any, Any, Any]:
    """Tile numbers and first slot of sample t at an offset, or at many."""
    if seen.kind == "pareto":
        place = seen.j[t] + offset
        return 0 * place, place // seen.n_memory, (seen.start[t] - place) % seen.n_memory
    if seen.kind == "hashednet":
        return 0 * offset, seen.j[t] + offset, seen.start[t]
    return seen.i[t] + seen.shift[0] + offset, seen.j[t] + seen.shift[1] + offset, seen.start[t]


def _level(kind: str, coefficients: NDArray[np.int64]) -> Hash:
    """uhash with one set of coefficients int64[4], or many side by side, int64[n, 4]."""
    a0, a1, a2 = (coefficients[..., k] for k in range(3))
    fields: dict[str, Any] = {"a": a0, "b": a1} if kind == "roast" else {"b": a0, "q": a1}
    return Hash(UHASH_PRIME, **fields, g=a2)  # type: ignore[arg-type]


def _unsigned(mapping: Mapping) -> Mapping:
    return replace(mapping, sign=Sign.NONE, sign_seed=0, sign_skip=0)


def roast_view(index: NDArray[Any], layer: str) -> NDArray[Any]:
    """The table seen as the `roast` mapper tiles it: an embedding as it is, others transposed."""
    matrix = index.reshape(index.shape[0], -1)
    return matrix if layer == "embedding" else matrix.T


def _spread(n: int, count: int = MAX_PROBES) -> NDArray[np.int64]:
    """Numbers below n: all of them, or the first few and more that lie far apart."""
    if n <= count:
        return np.arange(n)
    return np.unique(
        np.concatenate([np.arange(count // 2), np.linspace(0, n - 1, count // 2).astype(np.int64)])
    )


def _has_tiles(index: NDArray[Any]) -> bool:
    return any(
        math.prod(size) > 1
        for layer in ("linear", "embedding")
        for size in _tile_sizes(roast_view(index, layer), layer)[:1]
    )


def _tile_sizes(view: NDArray[Any], layer: str) -> list[tuple[int, int]]:
    """Tile sizes that a view's runs allow: one where they show, several where it has a single tile."""
    piece = np.ascontiguousarray(view[:LOOKED_AT, :LOOKED_AT]).astype(np.int64)
    rows, cols = piece.shape
    width = _period((np.diff(piece, axis=1) != 1).mean(0), cols)
    if layer == "embedding":
        return [(1, w) for w in _sizes(width, cols)]
    strides = np.diff(piece, axis=0)
    if width is None and strides.size:
        # One tile across: the step down to the next row is the tile's width, if a tile has two rows.
        step = int(np.median(strides[:, 0]))
        width = step if step >= cols and (strides[:, 0] == step).mean() > 0.5 else None
    sizes = []
    for w in _sizes(width, cols):
        height = _period((strides != w).mean(1), rows)
        sizes += [(h, w) for h in _sizes(height, rows)]
    return sizes


def _period(broken: NDArray[np.float64], length: int) -> int | None:
    """Distance of the places where runs break, from the share of breaks at each; None if none breaks."""
    places = np.nonzero(broken > 0.5)[0] + 1
    return math.gcd(*places.tolist()) if places.size and length > 1 else None


def _sizes(found: int | None, least: int) -> list[int]:
    if found is not None:
        return [found]
    return [least, *(size for size in BLOCKS if size > least)]
