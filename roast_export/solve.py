"""Solving a hash from what it gave: coefficients modulo a known prime from tile starts.

A start is `h mod range` with h = sum of unknown[k] * known[k] modulo p, so a start tells only
log2(range) of the 31 bits of h. This is the hidden number problem (Boneh, Venkatesan 1996). With
h = range * k + start, the vector k + start / range (mod p) lies in a lattice that the known factors
span, and every k is between 0 and p / range: lattice reduction and Babai's nearest plane come close.
Where the known factors are small (few tiles), the lattice has short vectors, along which many
solutions fit the samples; polytope.py finds those that fit every start.

What comes out are candidates. The proof over the whole table decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from roast_export.polytope import integer_points

MAX_SAMPLES = 40
"""Dimension of the lattice; reduction in Python takes about a second there."""

MAX_STARTS = 1 << 17
"""Starts that candidates have to fit, besides the lattice's samples."""

Row = list[int]
Ints = NDArray[np.int64]


def solutions(factors: Ints, starts: Ints, p: int, range_: int) -> Iterator[list[int]]:
    """Coefficients c, each in [0, p), with (sum of c[k] * factors[t, k] mod p) mod range = starts[t].

    factors: int64[samples, unknowns], the known numbers of each sample; starts: int64[samples], each
    in [0, range). With fewer samples than unknowns the last unknowns come out 0.
    """
    factors = factors % p
    known = [[int(x) for x in row] for row in factors]
    rows, pivots = _independent(known, p)
    if not rows or range_ >= p:
        return
    others = _spread([t for t in range(len(starts)) if t not in set(rows)])
    order = rows + others[: min(MAX_SAMPLES, _samples_needed(len(rows), p, range_)) - len(rows)]
    square = [[known[t][k] for k in pivots] for t in rows]
    near = [int(starts[t]) for t in order]
    short: list[Row] = []
    if len(order) > len(rows):
        near, short = _nearby(known, order, len(rows), pivots, near, p, range_)

    def coefficients(values: Row) -> Ints:
        solved = np.zeros(len(known[0]), np.int64)
        solved[pivots] = _solve_modulo(square, values[: len(rows)], p)
        return solved

    first = coefficients([v * range_ % p for v in near] if len(order) > len(rows) else near)
    steps = [coefficients([v * range_ % p for v in vector]) for vector in short]
    yield from _fitting(first, steps, factors, starts, p, range_)


def _samples_needed(unknowns: int, p: int, range_: int) -> int:
    """Starts that settle the unknowns, with a margin that makes the nearest plane the right one."""
    return math.ceil(1.35 * unknowns * math.log(p) / math.log(max(2, range_))) + 6


def _spread(numbers: Row) -> Row:
    """The numbers in an order in which any first few lie far apart."""
    generator = np.random.Generator(np.random.PCG64(0))
    return [numbers[k] for k in generator.permutation(len(numbers))]


def _fitting(
    first: Ints, steps: list[Ints], factors: Ints, starts: Ints, p: int, range_: int
) -> Iterator[list[int]]:
    """first + integer combinations of the steps that give every start."""
    inverse = pow(range_, -1, p)
    chosen = np.linspace(0, len(starts) - 1, min(len(starts), MAX_STARTS)).astype(np.int64)
    factors, starts = factors[chosen], starts[chosen]
    high = (p - 1 - starts) // range_
    middle = (p - p // range_) // 2
    base = (_dot(factors, first, p) - starts) * inverse % p
    base = (base + middle) % p - middle
    moves = [(_dot(factors, step, p) * inverse % p + p // 2) % p - p // 2 for step in steps]
    for point in integer_points(base, np.array(moves).reshape(len(steps), len(starts)), high):
        found = first.copy()
        for step, times in zip(steps, point, strict=True):
            found = (found + step * (int(times) % p)) % p
        if (_dot(factors, found, p) % range_ == starts).all():
            yield [int(c) for c in found]


def _dot(factors: Ints, coefficients: Ints, p: int) -> Ints:
    """Sums of products modulo p < 2^31: no product leaves int64."""
    total = np.zeros(len(factors), np.int64)
    for k, c in enumerate(coefficients):
        total = (total + factors[:, k] * c % p) % p
    return total


def _nearby(
    factors: Sequence[Row], order: Row, n: int, pivots: Row, starts: Row, p: int, range_: int
) -> tuple[Row, list[Row]]:
    """The lattice vector nearest to what the samples show, and the lattice's short vectors."""
    inverse = pow(range_, -1, p)
    span = [[factors[t][k] * inverse % p for t in order] for k in pivots]
    basis = _echelon(span, n, p)
    basis += [[p if c == r else 0 for c in range(len(order))] for r in range(n, len(order))]
    basis = _reduced(basis)
    middle = p // range_ // 2
    nearest = _nearest(basis, [start * inverse % p + middle for start in starts])
    return nearest, [row for row in basis if max(map(abs, row)) <= p // range_][:n]


def _independent(factors: Sequence[Row], p: int) -> tuple[Row, Row]:
    """Samples that determine as many unknowns as the samples can, and those unknowns."""
    reduced: list[tuple[int, Row]] = []
    rows: list[int] = []
    for t, known in enumerate(factors):
        row = [int(x) % p for x in known]
        for pivot, other in reduced:
            row = [(x - row[pivot] * y) % p for x, y in zip(row, other, strict=True)]
        pivot = next((k for k, x in enumerate(row) if x), -1)
        if pivot >= 0:
            inverse = pow(row[pivot], -1, p)
            reduced.append((pivot, [x * inverse % p for x in row]))
            rows.append(t)
        if len(rows) == len(known):
            break
    return rows, sorted(pivot for pivot, _ in reduced)


def _echelon(span: list[Row], n: int, p: int) -> list[Row]:
    """The rows combined modulo p so that the first n columns are the identity."""
    rows = [list(row) for row in span]
    for c in range(n):
        pivot = next(r for r in range(c, n) if rows[r][c] % p)
        rows[c], rows[pivot] = rows[pivot], rows[c]
        inverse = pow(rows[c][c], -1, p)
        rows[c] = [x * inverse % p for x in rows[c]]
        for r in range(n):
            if r != c and rows[r][c]:
                factor = rows[r][c]
                rows[r] = [(x - factor * y) % p for x, y in zip(rows[r], rows[c], strict=True)]
    return rows


def _solve_modulo(square: list[Row], right: list[int], p: int) -> list[int]:
    n = len(square)
    augmented = _echelon([[*row, value] for row, value in zip(square, right, strict=True)], n, p)
    return [row[n] for row in augmented]


def _reduced(basis: list[Row], delta: float = 0.99) -> list[Row]:
    """A reduced basis of the same lattice (Lenstra, Lenstra, Lovasz 1982), integers exact.

    Entries are below 2^32 and the dimension is small, so float64 orthogonalisation suffices.
    """
    b = [list(row) for row in basis]
    ortho, mu, norms = _gram_schmidt(b)
    k = 1
    while k < len(b):
        _orthogonalise(b, ortho, mu, norms, k)
        for j in range(k - 1, -1, -1):
            q = round(mu[k, j])
            if q:
                b[k] = [x - q * y for x, y in zip(b[k], b[j], strict=True)]
                mu[k, :j] -= q * mu[j, :j]
        _orthogonalise(b, ortho, mu, norms, k)
        if norms[k] >= (delta - mu[k, k - 1] ** 2) * norms[k - 1]:
            k += 1
        else:
            b[k - 1], b[k] = b[k], b[k - 1]
            _orthogonalise(b, ortho, mu, norms, k - 1)
            k = max(k - 1, 1)
    return b


Floats = NDArray[np.float64]


def _gram_schmidt(b: list[Row]) -> tuple[Floats, Floats, Floats]:
    n = len(b)
    ortho, mu, norms = np.zeros((n, n)), np.zeros((n, n)), np.zeros(n)
    for k in range(n):
        _orthogonalise(b, ortho, mu, norms, k)
    return ortho, mu, norms


def _orthogonalise(b: list[Row], ortho: Floats, mu: Floats, norms: Floats, k: int) -> None:
    """Row k of the orthogonalisation, given the rows before it. Twice, for accuracy."""
    row = np.array(b[k], np.float64)
    mu[k, :k] = ortho[:k] @ row / norms[:k]
    rest = row - mu[k, :k] @ ortho[:k]
    correction = ortho[:k] @ rest / norms[:k]
    mu[k, :k] += correction
    ortho[k] = rest - correction @ ortho[:k]
    norms[k] = max(float(ortho[k] @ ortho[k]), 1e-9)


def _nearest(basis: list[Row], target: list[int]) -> list[int]:
    """A lattice vector close to the target (Babai 1986, nearest plane), in exact integers."""
    ortho, _, norms = _gram_schmidt(basis)
    rest = list(target)
    for k in range(len(basis) - 1, -1, -1):
        q = round(float(np.array(rest, np.float64) @ ortho[k] / norms[k]))
        rest = [x - q * y for x, y in zip(rest, basis[k], strict=True)]
    return [t - x for t, x in zip(target, rest, strict=True)]
