"""Integer points of a small polytope given by many two-sided bounds: 0 <= base + x @ moves <= high."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

GRIDS = (1 << 12, 1 << 18)
"""Combinations of all directions but the longest that are looked at: near the centre, then further out."""

REACH = 1 << 20
"""Numbers along one direction that are looked at."""

MAX_POINTS = 64
CHECKED = 400
TIGHTEST = 40
"""Bounds nearest to the centre, whose vertices give the box that is searched."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def integer_points(base: Ints, moves: Ints, high: Ints) -> Iterator[Ints]:
    """At most MAX_POINTS integer x with 0 <= base + x @ moves <= high, those in the middle first.

    Only the CHECKED bounds next to the middle are tested: the caller tests the points it uses.

    base, high: int64[bounds]; moves: int64[directions, bounds], directions at most 3.
    """
    if not len(moves):
        if ((base >= 0) & (base <= high)).all():
            yield np.zeros(0, np.int64)
        return
    a = np.concatenate([moves, -moves], 1).T.astype(np.float64)
    b = np.concatenate([high - base, base]).astype(np.float64)
    size = np.abs(a).max(1, initial=1.0)
    centre = _centre(a / size[:, None], b / size)
    if centre is None:
        return
    low, top = _box(a / size[:, None], b / size, centre)
    slack = np.minimum(base + centre @ moves, high - base - centre @ moves)
    tight = np.argsort(slack, kind="stable")[:CHECKED]
    base, moves, high = base[tight], moves[:, tight], high[tight]
    for limit in GRIDS:
        found = False
        for point in _grid_points(base, moves, high, low, top, centre, limit):
            found = True
            yield point
        if found:
            return


def _centre(a: Floats, b: Floats) -> Floats | None:
    """The analytic centre of a x <= b, by Newton's method; None if the polytope is empty.

    All bounds are moved outwards first, and back in step by step.
    """
    x: Floats = np.linalg.lstsq(a, b - b.mean(), rcond=None)[0]
    margin = max(0.0, float((a @ x - b).max())) * 1.1 + 1.0
    for _ in range(200):
        for _ in range(30):
            slack = b + margin - a @ x
            gradient = a.T @ (1 / slack)
            hessian = (a / slack[:, None] ** 2).T @ a
            step = -np.linalg.lstsq(hessian, gradient, rcond=None)[0]
            reach = a @ step / slack
            length = min(1.0, 0.9 / max(1e-12, float(reach.max())))
            x = x + length * step
            if -gradient @ step < 1e-6:
                break
        if margin <= 0.5:
            return x
        spare = float((b + margin - a @ x).min())
        if spare < 1e-7 * margin:
            return None
        margin = max(0.5, margin - 0.9 * spare)
    return None


def _box(a: Floats, b: Floats, centre: Floats) -> tuple[Ints, Ints]:
    """Whole numbers around the vertices of the bounds nearest to the centre."""
    slack = b + 0.5 - a @ centre
    hessian = (a / slack[:, None] ** 2).T @ a
    reach = np.sqrt(np.einsum("td,de,te->t", a, np.linalg.pinv(hessian), a))
    tight = np.argsort(slack / np.maximum(reach, 1e-12), kind="stable")[:TIGHTEST]
    a, b = a[tight], b[tight] + 0.5
    groups = np.array(list(combinations(range(len(tight)), len(centre))))
    squares = a[groups]
    regular = np.abs(np.linalg.det(squares)) > 1e-9
    corners = np.linalg.solve(squares[regular], b[groups][regular][..., None])[..., 0]
    inside = corners[(corners @ a.T <= b + 1e-6 * (1 + np.abs(b))).all(1)]
    if not len(inside):
        inside = centre[None]
    return np.floor(inside.min(0)).astype(np.int64), np.ceil(inside.max(0)).astype(np.int64)


def _grid_points(
    base: Ints, moves: Ints, high: Ints, low: Ints, top: Ints, centre: Floats, limit: int
) -> Iterator[Ints]:
    """Integer points of the box inside all bounds: a grid over the short directions, the longest solved."""
    longest = int(np.argmax(top - low))
    short = [k for k in range(len(moves)) if k != longest]
    sides = [_outward(low[k], top[k], centre[k]) for k in short]
    while np.prod([len(side) for side in sides], dtype=np.float64) > limit:
        widest = int(np.argmax([len(side) for side in sides]))
        sides[widest] = sides[widest][: len(sides[widest]) // 2]
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, len(short)) if short else None
    grid = np.zeros((1, 0), np.int64) if grid is None else grid
    first, last = np.full(len(grid), low[longest]), np.full(len(grid), top[longest])
    alive = np.arange(len(grid))
    for t in range(len(base)):
        others = base[t] + grid[alive] @ moves[short, t]
        by = int(moves[longest, t])
        if by:
            ends = -others if by > 0 else high[t] - others, high[t] - others if by > 0 else -others
            first[alive] = np.maximum(first[alive], -(-ends[0] // by))
            last[alive] = np.minimum(last[alive], ends[1] // by)
            alive = alive[first[alive] <= last[alive]]
        else:
            alive = alive[(others >= 0) & (others <= high[t])]
    found = 0
    for row in alive:
        for value in _outward(first[row], last[row], centre[longest])[:4]:
            point = np.empty(len(moves), np.int64)
            point[short], point[longest] = grid[row], value
            yield point
            found += 1
            if found == MAX_POINTS:
                return


def _outward(low: int, high: int, middle: float) -> Ints:
    """Whole numbers from low to high, those next to the middle first."""
    if high - low >= REACH:
        low, high = max(low, int(middle) - REACH // 2), min(high, int(middle) + REACH // 2)
    numbers = np.arange(low, high + 1)
    return numbers[np.argsort(np.abs(numbers - middle), kind="stable")]
