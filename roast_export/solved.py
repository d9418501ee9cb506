"""Records whose hash is solved from the index table itself (solve.py): no seed is needed.

A `roast` map is linear in tile numbers, `hashednet` and `pareto` are quadratic in places and chunks.
Shifts by an offset are part of the solution, so only wrapped integers make the offset matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export.families import UHASH_PRIME, fakeroast_hashednet, fakeroast_roast
from roast_export.mapping import Hash, Mapping, Sign
from roast_export.solve import solutions
from roast_export.tiles import probe, roast_view

NO_WRAP = 1 << 16
"""Places below this square without leaving int64 when multiplied by a coefficient."""

WINDOW = 1 << 17
"""Places that are solved together."""

MIN_WINDOW = 24

MANY_TILES = 1 << 17
Ints = NDArray[np.int64]


def solved_maps(
    table: Any, kind: str, layer: str, tile: tuple[int, int] | None, offsets: Sequence[int]
) -> Iterator[tuple[Mapping, str]]:
    """Candidates for the whole table, without signs, and how they came about."""
    if kind == "roast":
        for seen in probe(table, kind, layer, tile):
            name = layer if layer != "unknown" else ("linear" if seen.tile[0] > 1 else "embedding")
            yield from _roast(table, name, seen.tile)
    elif kind == "pareto":
        yield from _pareto(table)
    elif kind == "hashednet":
        for offset in offsets:
            yield from _hashednet(table, offset)


def _roast(table: Any, layer: str, tile: tuple[int, int]) -> Iterator[tuple[Mapping, str]]:
    view = roast_view(table.index, layer)
    rows, cols = -(-view.shape[0] // tile[0]), -(-view.shape[1] // tile[1])
    numbers = np.linspace(0, rows * cols - 1, min(rows * cols, MANY_TILES)).astype(np.int64)
    i, j = numbers // cols, numbers % cols
    starts = view[i * tile[0], j * tile[1]].astype(np.int64)
    made = fakeroast_roast(table.shape, table.n_memory, [1, 1, 1, 1], 0, tile, layer=layer, sign_seed=0)
    if int(starts.max()) >= made.range:
        return
    for a, b, g in solutions(np.stack([i, j, np.ones_like(i)], 1), starts, UHASH_PRIME, made.range):
        hashed = Hash(UHASH_PRIME, a=a, b=b, g=g)
        yield replace(_unsigned(made), hash1=hashed), f"solved from {rows * cols:,} tiles"


def _pareto(table: Any) -> Iterator[tuple[Mapping, str]]:
    """Chunk borders show the offset modulo the array's length; the first chunk is given number 0."""
    m = table.n_memory
    flat = table.index.reshape(-1)
    offset = _phase(flat, m)
    chunks = np.arange((flat.size + offset - 1) // m + 1)
    first = np.maximum(chunks * m - offset, 0)
    starts = (flat[first].astype(np.int64) - (first + offset)) % m
    for b, q, g in solutions(np.stack([chunks, chunks**2, np.ones_like(chunks)], 1), starts, UHASH_PRIME, m):
        made = _flat(table, (1, m), offset, Hash(UHASH_PRIME, b=b, q=q, g=g))
        yield made, f"solved from {chunks.size:,} chunks"


def _phase(flat: Any, m: int) -> int:
    """The place of the first element in its chunk, if a border shows it; else 0."""
    for low in range(0, min(flat.size, m), WINDOW):
        piece = flat[low : low + WINDOW + 1].astype(np.int64)
        breaks = np.nonzero(np.diff(piece) % m != 1 % m)[0]
        if breaks.size:
            return int(-(low + breaks[0] + 1) % m)
    return 0


def _hashednet(table: Any, offset: int) -> Iterator[tuple[Mapping, str]]:
    """Solved inside a window in which the hash's sum does not wrap once more, then unwrapped.

    Far out the windows are too short to settle the coefficients: there a seed is needed.
    """
    flat, m = table.index.reshape(-1), table.n_memory
    for first, last in _windows(flat.size, offset):
        place = np.unique(np.linspace(first, last - 1, min(last - first, WINDOW)).astype(np.int64))
        x = [int(t) + offset for t in place]
        factors = np.array([[v % UHASH_PRIME, v * v % UHASH_PRIME, 1] for v in x], np.int64)
        for b, q, g in solutions(factors, flat[place].astype(np.int64), UHASH_PRIME, m):
            hashed = Hash(UHASH_PRIME, b=b, q=q, g=_unwrapped(b, q, g, x[0]))
            yield _flat(table, (1, 1), offset, hashed), f"solved from {flat.size:,} places, offset {offset:,}"


def _windows(size: int, offset: int) -> list[tuple[int, int]]:
    """Places [first, last) that wrap by the same multiple of 2^64, for most coefficients."""
    if offset + min(size, WINDOW) <= NO_WRAP:
        return [(0, min(size, NO_WRAP - offset))]
    length = min(size, max(MIN_WINDOW, (1 << 31) // (offset + size)))
    return [(first, first + length) for first in sorted({0, (size - length) // 2, size - length})]


def _unwrapped(b: int, q: int, g: int, x: int) -> int:
    """g without the multiple of 2^64 by which b x + q x^2 leaves int64 at this place."""
    wraps = (b * x + q * x * x + (1 << 63)) >> 64
    return (g + (wraps << 64)) % UHASH_PRIME


def _flat(table: Any, tile: tuple[int, int], offset: int, hashed: Hash) -> Mapping:
    made = fakeroast_hashednet(table.shape, table.n_memory, [1, 1, 1, 1], offset, sign_seed=0)
    return replace(_unsigned(made), tile=tile, hash1=hashed)


def _unsigned(mapping: Mapping) -> Mapping:
    return replace(mapping, sign=Sign.NONE, sign_seed=0, sign_skip=0)
