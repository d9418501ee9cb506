"""Finding the seed of a Mersenne Twister stream that a checkpoint shows a piece of.

Every seed below SEARCHED is run once, all of them side by side, as far as the first outputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export.families import uhash_coefficients

SEARCHED = 1 << 20
"""Seeds that are tried: research code seeds with small numbers. Three seconds, once."""

KEPT = 16
"""Outputs kept of every seed; enough for 4 coefficients or 8 slots of 64 bits."""

SIGNS = 64
SIGNS_WRONG = 4
"""Signs compared, and how many may differ, so that a damaged table still finds its seed."""

_AT_ONCE = 1 << 15
_STATE, _MIDDLE = 624, 397


@lru_cache(maxsize=1)
def _first_outputs() -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """First outputs uint32[SEARCHED, KEPT] and lowest bits of the first SIGNS, packed, of every seed."""
    outputs = np.empty((SEARCHED, KEPT), np.uint32)
    bits = np.empty((SEARCHED, SIGNS // 8), np.uint8)
    for start in range(0, SEARCHED, _AT_ONCE):
        raw = _outputs(np.arange(start, start + _AT_ONCE, dtype=np.uint32), SIGNS)
        outputs[start : start + _AT_ONCE] = raw[:KEPT].T
        bits[start : start + _AT_ONCE] = np.packbits((raw & 1).astype(np.uint8), axis=0).T
    return outputs, bits


def _outputs(seeds: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """First `count` outputs of many seeds: uint32[count, seeds] (Matsumoto, Nishimura 1998)."""
    if count > _STATE - _MIDDLE:
        raise ValueError("only the outputs before the first refill of the state's tail")
    needed = np.empty((_MIDDLE + count, seeds.size), np.uint32)
    word = needed[0] = seeds
    for k in range(1, _MIDDLE + count):
        word = (word ^ (word >> np.uint32(30))) * np.uint32(1812433253) + np.uint32(k)
        needed[k] = word
    high, low = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
    mixed = (needed[:count] & high) | (needed[1 : count + 1] & low)
    y: NDArray[np.uint32] = (
        needed[_MIDDLE:] ^ (mixed >> np.uint32(1)) ^ ((mixed & np.uint32(1)) * np.uint32(0x9908B0DF))
    )
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    y ^= y >> np.uint32(18)
    return y


def seeds_of_signs(sign: NDArray[Any]) -> list[int]:
    """Seeds whose stream begins with these signs (+-1, flat, at least SIGNS of them), best first."""
    if sign.size < SIGNS:
        return []
    wanted = np.packbits(sign[:SIGNS] > 0)
    wrong = _ONES[_first_outputs()[1] ^ wanted].sum(1)
    found = np.nonzero(wrong <= SIGNS_WRONG)[0]
    return [int(seed) for seed in found[np.argsort(wrong[found], kind="stable")]]


def seeds_of_slots(index: NDArray[Any], n_memory: int, draw_range: int, *, draw_bits: int) -> list[int]:
    """Seeds whose first draws, taken modulo draw_range and n_memory, are these slots (flat)."""
    outputs = _first_outputs()[0].astype(np.uint64)
    draws = (outputs[:, 0::2] << np.uint64(32)) | outputs[:, 1::2] if draw_bits == 64 else outputs[:, :8]
    count = min(draws.shape[1], index.size)
    slots = draws[:, :count] % np.uint64(draw_range) % np.uint64(n_memory)
    equal = (slots == index[:count].astype(np.uint64)).sum(1)
    return [int(seed) for seed in np.nonzero(equal >= max(1, count - 1))[0][:16]]


def coefficients_of_seeds(*, draw_bits: int) -> NDArray[np.int64]:
    """FakeRoast's hash coefficients for every seed below SEARCHED: int64[SEARCHED, 4]."""
    return uhash_coefficients(_first_outputs()[0][:, :8].astype(np.uint64), draw_bits=draw_bits)


_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)
