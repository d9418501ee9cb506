"""roast_scatter_part and roast_embedding_scatter against np.add.at in float64, on every instruction set."""

from __future__ import annotations

import ctypes as c
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roast_export.mapping import Mapping
from tests.mappings import drawn, hashed
from tests.test_native_kernel import LARGE, Plan, assert_same_bits, lib
from tests.test_native_linear import FOUND, MAPS, tables

VECTORS = Path(__file__).parent / "vectors" / "mapping.json"
PARTS = (1, 2, 3, 7, 100)

lib.roast_scatter_part.argtypes = [*(c.c_void_p, c.c_void_p, c.c_size_t, c.c_size_t, c.c_void_p)]
lib.roast_embedding_scatter.argtypes = [
    *(c.c_void_p, c.c_int64, c.c_void_p, c.c_size_t, c.c_void_p, c.c_void_p)
]


@pytest.fixture(params=FOUND)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert lib.roast_force_isa(FOUND[request.param]) == 0
    yield request.param
    assert lib.roast_force_isa(-1) == 0


def gradient(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal(n, np.float32)


def scatter(plan: Plan, grad: np.ndarray, n_memory: int, parts: int) -> np.ndarray:
    """Float32[n_memory]: each part, the last one first, into sums of its own; added up in order."""
    sums = np.zeros((parts, n_memory), np.float32)
    for part in reversed(range(parts)):
        lib.roast_scatter_part(plan.plan, grad.ctypes.data, part, parts, sums[part].ctypes.data)
    return sums.sum(0, dtype=np.float32)


def adjoint(m: Mapping, scale: float, grad: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64[n_memory]: the sums over the elements `places`, and how far float32 may be from them.

    n terms are rounded at most n + 1 times each.
    """
    indices, signs = m.indices().ravel()[places], m.signs().ravel()[places]
    terms = grad.astype(np.float64) * signs * np.float64(np.float32(scale))
    sums, sizes, counts = (np.zeros(m.n_memory) for _ in range(3))
    np.add.at(sums, indices, terms)
    np.add.at(sizes, indices, np.abs(terms))
    np.add.at(counts, indices, 1)
    return sums, (counts + 8) * 2.0**-24 * sizes + 2.0**-140


def check(m: Mapping, parts: tuple[int, ...] = PARTS, scale: float = -0.37) -> None:
    grad = gradient(m.numel)
    want, bound = adjoint(m, scale, grad, np.arange(m.numel))
    for table in (False, True):
        plan = Plan(m.to_list(), scale, table)
        for n in parts:
            got = scatter(plan, grad, m.n_memory, n)
            assert (np.abs(got - want) <= bound + n * 2.0**-24 * np.abs(want)).all()


@pytest.mark.parametrize("name", MAPS)
def test_small_maps(isa, name):
    check(MAPS[name])


@pytest.mark.parametrize("name", LARGE)
def test_large_maps(isa, name):
    check(LARGE[name], (1, 3))


def test_golden_vectors(isa):
    vectors = json.loads(VECTORS.read_text())["vectors"]
    # One vector has a scale that makes gradients infinite.
    vectors = [v for v in vectors if abs(v["scale"]) < 1e30]
    assert len(vectors) > 20
    for vector in vectors:
        check(Mapping.from_list(vector["mapping"]), (1, 2), vector["scale"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(hashed(), drawn()), st.integers(1, 9))
def test_any_map(isa, m, parts):
    check(m, (parts,), 0.7)


def rows(m: Mapping, dim: int, ids: np.ndarray, table: bool) -> np.ndarray:
    sums, grad = np.zeros(m.n_memory, np.float32), gradient(len(ids) * dim)
    plan = Plan(m.to_list(), 0.37, table)
    args = (plan.plan, dim, ids.ctypes.data, len(ids), grad.ctypes.data, sums.ctypes.data)
    lib.roast_embedding_scatter(*args)
    places = (ids[:, None] * dim + np.arange(dim)).ravel()
    want, bound = adjoint(m, 0.37, grad, places)
    assert (np.abs(sums - want) <= bound).all()
    return sums


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(hashed(), drawn(), tables()), st.booleans(), st.data())
def test_rows_of_any_map(isa, m, table, data):
    dims = [d for d in range(1, m.numel + 1) if m.numel % d == 0] if m.numel < 5000 else [m.shape[-1]]
    dim = data.draw(st.sampled_from(dims))
    ids = data.draw(st.lists(st.integers(0, m.numel // dim - 1), max_size=9))
    rows(m, dim, np.array(ids, np.int64), table)


def test_a_row_may_come_many_times(isa):
    m = MAPS["rows of inputs"]
    rows(m, m.shape[1], np.repeat(np.array([3, 69, 3, 0], np.int64), 999), True)


@pytest.mark.parametrize("name", [*MAPS, *LARGE])
def test_every_instruction_set_gives_the_same_bits(name):
    m = (MAPS | LARGE)[name]
    grad, each = gradient(m.numel), []
    for k in FOUND.values():
        assert lib.roast_force_isa(k) == 0
        each.append(scatter(Plan(m.to_list(), 0.7, True), grad, m.n_memory, 2))
    assert lib.roast_force_isa(-1) == 0
    for other in each[1:]:
        assert_same_bits(other, each[0])


def test_what_is_there_stays(isa):
    """Parts add to what stands in sums, and touch nothing behind it."""
    m = MAPS["ragged"]
    plan, grad, nothing = Plan(m.to_list()), gradient(m.numel), np.zeros(m.numel, np.float32)
    clean = scatter(plan, grad, m.n_memory, 1)
    sums = np.full(m.n_memory + 64, 3.0, np.float32)
    lib.roast_scatter_part(plan.plan, nothing.ctypes.data, 0, 1, sums.ctypes.data)
    assert (sums == 3).all()
    lib.roast_scatter_part(plan.plan, grad.ctypes.data, 0, 1, sums.ctypes.data)
    np.testing.assert_allclose(sums[: m.n_memory], clean + 3, rtol=0, atol=1e-4)
    assert (sums[m.n_memory :] == 3).all()


@pytest.mark.parametrize("change", ["a gradient", "a sign", "a part is missing"])
def test_control_wrong_sums_are_refused(change):
    m = LARGE["matrices"]
    grad = gradient(m.numel)
    want, bound = adjoint(m, 1.0, grad, np.arange(m.numel))
    plan = Plan(m.to_list())
    if change == "a gradient":
        grad[12345] += 0.1
    elif change == "a sign":
        grad[12345] *= -1
    got = scatter(plan, grad, m.n_memory, 3)
    if change == "a part is missing":
        got = np.zeros(m.n_memory, np.float32)
        lib.roast_scatter_part(plan.plan, grad.ctypes.data, 0, 3, got.ctypes.data)
    assert not (np.abs(got - want) <= bound + 2.0**-22 * np.abs(want)).all()
