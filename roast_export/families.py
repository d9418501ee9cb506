"""Mappings of the published families and of this package (docs/mapping.md section 6).

Each function turns the facts of one family into a `Mapping`. `offset` is the number of weights
compressed before this one (FakeRoast); shifts such as i + offset are folded into g, exactly.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roast_export.mapping import Element, Hash, Mapping, Sign, mt19937_stream

UHASH_PRIME = 2038074743
"""The modulus of FakeRoast's, ROBE's and our own hash, a prime below 2^31."""

RZLINEAR_TILE = (32, 64)
RZLINEAR_PRIME = 45007


def _wrap(value: int) -> int:
    """Two's-complement int64, so that a folded shift keeps the wrap-around of the sum it replaces."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def rzlinear(in_features: int, out_features: int, n_memory: int, random_numbers: list[int]) -> Mapping:
    """RzLinear's (in, out) weight, stored here as (out, in). random_numbers: P, R1..R7.

    Source: ROAST (Desai et al., 2022, arXiv:2207.10702); tile 32x64 and two hash levels.
    """
    p, r1, r2, r3, r4, r5, _, r7 = random_numbers
    return Mapping(
        shape=(out_features, in_features),
        matrix=(out_features, in_features),
        transposed=True,
        n_memory=n_memory,
        tile=RZLINEAR_TILE,
        hash1=Hash(p, a=r3, b=r2, g=r1),
        hash2=Hash(p, a=r7, b=r5, g=r4),
        range=n_memory - math.prod(RZLINEAR_TILE),
    )


def rzlinear_one_level(
    in_features: int, out_features: int, n_memory: int, random_numbers: list[int], tile: tuple[int, int]
) -> Mapping:
    """The one-level hash of other RzLinear branches. random_numbers: P, R1..R3; tile: as it was tuned."""
    p, r1, r2, r3 = random_numbers[:4]
    return Mapping(
        shape=(out_features, in_features),
        matrix=(out_features, in_features),
        transposed=True,
        n_memory=n_memory,
        tile=tile,
        hash1=Hash(p, a=r3, b=r2, g=r1),
        range=n_memory - math.prod(tile),
    )


def rzlinear_numbers(seed: int) -> list[int]:
    """P, R1..R7 as RzLinear draws them: torch.manual_seed(seed), randint(0, P, (7,))."""
    return [RZLINEAR_PRIME, *(int(raw) % RZLINEAR_PRIME for raw in mt19937_stream(seed, 7))]


def uhash_coefficients(raw: NDArray[np.uint64], *, draw_bits: int) -> NDArray[np.int64]:
    """FakeRoast's four odd coefficients: int64[..., 4], each in [3, UHASH_PRIME).

    raw: the first 8 outputs of MT19937 for the hasher's seed, uint64[..., 8]; draw_bits: 64 (torch
    2.13 joins two outputs for a range this wide) or 32 (torch up to about 2.6).
    """
    draws = (raw[..., 0::2] << np.uint64(32)) | raw[..., 1::2] if draw_bits == 64 else raw[..., :4]
    low, high = 1, UHASH_PRIME // 2 - 1
    return 2 * (draws % np.uint64(high - low)).astype(np.int64) + 2 * low + 1


def fakeroast_hashednet(
    shape: tuple[int, ...], n_memory: int, coefficients: list[int], offset: int, *, sign_seed: int
) -> Mapping:
    """HashedNet (Chen et al., 2015, arXiv:1504.04788) as FakeRoast draws it: one slot per element."""
    a0, a1, a2, _ = coefficients
    return Mapping(
        shape=shape,
        matrix=(1, math.prod(shape)),
        n_memory=n_memory,
        origin=(0, offset),
        hash1=Hash(UHASH_PRIME, b=a0, q=a1, g=a2),
        range=n_memory,
        sign=Sign.MT19937,
        sign_seed=sign_seed,
    )


def fakeroast_pareto(
    shape: tuple[int, ...], n_memory: int, coefficients: list[int], offset: int, *, sign_seed: int
) -> Mapping:
    """STABLE-RPS / pareto: chunks as long as the array, each read from a hashed start, wrapping round."""
    single = fakeroast_hashednet(shape, n_memory, coefficients, offset, sign_seed=sign_seed)
    return replace(single, tile=(1, n_memory))


def fakeroast_roast(
    shape: tuple[int, ...],
    n_memory: int,
    coefficients: list[int],
    offset: int,
    tile: tuple[int, int],
    *,
    layer: str,
    sign_seed: int,
) -> Mapping:
    """FakeRoast's `roast` mapper. layer: "linear", "conv" or "embedding" (tile is then (1, block)).

    linear hashes the transposed (in, out) matrix; all shift j by the matrix's `first` dimension.
    """
    a0, a1, a2, _ = coefficients
    rows, cols = _matrix(shape)
    transposed = layer != "embedding"
    first = cols if transposed else rows
    return Mapping(
        shape=shape,
        matrix=(rows, cols),
        transposed=transposed,
        n_memory=n_memory,
        tile=tile,
        hash1=Hash(UHASH_PRIME, a=a0, b=a1, g=_wrap(a2 + a0 * offset + a1 * (offset + first))),
        range=n_memory - math.prod(tile),
        sign=Sign.MT19937,
        sign_seed=sign_seed,
    )


def fakeroast_random(shape: tuple[int, ...], n_memory: int, seed: int, *, draw_bits: int) -> Mapping:
    """FakeRoast's `random` mode: every slot drawn from MT19937, the signs after the slots.

    draw_bits: 64 (torch 2.13) or 32 (torch up to about 2.6).
    """
    numel = math.prod(shape)
    return Mapping(
        shape=shape,
        matrix=(1, numel),
        n_memory=n_memory,
        element=Element.MT19937_64 if draw_bits == 64 else Element.MT19937_32,
        seed=seed,
        range=1 << 29,
        sign=Sign.MT19937,
        sign_seed=seed,
        sign_skip=numel * (draw_bits // 32),
    )


def robe(
    num_embeddings: int, dim: int, n_memory: int, random_numbers: list[int], offset: int, chunk: int
) -> Mapping:
    """ROBE / UMA embedding (Desai et al., 2022, arXiv:2108.02191).

    random_numbers: r0..r3, more are ignored; chunk: Z, the elements read in one run.
    """
    r0, r1, r2, r3 = random_numbers[:4]
    return Mapping(
        shape=(num_embeddings, dim),
        matrix=(num_embeddings, dim),
        n_memory=n_memory,
        tile=(1, chunk),
        origin=(offset, 0),
        hash1=Hash(r0, a=r3, b=r2, g=r1),
        range=n_memory - chunk + 1,
    )


def robe_numbers(seed: int) -> list[int]:
    """r0..r3 as ROBE and UMA draw them from numpy's RandomState(seed)."""
    return [UHASH_PRIME, *(int(x) for x in np.random.RandomState(seed).randint(0, UHASH_PRIME, 3))]


def roast(
    shape: tuple[int, ...],
    n_memory: int,
    *,
    seed: int,
    tile: tuple[int, int],
    align: int,
    transposed: bool = True,
    signs: bool = True,
) -> Mapping:
    """This package's own map: one hash level, tile starts on multiples of `align`.

    `range` counts every aligned start whose tile still fits, the last one included. The
    coefficients come from `seed` once, here; from then on they are data of the model.
    """
    draw = np.random.Generator(np.random.PCG64(seed)).integers(1, UHASH_PRIME, size=6)
    a, b, g, sign_a, sign_b, sign_g = (int(x) for x in draw)
    return Mapping(
        shape=shape,
        matrix=_matrix(shape),
        transposed=transposed,
        n_memory=n_memory,
        tile=tile,
        hash1=Hash(UHASH_PRIME, a=a, b=b, g=g),
        range=max(0, n_memory - math.prod(tile)) // align + 1,
        align=align,
        sign=Sign.TILE if signs else Sign.NONE,
        sign_hash=Hash(UHASH_PRIME, a=sign_a, b=sign_b, g=sign_g) if signs else Hash(),
    )


def side_by_side(
    shape: tuple[int, ...],
    n_memory: int,
    *,
    first: int,
    tiles: int,
    tile: tuple[int, int],
    align: int,
    transposed: bool,
    seed: int,
) -> Mapping:
    """Tiles laid one after the other over a stretch of the array that is this weight's alone.

    first, tiles: where the stretch begins, in slots, and how many tiles it holds. Where it holds them all,
    no slot is read twice and there are no signs; else counting goes on from the stretch's beginning, and
    signs come from `seed`.
    """
    rows, cols = reversed(_matrix(shape)) if transposed else _matrix(shape)
    across = -(-cols // tile[1])
    size = math.prod(tile)
    step, begin, length = size // align, first // align, tiles * size // align
    starts = (n_memory - size) // align + 1
    lone = tiles >= across * -(-rows // tile[0])
    hash1 = hash2 = sign_hash = Hash()
    if lone:
        hash1 = Hash(UHASH_PRIME, a=across * step, b=step, g=begin)
    else:
        inside = Hash(length, a=across * step % length, b=step % length) if length > 1 else Hash()
        # The first of two levels adds `begin`, since starts are taken modulo their number.
        hash1, hash2 = (Hash(starts + begin, g=1), inside) if begin else (inside, Hash())
        draw = np.random.Generator(np.random.PCG64(seed)).integers(1, UHASH_PRIME, size=3)
        sign_a, sign_b, sign_g = (int(x) for x in draw)
        sign_hash = Hash(UHASH_PRIME, a=sign_a, b=sign_b, g=sign_g)
    return Mapping(
        shape=shape,
        matrix=_matrix(shape),
        transposed=transposed,
        n_memory=n_memory,
        tile=tile,
        hash1=hash1,
        hash2=hash2,
        range=starts,
        align=align,
        sign=Sign.NONE if lone else Sign.TILE,
        sign_hash=sign_hash,
    )
