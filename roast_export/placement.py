"""Where a weight that compress() makes lies in its array: tiles, and hash coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from roast_export import families
from roast_export.mapping import Mapping

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
TILES_PER_ARRAY = 4
"""A tile is at most a quarter of the array, so that tiles have different places to start."""

DRAWS, EVEN = 16, 0.75
"""Hash coefficients are drawn so often, or until the tiles of rows and columns lie so evenly."""

SAMPLE_ROWS, SAMPLE_COLUMNS = 2048, 8


def array_length(numel: int, ratio: float) -> int:
    """Array elements for `numel` weights, rounded up to what the starts of its tiles are multiples of."""
    length = max(1, round(numel / ratio))
    least = ALIGN if length >= ALIGN else 1
    fit = (align for tile_r, tile_c, align in MATRIX_TILES if tile_r * tile_c * TILES_PER_ARRAY <= length)
    align = next(fit, least)
    return -(-length // align) * align


def draw_mapping(shape: tuple[int, ...], n_memory: int, entropy: Sequence[int], *, rows: bool) -> Mapping:
    """A parameter's record: the largest tile that leaves tiles room to differ, and drawn coefficients.

    entropy: what the coefficients are drawn from, non-negative; `compress` gives its seed and the
        parameter's name, so that a record survives changes elsewhere.
    rows: an embedding's table, whose tiles are pieces of rows.
    """
    tile_r, tile_c, align = _tile(shape, n_memory, rows)
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


def _tile(shape: tuple[int, ...], n_memory: int, rows: bool) -> tuple[int, int, int]:
    width = shape[-1] if rows else max(shape[0], ALIGN)
    for tile_r, tile_c, align in ROW_TILES if rows else MATRIX_TILES:
        there_is_room = tile_r * tile_c * TILES_PER_ARRAY <= n_memory and tile_c <= width
        if there_is_room and (tile_c < WIDEST or 2 * n_memory <= tile_c * math.prod(shape[1:])):
            return tile_r, tile_c, align
    return 1, 1, 1


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
