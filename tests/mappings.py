"""Random mappings and arrays, for tests."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from roast_export.mapping import Element, Hash, Mapping, Sign

coefficients = st.one_of(
    st.integers(-9, 9), st.integers(0, 2**31), st.integers(-(2**63), 2**63 - 1), st.just(-(2**63))
)
primes = st.sampled_from([2, 7, 45007, 2038074743, 2**31 - 1, 2**31])
hashes = st.builds(Hash, primes, coefficients, coefficients, coefficients, coefficients)


def pattern(n: int, dtype: type = np.float32) -> np.ndarray:
    """n values that are all finite, of both signs, with float16 subnormals among them."""
    values = ((np.arange(n, dtype=np.int64) * 2654435761) % 65521 - 32760).astype(np.float32)
    values[::7] *= np.float32(2.0**-24)
    return (values / 3).astype(dtype)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 19), min_size=1, max_size=4)))


@st.composite
def matrices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, int]:
    """The usual view, or everything as one row."""
    numel = math.prod(shape)
    return draw(st.sampled_from([(shape[0], numel // shape[0]), (1, numel), (numel, 1)]))


@st.composite
def signs(draw: st.DrawFn, numel: int, kinds: tuple[Sign, ...]) -> dict[str, object]:
    sign = draw(st.sampled_from(kinds))
    if sign is Sign.TILE:
        return {"sign": sign, "sign_hash": draw(hashes)}
    if sign is Sign.MT19937:
        return {
            "sign": sign,
            "sign_seed": draw(st.integers(0, 2**32 - 1)),
            "sign_skip": draw(st.integers(0, 2 * numel)),
        }
    return {}


@st.composite
def hashed(draw: st.DrawFn, kinds: tuple[Sign, ...] = tuple(Sign)) -> Mapping:
    shape = draw(shapes())
    tile = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    tile_size = tile[0] * tile[1]
    n_memory = draw(st.integers(tile_size, tile_size + 300))
    align = draw(st.sampled_from([1, 1, 3, 16]))
    last = (n_memory - 1) // align + 1
    origins = st.one_of(st.integers(0, 20), st.integers(0, 2**48))
    return Mapping(
        shape=shape,
        n_memory=n_memory,
        matrix=draw(matrices(shape)),
        transposed=draw(st.booleans()),
        tile=tile,
        origin=draw(st.tuples(origins, origins)),
        hash1=draw(st.one_of(st.just(Hash()), hashes)),
        hash2=draw(st.one_of(st.just(Hash()), hashes)),
        range=draw(st.integers(1, last)),
        align=align,
        **draw(signs(math.prod(shape), kinds)),
    )


@st.composite
def drawn(draw: st.DrawFn) -> Mapping:
    shape = draw(shapes())
    return Mapping(
        shape=shape,
        n_memory=draw(st.integers(1, 300)),
        matrix=draw(matrices(shape)),
        range=draw(st.one_of(st.integers(1, 1000), st.just(2**29), st.just(2**32))),
        element=draw(st.sampled_from([Element.MT19937_32, Element.MT19937_64])),
        seed=draw(st.integers(0, 2**32 - 1)),
        **draw(signs(math.prod(shape), (Sign.NONE, Sign.MT19937))),
    )
