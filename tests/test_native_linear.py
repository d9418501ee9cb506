"""RoastLinear through the C ABI and in ONNX Runtime: every instruction set against float64 products."""

from __future__ import annotations

import ctypes as c
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from roast_export.mapping import Element, Hash, Mapping, Sign
from tests.mappings import drawn, hashed, hashes, pattern
from tests.onnx_models import DOMAIN, attributes
from tests.test_native_kernel import LARGE, Plan, assert_same_bits, lib
from tests.test_native_ort import session

VECTORS = Path(__file__).parent / "vectors" / "mapping.json"
ISAS = {"portable": 0, "neon": 1, "avx2": 2, "avx512": 3}
BATCHES = (0, *range(1, 18), 33, 128)
P = 2038074743

_sizes = ("roast_linear_scratch_bytes", "roast_linear_pack_parts", "roast_linear_parts")
for _name in _sizes:
    getattr(lib, _name).argtypes = [c.c_void_p, c.c_int, c.c_size_t]
    getattr(lib, _name).restype = c.c_size_t
lib.roast_linear_pack_part.argtypes = [c.c_void_p, c.c_int, c.c_void_p, c.c_size_t, c.c_void_p, c.c_size_t]
lib.roast_linear_part.argtypes = [
    *(c.c_void_p, c.c_void_p, c.c_int, c.c_void_p, c.c_size_t, c.c_void_p, c.c_void_p, c.c_size_t),
    c.c_void_p,
]
lib.roast_available_isas.restype = c.c_uint32
lib.roast_force_isa.argtypes = [c.c_int]
FOUND = {name: k for name, k in ISAS.items() if lib.roast_available_isas() >> k & 1}


@pytest.fixture(params=FOUND)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert lib.roast_force_isa(FOUND[request.param]) == 0
    yield request.param
    assert lib.roast_force_isa(-1) == 0


def linear(
    m: Mapping,
    x: np.ndarray,
    memory: np.ndarray,
    bias: np.ndarray | None = None,
    scale: float = 1.0,
    table: bool = True,
    backwards: bool = False,
) -> np.ndarray:
    """x @ W^T + bias by parts; scratch and output have just the size they must have."""
    plan = Plan(m.to_list(), scale, table)
    n, out = x.shape[0], m.shape[0]
    half = int(memory.dtype == np.float16)
    call = (plan.plan, half, n)
    bytes_ = lib.roast_linear_scratch_bytes(*call)
    block = np.full(bytes_ + 64, 255, np.uint8)
    scratch = block.ctypes.data + -block.ctypes.data % 64
    y = np.full((n, out), np.nan, np.float32)
    order = reversed if backwards else iter
    for part in order(range(lib.roast_linear_pack_parts(*call))):
        lib.roast_linear_pack_part(plan.plan, half, x.ctypes.data, n, scratch, part)
    bias_at = None if bias is None else bias.ctypes.data
    for part in order(range(lib.roast_linear_parts(*call))):
        args = (plan.plan, memory.ctypes.data, half, x.ctypes.data, n, bias_at, scratch, part)
        lib.roast_linear_part(*args, y.ctypes.data)
    return y


def worst(y: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> float:
    """The largest error, in units of float32's rounding of sum |x| |W| + |bias|."""
    if y.size == 0:
        return 0.0
    x64, w64 = x.astype(np.float64), weight.astype(np.float64)
    b64 = np.zeros(len(w64)) if bias is None else bias.astype(np.float64)
    unit = 2.0**-24 * (np.abs(x64) @ np.abs(w64).T + np.abs(b64)) + 2.0**-126
    assert np.isfinite(y).all()
    return float(np.max(np.abs(y - (x64 @ w64.T + b64)) / unit))


LIMIT = 40.0


def inputs(n: int, m: Mapping) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    out = m.shape[0]
    x = rng.standard_normal((n, m.numel // out), np.float32)
    return x, rng.standard_normal(out, np.float32) * 100


def check(m: Mapping, n: int, dtype: type = np.float32, scale: float = -0.37, table: bool = True) -> None:
    memory = pattern(m.n_memory, dtype)
    x, bias = inputs(n, m)
    weight = m.weight(memory, scale).reshape(m.shape[0], -1)
    for b in (None, bias):
        assert worst(linear(m, x, memory, b, scale, table), x, weight, b) < LIMIT


def roast(out: int, n_in: int, tile: tuple[int, int], transposed: bool = True, **more: object) -> Mapping:
    """A map of this package's own family, as compress makes them."""
    slots = tile[0] * tile[1]
    n_memory = more.pop("n_memory", 4 * slots + 48)
    values = {
        "hash1": Hash(P, 964393934, 1043130726, 0, 1539087825),
        "range": (n_memory - slots) // 16 + 1,
        "align": 16,
        "sign": Sign.TILE,
        "sign_hash": Hash(P, 1937116053, 71032107, 0, 293808066),
    } | more
    return Mapping((out, n_in), n_memory, (out, n_in), transposed, tile, **values)


MAPS = {
    "one element": roast(1, 1, (32, 32)),
    "one output": roast(1, 300, (32, 32)),
    "one input": roast(77, 1, (32, 32)),
    "whole tiles": roast(128, 96, (32, 32)),
    "ragged": roast(109, 75, (32, 32)),
    "ragged by one": roast(97, 65, (32, 32)),
    "tiles of 16": roast(150, 70, (16, 16)),
    "flat tiles": roast(70, 45, (4, 16)),
    "rows of 16": roast(70, 45, (1, 16)),
    "wide tiles": roast(200, 70, (32, 64)),
    "tile wider than the layer": roast(40, 70, (16, 128)),
    "tile longer than the layer": roast(40, 70, (128, 16)),
    "no multiple of 16": roast(60, 70, (8, 24)),
    "single elements": roast(20, 30, (1, 1)),
    "origin": roast(109, 75, (32, 64), origin=(45, 16)),
    "origin off by 3": roast(109, 75, (32, 64), origin=(45, 19)),
    "starts anywhere": roast(109, 75, (32, 32), align=1, range=3121),
    "wraps": roast(109, 75, (32, 32), align=1, range=4144),
    "many passes": roast(20, 9001, (16, 32)),
    "rows of inputs": roast(70, 300, (1, 32), False),
    "blocks of inputs": roast(71, 135, (5, 48), False),
    "inputs, ragged": roast(9, 131, (3, 17), False, origin=(4, 5)),
    "inputs, wraps": roast(30, 131, (3, 17), False, align=1, range=252),
    "narrow, as is": roast(30, 40, (8, 4), False),
    "two levels": Mapping((70, 129), 2500, (70, 129), True, (32, 64), (0, 0), Hash(45007, 5, 7),
                          Hash(45007, 9, 2), 452),
    "flat": Mapping((300, 40), 999, (1, 12000), origin=(0, 777), hash1=Hash(2**31 - 1, 5, 7, 9, 3),
                    range=999),
    "tile is the array": Mapping((30, 40), 500, (1, 1200), tile=(1, 500), origin=(0, 77),
                                 hash1=Hash(2**31 - 1, 5, 7, 9, 3), range=500),
    "mt19937 signs": Mapping((70, 101), 5000, (70, 101), True, (16, 32), hash1=Hash(45007, 5, 7), range=4000,
                             sign=Sign.MT19937, sign_seed=7, sign_skip=9),
    "drawn": Mapping((70, 101), 5000, (70, 101), range=2**29, element=Element.MT19937_64, seed=9,
                     sign=Sign.MT19937, sign_seed=9, sign_skip=3),
}  # fmt: skip


# So few places for rows of tiles that inputs which meet the same slots are added first.
MERGED = {
    "meet": roast(128, 320, (32, 32), n_memory=1200),
    "meet, ragged": roast(109, 331, (32, 32), n_memory=1200),
    "meet, origin": roast(109, 331, (32, 32), n_memory=1200, origin=(45, 64)),
    "meet, one place": roast(70, 45, (4, 16), n_memory=64),
    "meet, wide tiles": roast(200, 300, (16, 64), n_memory=1400),
    "meet, aligned tiles": roast(300, 300, (16, 64), n_memory=1400, align=64, range=6),
    "meet, another alignment": roast(97, 333, (32, 32), n_memory=1200, align=48, range=4),
    "meet, starts anywhere": roast(109, 2900, (32, 32), n_memory=1200, align=1, range=177),
    "meet, wider than the layer": roast(40, 470, (16, 128), n_memory=2400),
}
MAPS |= MERGED

# The same, of so many places that they are taken in passes.
PASSES = {
    "meet in passes": roast(150, 1300, (16, 64), n_memory=54_400, align=64, range=835),
    "meet in passes, classes": roast(109, 1901, (32, 32), n_memory=21_000, origin=(45, 64)),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_layers(isa, name, dtype):
    m = MAPS[name]
    for n in BATCHES if m.numel < 100_000 else (1, 2, 13, 128):
        check(m, n, dtype)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_large_layers(isa, name, dtype):
    """Several parts, passes, chunks of rows and generator states."""
    for n in (1, 5, 64):
        check(LARGE[name], n, dtype)


FAR = {
    "tiles overlap": roast(700, 413, (32, 32), n_memory=270_000),
    "slices": roast(1100, 1000, (32, 64), n_memory=70_000, origin=(7, 32)),
    "tiles do not overlap": roast(700, 413, (32, 32), n_memory=600_000),
}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrays_far_from_the_processor(isa, name, dtype):
    """A few rows go tile by tile, in the order of the array; which ones, the array's size decides.

    Many rows read a copy of each panel.
    """
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 26, 77):
        check(FAR[name], n, dtype)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_passes_over_places(isa, name, dtype):
    """Blocks of rows that are filled up to whole vectors, and blocks that are not."""
    for n in (1, 2, 6, 7, 8, 13, 16, 17, 26, 128):
        check(PASSES[name], n, dtype)


@pytest.mark.parametrize("n", [95, 97, 200, 300])
def test_chunks_of_rows(isa, n):
    """Parts are cut by rows and by outputs; each row and each output is in one of them."""
    for m in (MAPS["ragged"], roast(300, 1100, (32, 32))):
        check(m, n)


def test_a_last_chunk_too_small_to_copy_panels(isa):
    """801 or 1601 blocks of rows in 51 chunks, the last of which is one block of not all its rows."""
    check(MAPS["ragged"], 9606)


@pytest.mark.parametrize("name", ["tiles overlap", *MERGED, *PASSES])
def test_inputs_that_meet_the_same_slots_are_added_first(isa, name):
    """Seen where the sum of two inputs is too large for float32, and their products are not."""
    m = (MAPS | PASSES | FAR)[name]
    signed = (m.indices()[0] + 1) * m.signs()[0]
    same = [np.flatnonzero(signed == slot) for slot in signed]
    x = np.zeros((1, m.shape[1]), np.float32)
    x[0, max(same, key=len)[:2]] = 3e38
    y = linear(m, x, np.full(m.n_memory, 1e-38, np.float32))
    assert np.isfinite(y[0, 0]) == (name not in MERGED | PASSES)


@pytest.mark.parametrize("tile", [(32, 32), (4, 2**27), (16, 2**25)])
def test_the_largest_layer_has_a_plan(tile):
    """What decides how it is cut must not overflow; the sanitizers see it."""
    m = roast(16, 2**44, tile, n_memory=2**30, align=tile[1], range=2)
    assert lib.roast_linear_parts(Plan(m.to_list()).plan, 0, 1) > 0


def test_golden_vectors(isa):
    vectors = json.loads(VECTORS.read_text())["vectors"]
    # One vector has a scale that makes weights infinite: a matter of gathers.
    maps = [(Mapping.from_list(v["mapping"]), v["scale"]) for v in vectors if abs(v["scale"]) < 1e30]
    assert sum(len(m.shape) == 2 for m, _ in maps) > 10
    for m, scale in maps:
        for n in (1, 3, 13):
            check(m, n, np.float32, scale)
            check(m, n, np.float16, scale, table=False)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(hashed(), drawn()), st.integers(0, 20), st.sampled_from([np.float32, np.float16]), st.booleans()
)
def test_any_map(isa, m, n, dtype, table):
    check(m, n, dtype, 0.7, table)


@pytest.mark.parametrize("name", ["ragged", "rows of inputs", "single elements"])
@pytest.mark.parametrize("change", ["a weight", "an input", "a row of tiles"])
def test_control_a_wrong_product_is_refused(isa, name, change):
    m = MAPS[name]
    memory = pattern(m.n_memory)
    x, _ = inputs(7, m)
    weight = m.weight(memory).copy()
    y = linear(m, x, memory)
    if change == "a weight":
        weight[-1, -1] += np.abs(weight[-1]).sum()
    elif change == "an input":
        x[-1, 0] += 10 * np.abs(x[-1]).sum()
    else:
        weight[:, :16] *= -1
    assert worst(y, x, weight, None) > 1000


@pytest.mark.parametrize("name", MAPS | FAR)
def test_the_order_of_parts_changes_no_bit(isa, name):
    m = (MAPS | FAR)[name]
    memory = pattern(m.n_memory)
    for n in (3, 30) if name in MAPS else (1, 3, 300):
        x, bias = inputs(n, m)
        forwards = linear(m, x, memory, bias)
        assert_same_bits(linear(m, x, memory, bias, backwards=True), forwards)


def test_nothing_of_x_but_its_rows_is_read(isa):
    """A row of the output depends on its row of x alone."""
    m = MAPS["ragged"]
    memory, (x, _) = pattern(m.n_memory), inputs(13, MAPS["ragged"])
    clean = linear(m, x, memory)
    x[4] = np.nan
    dirty = linear(m, x, memory)
    assert np.isnan(dirty[4]).all()
    assert_same_bits(np.delete(dirty, 4, 0), np.delete(clean, 4, 0))


# ---- Gathers and embeddings: the same bits, whatever computes them ----


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(hashed(), drawn()), st.sampled_from([np.float32, np.float16]), st.data())
def test_gathers_and_rows_are_equal_to_the_bit(isa, m, dtype, data):
    memory = pattern(m.n_memory, dtype)
    want = m.weight(memory, 0.37)
    plan = Plan(m.to_list(), 0.37, table=data.draw(st.booleans()))
    assert_same_bits(plan.gather(memory, m.numel), want)
    dim = data.draw(st.sampled_from([d for d in range(1, m.numel + 1) if m.numel % d == 0]))
    ids = np.array(data.draw(st.lists(st.integers(0, m.numel // dim - 1), max_size=9)), np.int64)
    assert_same_bits(plan.rows(memory, dim, ids), want.reshape(-1, dim)[ids])


@st.composite
def tables(draw: st.DrawFn) -> Mapping:
    """Embeddings whose rows are whole tiles, with all that a hash of 64 bits can meet."""
    width, across = draw(st.sampled_from([1, 3, 16, 32])), draw(st.integers(1, 5))
    align = draw(st.sampled_from([1, 3, 16]))
    n_memory = width + draw(st.integers(0, 2000))
    origins = st.one_of(st.integers(0, 20), st.integers(0, 2**47))
    signed = draw(st.booleans())
    return Mapping(
        shape=(shape := (draw(st.integers(1, 500)), width * across)),
        n_memory=n_memory,
        matrix=shape,
        tile=(1, width),
        origin=(draw(origins), width * draw(st.integers(0, 2**40))),
        hash1=draw(hashes),
        range=draw(st.integers(1, (n_memory - width) // align + 1)),
        align=align,
        sign=Sign.TILE if signed else Sign.NONE,
        sign_hash=draw(hashes) if signed else Hash(),
    )


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables(), st.sampled_from([np.float32, np.float16]))
def test_rows_of_whole_tiles_are_equal_to_the_bit(isa, m, dtype):
    memory = pattern(m.n_memory, dtype)
    ids = np.arange(m.shape[0], dtype=np.int64)[::-1].copy()
    assert_same_bits(Plan(m.to_list(), 0.37).rows(memory, m.shape[1], ids), m.weight(memory, 0.37)[ids])


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_large_gathers_are_equal_to_the_bit(isa, name, dtype):
    m = LARGE[name]
    memory = pattern(m.n_memory, dtype)
    assert_same_bits(Plan(m.to_list(), -1.7, table=True).gather(memory, m.numel), m.weight(memory, -1.7))


@pytest.fixture(scope="module")
def huge() -> tuple[Mapping, np.ndarray, np.ndarray]:
    """A weight that no cache holds, whose rows start at any place of a line."""
    shape = (2050, 4097)
    m = Mapping(shape, 5000, shape, True, (32, 64), (3, 5), Hash(45007, 5, 7), range=2900)
    return m, pattern(m.n_memory), m.weight(pattern(m.n_memory), 0.7)


def test_a_huge_gather_is_equal_to_the_bit(isa, huge):
    m, memory, want = huge
    assert_same_bits(Plan(m.to_list(), 0.7, table=True).gather(memory, m.numel), want)


def test_every_float16_is_equal_to_the_bit(isa):
    memory = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    m = Mapping((1 << 16,), 1 << 16, (1, 1 << 16), tile=(1, 1 << 16))
    got, want = Plan(m.to_list()).gather(memory, m.numel), memory.astype(np.float32)
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    assert_same_bits(got[~nan], want[~nan])


def test_an_instruction_set_that_is_not_there_is_refused():
    assert "portable" in FOUND
    for k in (-2, 4, 31, 99, *(set(ISAS.values()) - set(FOUND.values()))):
        assert lib.roast_force_isa(k) == 1
    assert lib.roast_force_isa(-1) == 0


# ---- In ONNX Runtime ----


SCALES = {
    # scale, least and most of the array, size of x: the sum overflows, vanishes or is of rounded weights
    # where the product with the weight does not.
    "tiny": (2.0**-100, 1e38, 3e38, 1.0),
    "zero": (0.0, 1e38, 3e38, 10.0),
    "huge": (2.0**100, 1.2e-38, 9e-38, 1e-4),
    "subnormal": (-1e-44, 0.1, 4.0, 1e36),
    "just too small": (2.0**-24 * 0.99, 1e38, 3e38, 1e-3),
}


@pytest.mark.parametrize("far", SCALES)
@pytest.mark.parametrize("name", MAPS)
def test_a_scale_far_from_one_is_in_the_weight(isa, name, far):
    m, (scale, least, most, size) = MAPS[name], SCALES[far]
    rng = np.random.default_rng(1)
    memory = (rng.choice([-1.0, 1.0], m.n_memory) * rng.uniform(least, most, m.n_memory)).astype(np.float32)
    weight = m.weight(memory, scale).reshape(m.shape[0], -1)
    for n in (1, 4, 40):
        x = (rng.standard_normal((n, weight.shape[1])) * size).astype(np.float32)
        assert worst(linear(m, x, memory, None, scale), x, weight, None) < LIMIT


def test_control_a_scale_near_one_is_in_the_sum(isa):
    """It is not applied to each element, which takes longer: only where the sum overflows that shows."""
    m = MAPS["whole tiles"]
    memory = np.full(m.n_memory, 3e38, np.float32)
    x = np.ones((4, m.shape[1]), np.float32)
    assert not np.isfinite(linear(m, x, memory, None, 2.0**-24)).all()
    assert np.isfinite(linear(m, x, memory, None, 2.0**-24 * 0.99)).all()


def model(
    m: Mapping, memory: np.ndarray, bias: np.ndarray | None, rank: int, kind: int = TensorProto.FLOAT
) -> bytes:
    names = ["x", "memory"] + ([] if bias is None else ["bias"])
    node = helper.make_node(
        "RoastLinear" + ("" if bias is None else "Bias"), names, ["y"], "fc1", domain=DOMAIN
    )
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes(m, -0.3).items())
    arrays = [numpy_helper.from_array(memory, "memory")]
    if bias is not None:
        arrays.append(numpy_helper.from_array(bias, "bias"))
    shape = [None] * rank
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        arrays,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return made


WIDE = roast(700, 513, (32, 32))


@pytest.mark.parametrize(
    "shape", [(513,), (1, 513), (5, 513), (2, 3, 513), (2, 1, 4, 513), (0, 513), (3, 0, 513)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_inputs_of_any_rank(shape, dtype, biased):
    memory = pattern(WIDE.n_memory, dtype)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    bias = np.arange(700, dtype=np.float32) if biased else None
    y = session(model(WIDE, memory, bias, len(shape))).run(None, {"x": x})[0]
    assert y.shape == (*shape[:-1], 700)
    assert worst(y.reshape(-1, 700), x.reshape(-1, 513), WIDE.weight(memory, -0.3), bias) < LIMIT


THREADED = {
    "tiles": WIDE,
    "two levels": LARGE["as is"],
    "rows": roast(700, 513, (1, 32), False),
    "elements": roast(300, 200, (1, 1)),
}


@pytest.mark.parametrize("name", THREADED)
@pytest.mark.parametrize("n", [1, 3, 16, 50])
def test_the_number_of_threads_changes_no_bit(name, n):
    m = THREADED[name]
    memory = pattern(m.n_memory)
    x, bias = inputs(n, m)
    each = [session(model(m, memory, bias, 2), threads).run(None, {"x": x})[0] for threads in (1, 2, 3, 8)]
    for other in each[1:]:
        assert_same_bits(other, each[0])


WRONG_X = {
    "too narrow": (np.zeros((3, 512), np.float32), "the last dimension of x is 512, the weight needs 513"),
    "too wide": (np.zeros((3, 514), np.float32), "the last dimension of x is 514"),
    "turned": (np.zeros((513, 3), np.float32), "the last dimension of x is 3"),
    "no columns": (np.zeros((3, 0), np.float32), "the last dimension of x is 0"),
    "no dimension": (np.zeros((), np.float32), "1 to 16 dimensions"),
    "too many dimensions": (np.zeros((1,) * 16 + (513,), np.float32), "1 to 16 dimensions"),
}


@pytest.mark.parametrize("name", WRONG_X)
def test_a_wrong_x_is_refused(name):
    x, message = WRONG_X[name]
    ready = session(model(WIDE, pattern(WIDE.n_memory), None, x.ndim))
    with pytest.raises(Exception, match=message) as caught:
        ready.run(None, {"x": x})
    assert "RoastLinear 'fc1'" in str(caught.value)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64])
def test_another_type_of_x_is_refused(kind):
    with pytest.raises(Exception, match=r"(?i)type"):
        session(model(WIDE, pattern(WIDE.n_memory), None, 2, kind))


@pytest.mark.parametrize("bias", [np.zeros(699, np.float32), np.zeros((1, 700), np.float32), np.float32(0),
                                  np.zeros(700, np.float16)])  # fmt: skip
def test_a_wrong_bias_is_refused(bias):
    with pytest.raises(Exception, match=r"bias has|(?i:type)"):
        session(model(WIDE, pattern(WIDE.n_memory), np.asarray(bias), 2)).run(
            None, {"x": np.zeros((3, 513), np.float32)}
        )


@pytest.mark.parametrize("memory", [np.zeros(5, np.float32), np.zeros((2, 2072), np.float32),
                                    np.zeros(4144, np.float64)])  # fmt: skip
def test_a_wrong_memory_is_refused(memory):
    with pytest.raises(Exception, match="memory"):
        session(model(WIDE, memory, None, 2)).run(None, {"x": np.zeros((3, 513), np.float32)})


def test_a_weight_of_three_dimensions_is_refused():
    cube = Mapping((7, 3, 4), 100, (7, 12))
    with pytest.raises(Exception, match="shape has 3 ints, it must have 2"):
        session(model(cube, pattern(100), None, 2))


def test_sixteen_threads_share_a_session():
    memory, (x, bias) = pattern(WIDE.n_memory), inputs(9, WIDE)
    shared = session(model(WIDE, memory, bias, 2))
    want, weight = shared.run(None, {"x": x})[0], WIDE.weight(memory, -0.3)

    def work(seed: int) -> None:
        rows = 1 + seed % 9
        for _ in range(20):
            whole = shared.run(None, {"x": x})[0]
            assert_same_bits(whole, want)
            some = shared.run(None, {"x": x[:rows]})[0]
            assert worst(some, x[:rows], weight, bias) < LIMIT

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
