"""Comparing a mapping with the index and sign tables that a checkpoint stores, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export.mapping import Element, Mapping, Sign

BLOCK = 1 << 20
"""Elements compared at a time: tables of a gigabyte are proved in a few tens of megabytes."""

SAMPLE = 64
"""Rows and columns of each corner of the view that `agreement` looks at."""


@dataclass(frozen=True)
class Table:
    """What a checkpoint stores for one weight instead of a formula.

    index: integers [shape]; sign: +-1 of any type [shape], or None where the format has no signs.
    """

    index: NDArray[Any]
    sign: NDArray[Any] | None
    n_memory: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.index.shape

    @property
    def bytes(self) -> int:
        return self.index.nbytes + (0 if self.sign is None else self.sign.nbytes)


@dataclass(frozen=True)
class Comparison:
    """How many entries of a table a mapping gives, and the first one that it does not."""

    total: int
    differing: int
    place: tuple[int, ...] = ()
    stored: float = 0
    computed: int = 0

    @property
    def exact(self) -> bool:
        return self.differing == 0

    def __str__(self) -> str:
        if self.exact:
            return f"{self.total:,} of {self.total:,}"
        return (
            f"{self.differing:,} of {self.total:,} entries differ, the first at "
            f"[{', '.join(map(str, self.place))}]: {self.stored:g} is stored, {self.computed} computed"
        )


def compare_index(mapping: Mapping, index: NDArray[Any]) -> Comparison:
    """Every entry of a stored index table, integers[mapping.shape], against the mapping."""
    drawn = mapping.element is not Element.HASH
    blocks = _drawn_blocks(mapping) if drawn else _view_blocks(mapping)
    view = index.reshape(1, -1) if drawn else _view(mapping, index)
    differing, first = 0, None
    for rows, cols, computed in blocks:
        wrong = view[rows, cols] != computed
        found = int(np.count_nonzero(wrong))
        if found and first is None:
            r, c = (int(x[0]) for x in np.nonzero(wrong))
            first = (rows.start + r, cols.start + c, int(computed[r, c]))
        differing += found
    if first is None:
        return Comparison(mapping.numel, 0)
    r, c, value = first
    flat = c * mapping.matrix[1] + r if mapping.transposed else r * view.shape[1] + c
    return _difference(mapping, differing, flat, int(view[r, c]), value)


def compare_signs(mapping: Mapping, sign: NDArray[Any]) -> Comparison:
    """Every entry of a stored sign table, numbers[mapping.shape], against the mapping."""
    flat = sign.reshape(-1)
    differing, first = 0, None
    for start, computed in _sign_blocks(mapping):
        wrong = flat[start : start + computed.size] != computed
        found = int(np.count_nonzero(wrong))
        if found and first is None:
            place = int(np.argmax(wrong))
            first = (start + place, int(computed[place]))
        differing += found
    if first is None:
        return Comparison(mapping.numel, 0)
    return _difference(mapping, differing, first[0], float(flat[first[0]]), first[1])


def agreement(mapping: Mapping, index: NDArray[Any]) -> float:
    """The share of a sample of the table that the mapping gives: both ends of the view."""
    if mapping.element is not Element.HASH:
        _, cols, computed = next(_drawn_blocks(mapping, SAMPLE * SAMPLE))
        return float((index.reshape(-1)[cols] == computed[0]).mean())
    n_rows, n_cols = mapping.view
    view = _view(mapping, index)
    same = total = 0
    for rows in _ends(n_rows, SAMPLE):
        for cols in _ends(n_cols, SAMPLE if n_rows > 1 else SAMPLE * SAMPLE):
            equal = view[rows, cols] == view_block(mapping, rows, cols)
            same, total = same + int(equal.sum()), total + equal.size
    return same / total


def view_block(mapping: Mapping, rows: slice, cols: slice) -> NDArray[np.int64]:
    """Array slots of a rectangle of a hashed map's view: int64[rows, cols]. docs/mapping.md section 3."""
    r = np.arange(rows.start, rows.stop) + mapping.origin[0]
    c = np.arange(cols.start, cols.stop) + mapping.origin[1]
    i, j = r // mapping.tile[0], c // mapping.tile[1]
    tiles_i, tiles_j = np.arange(i[0], i[-1] + 1), np.arange(j[0], j[-1] + 1)
    starts = mapping.starts(tiles_i[:, None], tiles_j[None, :])
    inner = (r % mapping.tile[0])[:, None] * mapping.tile[1] + c % mapping.tile[1]
    slots: NDArray[np.int64] = starts[(i - i[0])[:, None], (j - j[0])[None, :]] + inner
    return slots % mapping.n_memory if mapping.spill else slots


def raw_stream(seed: int, skip: int = 0) -> np.random.MT19937:
    """MT19937 as torch seeds it, `skip` outputs in; `random_raw(n)` gives the next n."""
    generator = np.random.MT19937()
    generator._legacy_seeding(seed)
    if skip:
        generator.random_raw(skip, output=False)
    return generator


def _view(mapping: Mapping, table: NDArray[Any]) -> NDArray[Any]:
    matrix = table.reshape(mapping.matrix)
    return matrix.T if mapping.transposed else matrix


def _view_blocks(mapping: Mapping) -> Iterator[tuple[slice, slice, NDArray[np.int64]]]:
    n_rows, n_cols = mapping.view
    wide = min(n_cols, BLOCK)
    tall = max(1, BLOCK // wide // mapping.tile[0]) * mapping.tile[0] if wide == n_cols else 1
    for r in range(0, n_rows, tall):
        rows = slice(r, min(r + tall, n_rows))
        for c in range(0, n_cols, wide):
            cols = slice(c, min(c + wide, n_cols))
            yield rows, cols, view_block(mapping, rows, cols)


def _drawn_blocks(mapping: Mapping, block: int = BLOCK) -> Iterator[tuple[slice, slice, NDArray[np.int64]]]:
    """Drawn maps are flat: docs/mapping.md section 3, without the whole stream in memory."""
    width = 2 if mapping.element is Element.MT19937_64 else 1
    stream = raw_stream(mapping.seed)
    for start in range(0, mapping.numel, block):
        stop = min(start + block, mapping.numel)
        raw = stream.random_raw((stop - start) * width).reshape(-1, width)
        draws = (raw[:, 0] << np.uint64(32)) | raw[:, 1] if width == 2 else raw[:, 0]
        slots = (draws % np.uint64(mapping.range)).astype(np.int64) % mapping.n_memory
        yield slice(0, 1), slice(start, stop), slots[None, :]


def _sign_blocks(mapping: Mapping) -> Iterator[tuple[int, NDArray[np.int8]]]:
    if mapping.sign is Sign.TILE:
        # No format that stores a table has signs per tile; those of small weights only come here.
        yield 0, mapping.signs().reshape(-1)
        return
    stream = raw_stream(mapping.sign_seed, mapping.sign_skip)
    for start in range(0, mapping.numel, BLOCK):
        size = min(BLOCK, mapping.numel - start)
        if mapping.sign is Sign.NONE:
            yield start, np.ones(size, np.int8)
        else:
            yield start, 2 * (stream.random_raw(size) & np.uint64(1)).astype(np.int8) - 1


def _ends(n: int, size: int) -> list[slice]:
    if n <= 2 * size:
        return [slice(0, n)]
    return [slice(0, size), slice(n - size, n)]


def _difference(mapping: Mapping, differing: int, flat: int, stored: float, computed: int) -> Comparison:
    place = tuple(int(x) for x in np.unravel_index(flat, mapping.shape))
    return Comparison(mapping.numel, differing, place, stored, computed)
