"""From a stored index table back to the formula that made it: FakeRoast's maps.

In this order: known seeds and offsets, offsets searched, seeds searched, coefficients solved. Every
candidate is compared with the whole table (proof.py); nothing is accepted on a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export import families, seeds
from roast_export.mapping import MAX_MEMORY, Mapping, Sign, mt19937_stream
from roast_export.proof import Comparison, Table, agreement, compare_index, compare_signs, raw_stream
from roast_export.solved import solved_maps
from roast_export.tiles import Probe, classify, offsets_that_fit, probe, seeds_that_fit

HASHED = ("pareto", "roast", "hashednet")
KINDS = ("identity", "random", *HASHED)
CLOSE = 0.9
"""Share of a sample that must agree before the whole table is compared: a damaged table still does."""

SURE = 0.99
"""Share of a table that only the layer's own seed, at a known offset, can be expected to give."""


@dataclass(frozen=True)
class Hints:
    """What is known of a table besides its entries; everything may be left open."""

    layer: str = "unknown"
    """"linear", "conv", "embedding" or "unknown"."""
    kinds: tuple[str, ...] = KINDS
    seeds: tuple[int, ...] = ()
    """Seeds that the layer itself names."""
    others: tuple[int, ...] = ()
    """Seeds of other layers of the model."""
    offsets: tuple[int, ...] = (0,)
    total: int = 0
    """Elements compressed in the whole model: no offset is larger."""
    draw_bits: tuple[int, ...] = (64, 32)
    tile: tuple[int, int] | None = None
    coefficients: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Recovered:
    """A mapping that gives every entry of the table."""

    mapping: Mapping
    kind: str
    how: str
    seed: int | None = None


@dataclass(frozen=True)
class NotRecovered:
    """Why no mapping is accepted, in words for the user."""

    reason: str


@dataclass(frozen=True)
class _Candidate:
    mapping: Mapping
    kind: str
    how: str
    seed: int | None = None
    certain: bool = False
    """Whether seed and offset were known beforehand: what differs then is damage."""


def recover(table: Table, hints: Hints) -> Recovered | NotRecovered:
    """The mapping of a stored table, proved over all its entries, or why there is none."""
    reason = _unusable(table)
    if reason:
        return NotRecovered(reason)
    close: tuple[_Candidate, Comparison] | None = None
    for candidate in _candidates(table, hints):
        if agreement(candidate.mapping, table.index) < CLOSE:
            continue
        comparison = compare_index(candidate.mapping, table.index)
        if comparison.exact:
            return _with_signs(table, hints, candidate)
        if close is None or comparison.differing < close[1].differing:
            close = candidate, comparison
        if candidate.certain and comparison.differing < comparison.total * (1 - SURE):
            break
    if close:
        candidate, comparison = close
        return NotRecovered(
            f"its index table is close to {candidate.kind} ({candidate.how}), but {comparison}"
        )
    return NotRecovered(
        f"no known map gives its index table (tried {', '.join(hints.kinds)}); maps that permute tiles "
        "(roast_mem, roast_comp) or hash text (mhash, circ_random) have no formula"
    )


def _unusable(table: Table) -> str | None:
    if table.index.size == 0:
        return "its index table is empty"
    if not 1 <= table.n_memory <= MAX_MEMORY:
        return f"its array has {table.n_memory:,} slots, not 1 to 2^30"
    low, high = int(table.index.min()), int(table.index.max())
    if low < 0 or high >= table.n_memory:
        wrong = low if low < 0 else high
        place = np.unravel_index(int(np.argmax(table.index.reshape(-1) == wrong)), table.shape)
        where = ", ".join(str(int(x)) for x in place)
        return f"index {wrong:,} at [{where}] is outside its array of {table.n_memory:,} slots"
    return None


def _with_signs(table: Table, hints: Hints, found: _Candidate) -> Recovered | NotRecovered:
    if table.sign is None:
        return Recovered(found.mapping, found.kind, found.how, found.seed)
    drawn = {"random": found.mapping.sign_skip}
    skips = (drawn[found.kind],) if found.kind in drawn else (0,)
    tried = dict.fromkeys(() if found.seed is None else (found.seed,))
    tried |= dict.fromkeys(hints.seeds)
    close: Comparison | None = None
    for seed, skip in _sign_streams(table.sign, list(tried), skips):
        mapping = replace(found.mapping, sign=Sign.MT19937, sign_seed=seed, sign_skip=skip)
        comparison = compare_signs(mapping, table.sign)
        if comparison.exact:
            how = found.how if seed == found.seed else f"{found.how}; signs from seed {seed}"
            return Recovered(mapping, found.kind, how, seed)
        if comparison.differing < (1 - CLOSE) * comparison.total:
            close = comparison
            break
    plain = replace(found.mapping, sign=Sign.NONE, sign_seed=0, sign_skip=0)
    comparison = close or compare_signs(plain, table.sign)
    if comparison.exact:
        return Recovered(plain, found.kind, f"{found.how}; no signs", found.seed)
    if close or comparison.differing < (1 - CLOSE) * comparison.total:
        return NotRecovered(
            f"its indices are proved ({found.kind}, {found.how}), but of its signs {comparison}"
        )
    return NotRecovered(
        f"its indices are proved ({found.kind}, {found.how}), but no seed below {seeds.SEARCHED:,} gives its "
        "signs; give the seed in the facts file"
    )


def _sign_streams(sign: NDArray[Any], known: list[int], skips: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Seeds and skips whose stream begins like the signs."""
    flat = sign.reshape(-1)
    count = min(flat.size, seeds.SIGNS)
    for seed in known:
        for skip in skips:
            bits = raw_stream(seed, skip).random_raw(count) & np.uint64(1)
            if np.count_nonzero((bits == 1) != (flat[:count] > 0)) <= seeds.SIGNS_WRONG:
                yield seed, skip
    if 0 in skips:
        yield from ((seed, 0) for seed in seeds.seeds_of_signs(flat))


def _candidates(table: Table, hints: Hints) -> Iterator[_Candidate]:
    """Cheapest first; each step starts only when the ones before it gave nothing."""
    kinds = [kind for kind in classify(table, hints.tile) if kind in hints.kinds]
    if "identity" in kinds:
        yield _Candidate(_identity(table), "identity", "slots in order")
    sign = table.sign
    own = list(hints.seeds)
    yield from _seeded(table, hints, kinds, own, scan=False)
    if sign is not None and not hints.coefficients:
        found = [seed for seed in seeds.seeds_of_signs(sign.reshape(-1)) if seed not in own]
        yield from _seeded(table, hints, kinds, found, scan=False)
        own += found
    yield from _seeded(table, hints, kinds, [s for s in hints.others if s not in own], scan=False)
    if hints.coefficients is None:
        for kind in kinds:
            for mapping, how in solved_maps(table, kind, hints.layer, hints.tile, hints.offsets):
                yield _Candidate(mapping, kind, how)
    yield from _seeded(table, hints, kinds, own, scan=True)
    if hints.coefficients is None:
        yield from _searched(table, hints, kinds)


def _identity(table: Table) -> Mapping:
    n = table.index.size
    return Mapping(shape=table.shape, matrix=(1, n), n_memory=table.n_memory, tile=(1, n))


def _seeded(
    table: Table, hints: Hints, kinds: list[str], known: list[int], *, scan: bool
) -> Iterator[_Candidate]:
    """Maps of known seeds (or coefficients), with known offsets or, if `scan`, with any that fits."""
    if "random" in kinds and not scan:
        for seed in known:
            for bits in hints.draw_bits:
                mapping = families.fakeroast_random(table.shape, table.n_memory, seed, draw_bits=bits)
                how = f"seed {seed}, draws of {bits} bits"
                yield _Candidate(mapping, "random", how, seed, seed in hints.seeds)
    sets: list[tuple[list[int], str, int | None]] = []
    if hints.coefficients:
        sets.append((list(hints.coefficients), "coefficients given", None))
    else:
        for seed in known:
            raw = mt19937_stream(seed, 8)
            for bits in hints.draw_bits:
                drawn = families.uhash_coefficients(raw, draw_bits=bits).tolist()
                sets.append((drawn, f"seed {seed}, draws of {bits} bits", seed))
    for kind in kinds:
        for seen in probe(table, kind, hints.layer, hints.tile) if sets and kind in HASHED else ():
            for coefficients, how, source in sets:
                for offset in _offsets(table, hints, seen, coefficients) if scan else hints.offsets:
                    mapping = seen.mapping(coefficients, offset)
                    certain = not scan and (source is None or source in hints.seeds)
                    yield _Candidate(mapping, kind, f"{how}, offset {offset:,}", source, certain)


def _offsets(table: Table, hints: Hints, seen: Probe, coefficients: list[int]) -> list[int]:
    limit = max(hints.total, table.index.size) if hints.total else 1 << 22
    return [o for o in offsets_that_fit(seen, coefficients, limit) if o not in hints.offsets]


def _searched(table: Table, hints: Hints, kinds: list[str]) -> Iterator[_Candidate]:
    """Seeds whose first slots, or whose coefficients at the known offsets, give the table."""
    if "random" in kinds:
        flat = table.index.reshape(-1)
        for bits in hints.draw_bits:
            for seed in seeds.seeds_of_slots(flat, table.n_memory, 1 << 29, draw_bits=bits):
                mapping = families.fakeroast_random(table.shape, table.n_memory, seed, draw_bits=bits)
                yield _Candidate(mapping, "random", f"seed {seed} found, draws of {bits} bits", seed)
    for kind in kinds:
        if kind not in HASHED:
            continue
        for seen in probe(table, kind, hints.layer, hints.tile):
            # Fewer starts than this tell less than 2^20 seeds and their offsets apart.
            if seen.count * math.log2(max(2, seen.range)) < 32:
                continue
            for bits in hints.draw_bits:
                every = seeds.coefficients_of_seeds(draw_bits=bits)
                for offset in hints.offsets:
                    for seed in seeds_that_fit(seen, every, offset):
                        mapping = seen.mapping(every[seed].tolist(), offset)
                        how = f"seed {seed} found, draws of {bits} bits, offset {offset:,}"
                        yield _Candidate(mapping, kind, how, seed)
