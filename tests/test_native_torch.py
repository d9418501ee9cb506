"""libroast_torch: the operators as torch calls them, against the reference and against bad arguments."""

from __future__ import annotations

import ctypes as c
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roast_export import torch_ops
from roast_export.errors import MappingError
from roast_export.libraries import torch_library_path
from roast_export.mapping import Element, Hash, Mapping, Sign
from tests.mappings import drawn, hashed, pattern

if torch_ops.LIBRARY_ABSENT:
    pytest.skip(torch_ops.LIBRARY_ABSENT, allow_module_level=True)

ops = torch.ops.roast
lib = c.CDLL(torch_library_path())
lib.roast_torch_plans.restype = c.c_size_t
lib.roast_available_isas.restype = c.c_uint32

VECTORS = Path(__file__).parent / "vectors" / "mapping.json"
GOLDEN = {
    v["name"]: (Mapping.from_list(v["mapping"]), v["scale"])
    for v in json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]
}
TABLES = {name: (m, scale) for name, (m, scale) in GOLDEN.items() if len(m.shape) == 2}
# One vector has a scale that makes weights infinite: a matter of gathers.
FINITE = {name: (m, scale) for name, (m, scale) in GOLDEN.items() if abs(scale) < 1e30}
P = 2038074743
TILED = Mapping(
    *((200, 75), 4 * 1024 + 48, (200, 75), True, (32, 32)),
    hash1=Hash(P, 964393934, 1043130726, 0, 1539087825),
    range=(3 * 1024 + 48) // 16 + 1,
    align=16,
    sign=Sign.TILE,
    sign_hash=Hash(P, 1937116053, 71032107, 0, 293808066),
)
DRAWN = Mapping(
    *((300, 400), 5000, (300, 400)),
    range=2**29,
    element=Element.MT19937_64,
    seed=9,
    sign=Sign.MT19937,
    sign_seed=9,
    sign_skip=3,
)
LIMIT = 60.0
"""Of `worst`, in units of float32's rounding."""


def array(m: Mapping, dtype: type = np.float32) -> torch.Tensor:
    return torch.from_numpy(pattern(m.n_memory, dtype))


def weight(m: Mapping, scale: float, dtype: type = np.float32) -> np.ndarray:
    with np.errstate(over="ignore"):
        return m.weight(pattern(m.n_memory, dtype), scale)


def assert_same_bits(got: torch.Tensor, want: np.ndarray) -> None:
    assert got.dtype == torch.float32
    assert tuple(got.shape) == want.shape
    np.testing.assert_array_equal(got.numpy().view(np.uint32), np.ascontiguousarray(want).view(np.uint32))


def worst(got: torch.Tensor, want: np.ndarray, absolute: np.ndarray) -> float:
    """The largest error of a sum, in units of float32's rounding of the sum of absolute values."""
    assert np.isfinite(got.numpy()).all()
    unit = 2.0**-24 * absolute + 2.0**-126
    return float(np.max(np.abs(got.numpy() - want) / unit)) if want.size else 0.0


def product_error(y: torch.Tensor, x: torch.Tensor, w: np.ndarray, bias: torch.Tensor | None = None) -> float:
    x64, w64 = x.double().numpy(), w.reshape(len(w), -1).astype(np.float64)
    b64 = np.zeros(len(w)) if bias is None else bias.double().numpy()
    return worst(y, x64 @ w64.T + b64, np.abs(x64) @ np.abs(w64).T + np.abs(b64))


def adjoint_error(
    got: torch.Tensor, grad: np.ndarray, slots: np.ndarray, signs: np.ndarray, scale: float
) -> float:
    terms = np.float64(np.float32(scale)) * signs.ravel() * grad.ravel().astype(np.float64)
    want, absolute = np.zeros(len(got)), np.zeros(len(got))
    np.add.at(want, slots.ravel(), terms)
    np.add.at(absolute, slots.ravel(), np.abs(terms))
    return worst(got, want, absolute * 4)


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


@pytest.fixture(params=["portable", "neon", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    number = ["portable", "neon", "avx2", "avx512"].index(request.param)
    if lib.roast_force_isa(number):
        pytest.skip(f"no {request.param} here")
    yield request.param
    assert lib.roast_force_isa(-1) == 0


# ---- Equal to the reference ----


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_golden_gathers_are_equal_to_the_bit(name, dtype):
    m, scale = GOLDEN[name]
    assert_same_bits(ops.gather(array(m, dtype), m.to_list(), scale), weight(m, scale, dtype))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_golden_rows_are_equal_to_the_bit(name, dtype):
    m, scale = TABLES[name]
    ids = torch.arange(m.shape[0]).flip(0).repeat(2, 1)
    got = ops.embedding(array(m, dtype), ids, m.to_list(), scale)
    assert_same_bits(got, weight(m, scale, dtype)[ids.numpy()])


@pytest.mark.parametrize("name", FINITE)
def test_golden_products_are_within_rounding(name):
    m, scale = FINITE[name]
    x, bias = random(5, m.numel // m.shape[0]), random(m.shape[0]) * 100
    for dtype in (np.float32, np.float16):
        w = weight(m, scale, dtype)
        assert product_error(ops.linear(x, array(m, dtype), None, m.to_list(), scale), x, w) < LIMIT
        assert product_error(ops.linear(x, array(m, dtype), bias, m.to_list(), scale), x, w, bias) < LIMIT


@pytest.mark.parametrize("name", FINITE)
def test_golden_gradients_are_within_rounding(name):
    m, scale = FINITE[name]
    grad = random(*m.shape)
    got = ops.gather_backward(grad, m.to_list(), scale)
    assert adjoint_error(got, grad.numpy(), m.indices(), m.signs(), scale) < LIMIT
    if len(m.shape) == 2:
        ids = torch.arange(3 * m.shape[0]).flip(0) % m.shape[0]
        rows = random(len(ids), m.shape[1])
        got = ops.embedding_backward(rows, ids, m.to_list(), scale)
        slots, signs = m.indices()[ids.numpy()], m.signs()[ids.numpy()]
        assert adjoint_error(got, rows.numpy(), slots, signs, scale) < LIMIT


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(hashed(), drawn()), st.sampled_from([np.float32, np.float16]))
def test_any_map(m, dtype):
    w = weight(m, 0.37, dtype)
    assert_same_bits(ops.gather(array(m, dtype), m.to_list(), 0.37), w)
    grad = random(*m.shape)
    got = ops.gather_backward(grad, m.to_list(), 0.37)
    assert adjoint_error(got, grad.numpy(), m.indices(), m.signs(), 0.37) < LIMIT
    x = random(3, m.numel // m.shape[0])
    assert product_error(ops.linear(x, array(m, dtype), None, m.to_list(), 0.37), x, w) < LIMIT


def test_every_instruction_set(isa):
    for m in (TILED, DRAWN):
        assert_same_bits(ops.gather(array(m), m.to_list(), -1.7), weight(m, -1.7))
        x = random(9, m.shape[1])
        assert product_error(ops.linear(x, array(m), None, m.to_list(), -1.7), x, weight(m, -1.7)) < LIMIT


def test_a_plan_belongs_to_the_instruction_set_it_was_made_for():
    fields = Mapping((11, 13), 17, (11, 13)).to_list()
    before = lib.roast_torch_plans()
    assert lib.roast_force_isa(0) == 0
    ops.gather(torch.ones(17), fields, 1.0)
    assert lib.roast_force_isa(-1) == 0
    ops.gather(torch.ones(17), fields, 1.0)
    one_set_only = lib.roast_available_isas() == 1
    assert lib.roast_torch_plans() - before == (1 if one_set_only else 2)


@pytest.mark.parametrize("change", ["a weight", "an input", "a gradient"])
def test_control_a_wrong_result_is_refused(change):
    x, grad, w = random(7, 75), random(200, 75), weight(TILED, 0.5)
    y = ops.linear(x, array(TILED), None, TILED.to_list(), 0.5)
    sums = ops.gather_backward(grad, TILED.to_list(), 0.5)
    if change == "a weight":
        w[-1, -1] += np.abs(w[-1]).sum()
        assert product_error(y, x, w) > 1000
    elif change == "an input":
        x[-1, 0] += 10 * x[-1].abs().sum()
        assert product_error(y, x, w) > 1000
    else:
        grad[-1, -1] += 10
        assert adjoint_error(sums, grad.numpy(), TILED.indices(), TILED.signs(), 0.5) > 1000


# ---- Shapes, strides, types ----


@pytest.mark.parametrize("shape", [(75,), (1, 75), (5, 75), (2, 3, 75), (2, 1, 4, 75), (0, 75), (3, 0, 75)])
def test_inputs_of_any_rank(shape):
    x, bias = random(*shape), random(200)
    y = ops.linear(x, array(TILED), bias, TILED.to_list(), 0.5)
    assert tuple(y.shape) == (*shape[:-1], 200)
    w = weight(TILED, 0.5)
    assert product_error(y.reshape(-1, 200), x.reshape(-1, 75), w, bias) < LIMIT


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0,), (2, 0, 3), (2, 1, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_of_any_shape(shape, dtype):
    ids = (torch.arange(12)[: int(np.prod(shape))].reshape(shape) * 17).to(dtype)
    got = ops.embedding(array(TILED), ids, TILED.to_list(), 0.5)
    assert_same_bits(got, weight(TILED, 0.5)[ids.numpy()])
    back = ops.embedding_backward(got, ids, TILED.to_list(), 0.5)
    slots, signs = TILED.indices()[ids.numpy()], TILED.signs()[ids.numpy()]
    assert adjoint_error(back, got.numpy(), slots, signs, 0.5) < LIMIT


def spread(t: torch.Tensor) -> torch.Tensor:
    """The same values with gaps between them."""
    gaps = t.new_empty(*t.shape, 2)
    gaps[..., 0] = t
    return gaps[..., 0]


def turned(t: torch.Tensor) -> torch.Tensor:
    """The same values, stored the other way round."""
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


@pytest.mark.parametrize("stored", [spread, turned, lambda t: t[None].expand(3, *t.shape)[1]])
def test_strides_change_no_bit(stored):
    memory, x, bias, grad = array(TILED), random(4, 2, 75), random(200), random(200, 75)
    ids, rows = torch.arange(12).reshape(3, 4), random(3, 4, 75)
    tail = (TILED.to_list(), 0.5)
    for op, tensors in (
        (ops.gather, [memory]),
        (ops.linear, [x, memory, bias]),
        (ops.embedding, [memory, ids]),
        (ops.gather_backward, [grad]),
        (ops.embedding_backward, [rows, ids]),
    ):
        assert torch.equal(op(*map(stored, tensors), *tail), op(*tensors, *tail))


def test_a_result_is_contiguous_and_of_its_own():
    memory = array(TILED)
    first, second = (ops.gather(memory, TILED.to_list(), 1.0) for _ in range(2))
    assert first.is_contiguous()
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_computed_in_aten(dtype):
    memory, x, ids = array(TILED).to(dtype), random(4, 75).to(dtype), torch.tensor([3, 199])
    grad, tail = random(200, 75).to(dtype), (TILED.to_list(), 0.5)
    assert torch.equal(ops.gather(memory, *tail), ops.gather_aten(memory, *tail))
    assert torch.equal(ops.embedding(memory, ids, *tail), ops.embedding_aten(memory, ids, *tail))
    assert torch.equal(ops.gather_backward(grad, *tail), ops.gather_backward_aten(grad, *tail))
    if dtype == torch.float64:
        bias = random(200).to(dtype)
        assert torch.equal(ops.linear(x, memory, bias, *tail), ops.linear_aten(x, memory, bias, *tail))
        assert torch.equal(ops.linear(x, memory, None, *tail), ops.linear_aten(x, memory, None, *tail))


# ---- Threads ----


@pytest.mark.parametrize("m", [TILED, DRAWN], ids=["tiles", "drawn"])
def test_the_number_of_threads_changes_no_bit(m):
    x, grad, memory = random(50, m.shape[1]), random(*m.shape), array(m)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = ops.linear(x, memory, None, m.to_list(), 0.3)
            results.append(
                (y, ops.gather_backward(grad, m.to_list(), 0.3), ops.gather(memory, m.to_list(), 0.3))
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_threads_of_the_program_share_plans():
    names = sorted(TABLES)[:6]
    maps = [TABLES[name][0] for name in names] + [TILED]
    wanted = [weight(m, 0.37) for m in maps]

    def work(k: int) -> bool:
        for turn in range(40):
            m, w = maps[(k + turn) % len(maps)], wanted[(k + turn) % len(maps)]
            scale = 0.37
            ids = torch.arange(m.shape[0])
            x = random(2, m.shape[1])
            if not np.array_equal(ops.gather(array(m), m.to_list(), scale).numpy(), w):
                return False
            if not np.array_equal(ops.embedding(array(m), ids, m.to_list(), scale).numpy(), w):
                return False
            if product_error(ops.linear(x, array(m), None, m.to_list(), scale), x, w) >= LIMIT:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# ---- Bad arguments ----

GOOD = {"memory": array(TILED), "mapping": TILED.to_list(), "scale": 0.5, "x": random(2, 75), "bias": None,
        "ids": torch.tensor([1, 2]), "grad": random(200, 75), "rows": random(2, 75)}  # fmt: skip
CALLS: dict[str, Callable[..., torch.Tensor]] = {
    "gather": lambda a: ops.gather(a["memory"], a["mapping"], a["scale"]),
    "embedding": lambda a: ops.embedding(a["memory"], a["ids"], a["mapping"], a["scale"]),
    "linear": lambda a: ops.linear(a["x"], a["memory"], a["bias"], a["mapping"], a["scale"]),
    "gather_backward": lambda a: ops.gather_backward(a["grad"], a["mapping"], a["scale"]),
    "embedding_backward": lambda a: ops.embedding_backward(a["rows"], a["ids"], a["mapping"], a["scale"]),
}
BAD_MAPPINGS = {
    "none": ([], "wrong length"),
    "short": (TILED.to_list()[:-1], "wrong length"),
    "long": ([*TILED.to_list(), 1], "wrong length"),
    "huge": ([1] * 100_000, "a mapping list of 100000 integers has the wrong length"),
    "another version": ([2, *TILED.to_list()[1:]], "version"),
    "no array": ([*TILED.to_list()[:3], 0, *TILED.to_list()[4:]], "n_memory 0 is not in"),
    "negative shape": ([*TILED.to_list()[:-1], -75], "shape"),
    "smallest integers": ([-(2**63)] * 34, "wrong length"),
}
WEIGHTED = "gather linear embedding"
LOOKUPS = "embedding embedding_backward"
BAD = {
    "memory too short": (WEIGHTED, {"memory": array(TILED)[1:]},
                         "memory has 4143 elements in 1 dimensions, the mapping needs 4144 in one"),
    "memory of rank 2": (WEIGHTED, {"memory": array(TILED)[None]}, "in 2 dimensions"),
    "memory of no rank": (WEIGHTED, {"memory": torch.tensor(1.0)}, "in 0 dimensions"),
    "memory of integers": (WEIGHTED, {"memory": array(TILED).int()},
                           "memory is int32, it must be float32 or float16"),
    "memory of complex": (WEIGHTED, {"memory": array(TILED).to(torch.complex64)}, "of another type"),
    "scale nan": (" ".join(CALLS), {"scale": float("nan")}, "scale is not a finite float32"),
    "scale infinite": (" ".join(CALLS), {"scale": float("-inf")}, "scale is not a finite float32"),
    "scale too large": (" ".join(CALLS), {"scale": 3.5e38}, "scale is not a finite float32"),
    "x too narrow": ("linear", {"x": random(2, 74)},
                     "the last dimension of x is 74, the weight needs 75"),
    "x turned": ("linear", {"x": random(75, 2)}, "the last dimension of x is 2"),
    "x of no columns": ("linear", {"x": random(2, 0)}, "the last dimension of x is 0"),
    "x of no rank": ("linear", {"x": torch.tensor(1.0)}, "x has no dimensions"),
    "x of integers": ("linear", {"x": random(2, 75).long()}, "x is int64, it must be float32"),
    "bias too long": ("linear", {"bias": random(201)}, "bias has 201 elements in 1 dimensions"),
    "bias of rank 2": ("linear", {"bias": random(1, 200)}, "bias has 200 elements in 2 dimensions"),
    "bias of bools": ("linear", {"bias": random(200) > 0}, "bias is of another type"),
    "ids of floats": (LOOKUPS, {"ids": torch.tensor([1.0, 2.0])}, "ids must be int64 or int32"),
    "ids of bytes": (LOOKUPS, {"ids": torch.tensor([1, 2], dtype=torch.uint8)}, "ids must be"),
    "gradient turned": ("gather_backward", {"grad": random(75, 200)},
                        "grad has not the shape of the weight"),
    "gradient flat": ("gather_backward", {"grad": random(200 * 75)}, "grad has not the shape"),
    "gradient of integers": ("gather_backward", {"grad": random(200, 75).long()}, "grad is int64"),
    "rows too few": ("embedding_backward", {"rows": random(1, 75)},
                     "grad has not the shape of the rows"),
    "rows of rank 3": ("embedding_backward", {"rows": random(1, 2, 75)},
                       "grad has not the shape of the rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_control_the_good_arguments_are_accepted(name):
    assert CALLS[name](GOOD).dtype == torch.float32


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("name", BAD_MAPPINGS)
def test_bad_mappings_are_refused(op, name):
    fields, text = BAD_MAPPINGS[name]
    with pytest.raises(RuntimeError, match=f"roast::{op}: .*{text}"):
        CALLS[op]({**GOOD, "mapping": fields})


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name):
    where, arguments, text = BAD[name]
    for op in where.split():
        with pytest.raises(RuntimeError, match=re.escape(text)):
            CALLS[op]({**GOOD, **arguments})


def test_an_embedding_needs_a_table():
    m = Mapping((2, 3, 4), 5, (2, 12))
    with pytest.raises(RuntimeError, match="the weight has 3 dimensions, an embedding has 2"):
        ops.embedding(array(m), torch.tensor([0]), m.to_list(), 1.0)
    with pytest.raises(RuntimeError, match="the weight has 3 dimensions"):
        ops.embedding_backward(random(1, 12), torch.tensor([0]), m.to_list(), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ids", [[3, 200], [-1], [2**63 - 1], [-(2**63), 0]])
def test_an_id_outside_the_table_is_an_index_error(dtype, ids):
    bad = next(k for k, i in enumerate(ids) if not 0 <= i < 200)
    text = re.escape(f"an id is outside [0, 200): {ids[bad]} at place {bad}")
    with pytest.raises(IndexError, match=text):
        ops.embedding(array(TILED).to(dtype), torch.tensor(ids), TILED.to_list(), 0.5)
    with pytest.raises(IndexError, match=text):
        ops.embedding_backward(random(len(ids), 75).to(dtype), torch.tensor(ids), TILED.to_list(), 0.5)


def test_sizes_beyond_memory_are_an_error():
    sizes = (2**24, 2**24)
    fields = Mapping(sizes, 4144, sizes).to_list()
    with pytest.raises(RuntimeError, match="allocate"):
        ops.gather(array(TILED), fields, 1.0)
    with pytest.raises(RuntimeError, match="allocate"):
        ops.linear(torch.zeros(1).expand(sizes), array(TILED), None, fields, 1.0)
    ids = torch.zeros(1, dtype=torch.int64).expand(2**45)
    with pytest.raises(RuntimeError, match="allocate"):
        ops.embedding(array(TILED), ids, TILED.to_list(), 1.0)


edges = st.sampled_from([0, 1, -1, 2, 3, 7, 16, 32, 2**30, 2**31, 2**32, 2**48, 2**62, 2**63 - 1, -(2**63)])


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(hashed(), drawn()), st.lists(st.tuples(st.integers(0, 35), edges), min_size=1, max_size=3))
def test_a_hostile_list_is_refused_or_right(m, changes):
    fields = m.to_list()
    for place, value in changes:
        fields[place % len(fields)] = value
    try:
        m = Mapping.from_list(fields)
    except MappingError:
        with pytest.raises(RuntimeError, match="roast::gather"):
            ops.gather(array(m), fields, 1.0)
        return
    if m.numel <= 1 << 20 and m.n_memory <= 1 << 20:
        assert_same_bits(ops.gather(array(m), fields, 1.0), weight(m, 1.0))
