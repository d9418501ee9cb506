"""Where a weight that compress() makes lies in its array: tiles, and hash coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from roast_export import families
from roast_export.errors import InputError
from roast_export.mapping import MAX_MEMORY, Mapping

ALIGN = 16
"""Array lengths and tile starts are multiples of this many elements: one 64-byte line of float32."""

MATRIX_TILES = (
    (32, 128, 128),
    (32, 64, 64),
    (16, 64, 64),
    (8, 64, 64),
    (32, 32, ALIGN),
    (16, 16, ALIGN),
    (8, 16, ALIGN),
    (4, 16, ALIGN),
    (1, 16, ALIGN),
)
"""Inputs and outputs of a tile, and what its starts are multiples of (why: docs/design.md)."""

WIDEST = 128
"""Outputs of a tile that pays where a layer has twice as many inputs as there are places for its rows."""

ROW_TILES = ((1, 32, ALIGN), (1, 16, ALIGN))
SMALL_RECURRENT = 1 << 17
"""Elements of W_hh below which the weights of a recurrent layer are expanded in each run, from rows."""

TILES_PER_ARRAY = 4
"""A tile is at most a quarter of the array, so that tiles have different places to start."""

DRAWS, EVEN = 16, 0.75
"""Hash coefficients are drawn so often, or until the tiles of rows and columns lie so evenly."""

SAMPLE_ROWS, SAMPLE_COLUMNS = 2048, 8

HASHED_FROM = 2
"""Ratio above which places are hashed; up to it tiles lie side by side (docs/design.md)."""

SIDE_TILES = ((32, 64), (16, 64), (32, 32), (8, 64), (16, 32), (32, 16), (8, 32), (16, 16), (8, 16), (4, 16))
TILES_PER_WEIGHT, LINE = 64, 64
MOST_PADDING = 1 / 32
"""What the array may be longer for tiles that reach past their weight, as a part of the weight."""


@dataclass(frozen=True)
class Placed:
    """What is known of a weight before it has a place."""

    shape: tuple[int, ...]
    rows: bool
    """Whether it is an embedding's table, whose tiles are pieces of rows."""
    entropy: tuple[int, ...]
    """What its coefficients are drawn from, non-negative."""
    bank: bool = False
    """Whether it is several matrices one after the other, say experts: a table of all their rows."""
    turned: bool = False
    """Whether its first axis counts inputs, as in a transposed convolution, and not outputs."""


def place(weights: Sequence[Placed], ratio: float) -> list[Mapping]:
    """Records of weights that share an array of about their elements / ratio.

    Raises:
        InputError: the array would be longer than a record can say.
    """
    n_memory = array_length(sum(math.prod(weight.shape) for weight in weights), ratio)
    matrices = [_as_matrix(weight) for weight in weights]
    if n_memory > MAX_MEMORY:
        raise InputError(
            f"at ratio {ratio} the array would have {n_memory:,} elements, over {MAX_MEMORY:,}; give each "
            "parameter an array of its own (local=True, --local), or raise the ratio"
        )
    if ratio <= HASHED_FROM:
        mappings = _side_by_side(matrices, ratio)
    else:
        mappings = [draw_mapping(m.shape, n_memory, m.entropy, rows=m.rows, bank=m.bank) for m in matrices]
    return [_of_weight(mapping, weight) for mapping, weight in zip(mappings, weights, strict=True)]


def _as_matrix(weight: Placed) -> Placed:
    """What lies in the array: all rows of a bank as a table, and (outputs, inputs) of what is turned."""
    first, *others = weight.shape
    if weight.bank:
        return replace(weight, shape=(first * math.prod(others[:-1]), others[-1]), rows=True)
    return replace(weight, shape=(math.prod(others), first)) if weight.turned else weight


def _of_weight(mapping: Mapping, weight: Placed) -> Mapping:
    """The record of the weight itself, from that of `_as_matrix`: the view stays."""
    if not weight.turned:
        return replace(mapping, shape=weight.shape)
    outputs, inputs = mapping.matrix
    return replace(mapping, shape=weight.shape, matrix=(inputs, outputs), transposed=not mapping.transposed)


def _side_by_side(weights: Sequence[Placed], ratio: float) -> list[Mapping]:
    """Each weight on a stretch of its own, which holds all its tiles at ratio 1; see `_laid`."""
    laid = [_laid(weight, ratio) for weight in weights]
    # In this order every stretch begins where its tiles may.
    order = sorted(range(len(weights)), key=lambda k: -laid[k].align)
    first: dict[int, int] = {}
    length = 0
    for k in order:
        first[k] = length
        length += laid[k].tiles * math.prod(laid[k].tile)
    unit = max(ALIGN, laid[order[0]].align)
    n_memory = -(-length // unit) * unit
    return [
        families.side_by_side(
            weight.shape,
            n_memory,
            first=first[k],
            tiles=laid[k].tiles,
            tile=laid[k].tile,
            align=laid[k].align,
            transposed=laid[k].transposed,
            seed=int(np.random.SeedSequence(list(weight.entropy)).generate_state(1)[0]),
        )
        for k, weight in enumerate(weights)
    ]


@dataclass(frozen=True)
class _Laid:
    tile: tuple[int, int]
    align: int
    transposed: bool
    tiles: int
    """How many of them the array holds."""


def _laid(weight: Placed, ratio: float) -> _Laid:
    rows, cols = weight.shape[0], math.prod(weight.shape[1:])
    # The transposed view is for products; what is looked up or expanded is copied as it is.
    transposed = not weight.rows and len(weight.shape) == 2
    tile = next(_panels(cols, rows, ratio), None) if transposed else None
    if tile is None:
        transposed, tile = False, _whole_rows(weight, cols) if ratio == 1 else (1, _part(cols))
    view = (cols, rows) if transposed else (rows, cols)
    down, across = (-(-size // edge) for size, edge in zip(view, tile, strict=True))
    tiles = math.ceil(down * across / ratio)
    if tiles % across == 0 and 1 < across and tiles < down * across:
        # Tiles that meet would all be of one column: the weight would lose rank.
        tiles += 1
    return _Laid(tile, math.gcd(math.prod(tile), LINE), transposed, tiles)


def _panels(inputs: int, outputs: int, ratio: float) -> Iterator[tuple[int, int]]:
    """Tiles, the largest first, that the product reads as panels and that hardly reach past the weight."""
    for tile_r, tile_c in SIDE_TILES:
        covered = -(-inputs // tile_r) * tile_r * -(-outputs // tile_c) * tile_c
        several = tile_r * tile_c * TILES_PER_WEIGHT <= inputs * outputs
        if several and covered <= (1 + MOST_PADDING) * inputs * outputs and (ratio == 1 or tile_c < outputs):
            yield tile_r, tile_c


def _whole_rows(weight: Placed, cols: int) -> tuple[int, int]:
    """Rows that lie in the array as in the weight, so many that a tile of any width ends on a line."""
    most = 1 if weight.rows else ALIGN
    return max(n for n in range(1, most + 1) if weight.shape[0] % n == 0), cols


def _part(cols: int) -> int:
    """A part of a row, so that each row has several: of up to 64 elements, of equal length or nearly so."""

    def worth(part: int) -> tuple[bool, int, int]:
        return -(-cols // part) * part <= (1 + 2 * MOST_PADDING) * cols, math.gcd(part, ALIGN), part

    return max(range(1, min(LINE, max(1, cols // 2)) + 1), key=worth)


def array_length(numel: int, ratio: float) -> int:
    """Array elements for `numel` weights, rounded up to what the starts of its tiles are multiples of."""
    length = max(1, round(numel / ratio))
    least = ALIGN if length >= ALIGN else 1
    fit = (align for tile_r, tile_c, align in MATRIX_TILES if tile_r * tile_c * TILES_PER_ARRAY <= length)
    align = next(fit, least)
    return -(-length // align) * align


def draw_mapping(
    shape: tuple[int, ...], n_memory: int, entropy: Sequence[int], *, rows: bool, bank: bool = False
) -> Mapping:
    """A parameter's record: the largest tile that leaves tiles room to differ, and drawn coefficients.

    entropy: what the coefficients are drawn from, non-negative; `compress` gives its seed and the
        parameter's name, so that a record survives changes elsewhere.
    rows: an embedding's table, whose tiles are pieces of rows.
    bank: a table of which many rows are read at a time.
    """
    tile_r, tile_c, align = _tile(shape, n_memory, rows, bank)
    best, most = None, -1.0
    for seed in np.random.SeedSequence(list(entropy)).generate_state(DRAWS).tolist():
        mapping = families.roast(
            shape, n_memory, seed=seed, tile=(tile_r, tile_c), align=align, transposed=not rows
        )
        even = evenness(mapping)
        if even > most:
            best, most = mapping, even
        if even >= EVEN:
            break
    assert best is not None
    return best


def _tile(shape: tuple[int, ...], n_memory: int, rows: bool, bank: bool) -> tuple[int, int, int]:
    width = shape[-1] if rows else max(shape[0], ALIGN)
    part = _even_part(width) if bank else None
    if part is not None and TILES_PER_ARRAY * part * ALIGN <= n_memory:
        wide = part == LINE and TILES_PER_ARRAY * LINE * LINE <= n_memory
        return 1, part, LINE if wide else ALIGN
    for tile_r, tile_c, align in ROW_TILES if rows else MATRIX_TILES:
        there_is_room = tile_r * tile_c * TILES_PER_ARRAY <= n_memory and tile_c <= width
        if there_is_room and (tile_c < WIDEST or 2 * n_memory <= tile_c * math.prod(shape[1:])):
            return tile_r, tile_c, align
    return 1, 1, 1


def _even_part(width: int) -> int | None:
    """The part of a row, of 16 to 64 elements, that rows of this width are made of; None if there is none.

    Rows of a bank are read many at a time: the fewer and the more equal their parts, the less arithmetic.
    """
    parts = [part for part in range(ALIGN, LINE + 1) if width % part == 0]
    return max(parts, key=lambda part: (math.gcd(part, ALIGN), part), default=None)


def evenness(mapping: Mapping) -> float:
    """How many different slots a column of tiles reads, and how many starts a row of tiles has: 1 is best.

    The hash is linear in tile numbers, so for some coefficients the tiles of a column or row all but
    coincide: then outputs see sums of a few inputs, or outputs equal each other.
    """
    grid_i, grid_j = mapping.grid
    tile_r, tile_c = mapping.tile
    i, j = np.arange(min(grid_i, SAMPLE_ROWS)), np.arange(min(grid_j, SAMPLE_ROWS))
    runs = np.arange(tile_r) * tile_c
    reach = (mapping.range - 1) * mapping.align + (tile_r - 1) * tile_c
    possible = reach // math.gcd(mapping.align, tile_c) + 1
    columns = [
        np.unique(mapping.starts(i, column)[:, None] + runs).size / min(i.size * tile_r, possible)
        for column in _some(j)
    ]
    across = [np.unique(mapping.starts(row, j)).size / min(j.size, mapping.range) for row in _some(i)]
    return float(min(np.mean(columns), np.mean(across)))


def _some(numbers: np.ndarray) -> np.ndarray:
    return numbers[:: -(-numbers.size // SAMPLE_COLUMNS)]
