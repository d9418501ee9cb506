"""Where weights lie in the array at ratios near 1: side by side, each on a stretch of its own."""

import math

import numpy as np
import pytest
import torch

from roast_export import families, torch_ops
from roast_export.errors import InputError
from roast_export.mapping import MAX_MEMORY, Mapping, Sign
from roast_export.placement import Placed, place

SHAPES = {
    "square": ((96, 128), False),
    "few outputs": ((10, 200), False),
    "odd": ((37, 53), False),
    "wide head": ((1000, 64), False),
    "one output": ((1, 300), False),
    "one input": ((300, 1), False),
    "table": ((300, 36), True),
    "odd table": ((97, 31), True),
    "thin table": ((500, 1), True),
    "filters": ((30, 16, 3, 3), False),
    "experts": ((4, 24, 20), False),
}
WEIGHTS = [Placed(shape, rows, (k,)) for k, (shape, rows) in enumerate(SHAPES.values())]
RATIOS = [1, 1.01, 1.1, 1.5, 1.9, 2]


def read_counts(mapping: Mapping) -> np.ndarray:
    return np.bincount(mapping.indices().ravel(), minlength=mapping.n_memory)


@pytest.mark.parametrize("ratio", RATIOS)
def test_no_slot_belongs_to_two_weights(ratio):
    readers = [read_counts(mapping) > 0 for mapping in place(WEIGHTS, ratio)]
    assert max(np.sum(readers, axis=0)) == 1


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_array_is_hardly_longer_than_asked(ratio):
    (mapping, *_) = place(WEIGHTS, ratio)
    asked = sum(math.prod(weight.shape) for weight in WEIGHTS) / ratio
    assert asked <= mapping.n_memory < 1.05 * asked


@pytest.mark.parametrize("weight", WEIGHTS, ids=SHAPES)
def test_at_ratio_1_a_weight_has_a_slot_for_each_element_and_no_signs(weight):
    for mappings in (place([weight], 1), place(WEIGHTS, 1)):
        for mapping in mappings:
            assert read_counts(mapping).max() == 1
            assert mapping.sign is Sign.NONE


@pytest.mark.parametrize("ratio", RATIOS[1:])
@pytest.mark.parametrize("weight", WEIGHTS, ids=SHAPES)
def test_slots_are_read_equally_often(weight, ratio):
    (mapping,) = place([weight], ratio)
    counts = read_counts(mapping)
    assert counts.max() <= 2
    # Padding of tiles and of the array is read by nobody.
    unread = (counts == 0).sum() / counts.size
    assert unread < 0.08
    assert mapping.spill == 0


@pytest.mark.parametrize("ratio", [1.5, 2])
@pytest.mark.parametrize(
    "weight", [w for w in WEIGHTS if min(w.shape[0], math.prod(w.shape[1:])) > 1], ids=str
)
def test_weights_that_share_keep_their_rank(weight, ratio):
    (mapping,) = place([weight], ratio)
    memory = torch.randn(mapping.n_memory, generator=torch.Generator().manual_seed(0))
    matrix = torch_ops.gather(memory, mapping.to_list(), 1.0).flatten(1)
    assert torch.linalg.matrix_rank(matrix) >= 0.9 * min(matrix.shape)


def test_control_tiles_that_meet_in_one_column_lose_rank():
    """Half as many tiles as the weight has, in whole rows of tiles: what `place` adds one tile for."""
    shape = (64, 64)
    mapping = families.side_by_side(
        shape, 2048, first=0, tiles=8, tile=(16, 16), align=16, transposed=True, seed=0
    )
    memory = torch.randn(2048, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor(mapping.signs())
    matrix = torch_ops.gather(memory, mapping.to_list(), 1.0) * signs
    assert torch.linalg.matrix_rank(matrix) <= 32


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("first", [0, 16, 64])
@pytest.mark.parametrize("tiles", [1, 2, 5, 11, 12, 20])
def test_tiles_follow_each_other_from_the_first_slot_on(tiles, first, transposed):
    mapping = families.side_by_side(
        (24, 48), 2048, first=first, tiles=tiles, tile=(8, 12), align=16, transposed=transposed, seed=3
    )
    down, across = mapping.grid
    i, j = np.indices(mapping.grid)
    held = min(tiles, down * across)
    assert np.array_equal(mapping.starts(i, j), first + (i * across + j) % held * 96)
    assert (mapping.sign is Sign.NONE) == (tiles >= down * across)


def test_an_array_longer_than_a_record_can_say_is_refused_with_what_to_do():
    huge = [Placed((1 << 20, 1 << 10), True, (0,)), Placed((1 << 10, 1 << 10), False, (1,))]
    with pytest.raises(InputError, match=r"local=True, --local.*raise the ratio"):
        place(huge, 1)
    assert place(huge, 2)[0].n_memory < MAX_MEMORY
