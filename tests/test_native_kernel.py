"""custom_ops/roast_kernel.cc through its C ABI, bit by bit against the reference."""

from __future__ import annotations

import _ctypes
import ctypes as c
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roast_export.errors import MappingError, RoastError
from roast_export.libraries import ort_library_path
from roast_export.mapping import HEADER_LENGTH, Element, Hash, Mapping, Sign
from tests.mappings import drawn, hashed, pattern

VECTORS = Path(__file__).parent / "vectors" / "mapping.json"

try:
    lib = c.CDLL(ort_library_path())
except RoastError as error:
    pytest.skip(str(error), allow_module_level=True)

_i64p, _u8p, _f32p = (np.ctypeslib.ndpointer(t, flags="C") for t in (np.int64, np.uint8, np.float32))
lib.roast_plan_bytes.restype = c.c_size_t
lib.roast_plan_init.argtypes = [c.c_void_p, _i64p, c.c_size_t, c.c_float, c.c_char_p, c.c_size_t]
lib.roast_plan_table_bytes.argtypes = [c.c_void_p]
lib.roast_plan_table_bytes.restype = c.c_size_t
lib.roast_plan_attach_table.argtypes = [c.c_void_p, c.c_void_p]
lib.roast_gather_parts.argtypes = [c.c_void_p]
lib.roast_gather_parts.restype = c.c_size_t
lib.roast_gather_part.argtypes = [c.c_void_p, c.c_void_p, c.c_int, c.c_void_p, c.c_size_t, _f32p]
lib.roast_embedding_bad_id.argtypes = [c.c_void_p, c.c_int64, _i64p, c.c_size_t]
lib.roast_embedding_bad_id.restype = c.c_size_t
lib.roast_embedding_parts.argtypes = [c.c_int64, c.c_size_t]
lib.roast_embedding_parts.restype = c.c_size_t
lib.roast_embedding_part.argtypes = [
    *(c.c_void_p, c.c_void_p, c.c_int, c.c_int64, _i64p, c.c_size_t, c.c_size_t, _f32p)
]


class Plan:
    """A plan of the C ABI; `table` attaches the table where one pays."""

    def __init__(self, fields: list[int], scale: float = 1.0, table: bool = False):
        self.buffer = np.zeros(lib.roast_plan_bytes() // 8 + 1, np.int64)
        self.plan = self.buffer.ctypes.data
        message = c.create_string_buffer(512)
        # Fields of a size of their own, so that a sanitizer sees a read past them.
        numbers = np.array(fields, np.int64)
        if lib.roast_plan_init(self.plan, numbers, len(numbers), scale, message, 512):
            raise MappingError(message.value.decode())
        self.table = np.zeros(lib.roast_plan_table_bytes(self.plan) // 4 if table else 0, np.uint32)
        if self.table.size:
            lib.roast_plan_attach_table(self.plan, self.table.ctypes.data)

    def gather(self, memory: np.ndarray, numel: int, signs: np.ndarray | None = None) -> np.ndarray:
        """The parts, last one first."""
        out = np.full(numel, np.nan, np.float32)
        half = int(memory.dtype == np.float16)
        bits = None if signs is None else signs.ctypes.data
        for part in reversed(range(lib.roast_gather_parts(self.plan))):
            lib.roast_gather_part(self.plan, memory.ctypes.data, half, bits, part, out)
        return out

    def rows(self, memory: np.ndarray, dim: int, ids: np.ndarray) -> np.ndarray:
        out = np.full((len(ids), dim), np.nan, np.float32)
        half = int(memory.dtype == np.float16)
        for part in range(lib.roast_embedding_parts(dim, len(ids))):
            args = (self.plan, memory.ctypes.data, half, dim, ids, len(ids), part, out)
            lib.roast_embedding_part(*args)
        return out


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got.ravel().view(np.uint32), want.ravel().view(np.uint32))


def check(m: Mapping, scale: float = 0.37, dtype: type = np.float32) -> None:
    memory = pattern(m.n_memory, dtype)
    with np.errstate(over="ignore"):
        want = m.weight(memory, scale)
    for table in (False, True):
        assert_same_bits(Plan(m.to_list(), scale, table).gather(memory, m.numel), want)


thorough = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@thorough
@given(hashed(), st.sampled_from([np.float32, np.float16]), st.sampled_from([1.0, -0.37, 1e-30, 0.0]))
def test_hashed_maps_equal_the_reference(m, dtype, scale):
    check(m, scale, dtype)


@thorough
@given(drawn(), st.sampled_from([np.float32, np.float16]))
def test_drawn_maps_equal_the_reference(m, dtype):
    check(m, 0.37, dtype)


@thorough
@given(st.one_of(hashed(), drawn()), st.data())
def test_embedding_rows_equal_the_reference(m, data):
    dim = data.draw(st.sampled_from([d for d in range(1, m.numel + 1) if m.numel % d == 0]))
    ids = np.array(data.draw(st.lists(st.integers(0, m.numel // dim - 1), max_size=9)), np.int64)
    memory = pattern(m.n_memory)
    want = m.weight(memory, 0.37).reshape(-1, dim)[ids]
    assert_same_bits(Plan(m.to_list(), 0.37, table=True).rows(memory, dim, ids), want)


def test_the_interface_is_the_one_declared_above():
    assert lib.roast_kernel_abi() == 1


def test_a_bad_id_is_found():
    plan = Plan(Mapping(shape=(7, 3), n_memory=5, matrix=(7, 3)).to_list())
    ids = np.array([0, 6, 7, -1, 2**63 - 1, -(2**63)], np.int64)
    assert lib.roast_embedding_bad_id(plan.plan, 3, ids, 6) == 2
    assert lib.roast_embedding_bad_id(plan.plan, 3, ids[3:], 3) == 0
    assert lib.roast_embedding_bad_id(plan.plan, 3, ids, 2) == 2


@pytest.mark.skipif(not VECTORS.exists(), reason="no golden vectors")
def test_golden_vectors():
    vectors = json.loads(VECTORS.read_text())["vectors"]
    assert vectors
    for vector in vectors:
        m = Mapping.from_list(vector["mapping"])
        check(m, vector["scale"])
        check(m, vector["scale"], np.float16)


# Larger than a part, so that parts meet inside and at the edges of tiles, and tables are in use.
LARGE = {
    "matrices": Mapping((700, 513), 4000, (700, 513), True, (32, 32), hash1=Hash(2038074743, 5, 7, 0, 3),
                        range=(4000 - 1024) // 16 + 1, align=16, sign=Sign.TILE,
                        sign_hash=Hash(2038074743, 3, 11, 0, 1)),
    "as is": Mapping((700, 513), 4000, (700, 513), False, (32, 64), (5, 70), Hash(45007, 5, 7),
                     Hash(45007, 9, 2), 1952),
    "narrow": Mapping((90001, 3), 999, (90001, 3), True, (4, 8), (3, 5), Hash(45007, 5, 7), range=900),
    "wide": Mapping((3, 90001), 999, (3, 90001), False, (4, 8), (3, 5), Hash(45007, 5, 7), range=900),
    "one row": Mapping((300, 400), 999, (1, 120000), origin=(0, 77777), hash1=Hash(2**31 - 1, 5, 7, 9, 3),
                       range=999),
    "tile is the array": Mapping((300, 400), 5000, (1, 120000), tile=(1, 5000), origin=(0, 777),
                                 hash1=Hash(2**31 - 1, 5, 7, 9, 3), range=5000),
    "rows share cache sets": Mapping((150, 1024), 4000, (150, 1024), True, (32, 32), (7, 11),
                                     Hash(45007, 5, 7), range=3000),
    "rows share cache sets, as is": Mapping((72, 2048), 4000, (72, 2048), False, (16, 48), (7, 11),
                                            Hash(45007, 5, 7), range=4000),
    "tile over parts": Mapping((300, 400), 120000, (300, 400), True, (300, 300), (10, 20),
                               Hash(45007, 5, 7), range=120000),
    "mt19937 signs": Mapping((300, 401), 5000, (300, 401), True, (16, 32), hash1=Hash(45007, 5, 7),
                             range=4000, sign=Sign.MT19937, sign_seed=7, sign_skip=240599),
    "drawn": Mapping((300, 401), 5000, (300, 401), range=2**29, element=Element.MT19937_32, seed=9,
                     sign=Sign.MT19937, sign_seed=9, sign_skip=120300),
    "drawn 64": Mapping((300, 801), 5000, (300, 801), range=2**32, element=Element.MT19937_64, seed=9,
                        sign=Sign.MT19937, sign_seed=9, sign_skip=5),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_large_maps_in_parts(name, dtype):
    check(LARGE[name], -1.7, dtype)
    plan = Plan(LARGE[name].to_list(), table=True)
    assert lib.roast_gather_parts(plan.plan) > 1


@thorough
@given(st.one_of(hashed(), drawn()))
def test_a_table_takes_an_eighth_of_the_weight_at_most(m):
    assert lib.roast_plan_table_bytes(Plan(m.to_list()).plan) <= m.numel * 4 // 8


@pytest.mark.parametrize("shape", [(7, 20000), (3, 140000), (1, 140001), (9, 16383), (16384, 9)])
@pytest.mark.parametrize("transposed", [False, True])
def test_drawn_signs_of_long_rows(shape, transposed):
    """Rows that no longer fit the buffer in which a table's signs are turned."""
    m = Mapping(shape, 500, shape, transposed, (2, 16), hash1=Hash(45007, 5, 7), range=400, sign=Sign.MT19937,
                sign_seed=11, sign_skip=613)  # fmt: skip
    check(m)


@pytest.mark.parametrize("name", LARGE)
def test_large_maps_by_row(name):
    m = LARGE[name]
    memory = pattern(m.n_memory)
    want = m.weight(memory).reshape(m.numel // 3, 3)
    ids = np.arange(0, m.numel // 3, 1999, dtype=np.int64)[::-1].copy()
    assert_same_bits(Plan(m.to_list(), table=True).rows(memory, 3, ids), want[ids])


@pytest.mark.parametrize("name", ["matrices", "mt19937 signs", "rows share cache sets"])
def test_given_signs(name):
    m = LARGE[name]
    memory = pattern(m.n_memory)
    positive = np.random.default_rng(0).integers(0, 2, m.numel)
    signs = np.packbits(positive.astype(np.uint8), bitorder="little")
    want = m.weight(memory).ravel() * (2 * positive - 1).astype(np.float32)
    assert_same_bits(Plan(m.to_list(), table=True).gather(memory, m.numel, signs), want)


def test_every_float16():
    memory = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    m = Mapping((1 << 16,), 1 << 16, (1, 1 << 16), tile=(1, 1 << 16))
    got = Plan(m.to_list()).gather(memory, m.numel)
    want = memory.astype(np.float32)
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    assert_same_bits(got[~nan], want[~nan])


def imports(path: str) -> list[str]:
    """Symbols that a library needs from others; a (w)eak one may be missing."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True
    )
    return [line.split()[-1] for line in listing.stdout.splitlines() if line.split()[-2] != "w"]


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_nothing_is_imported():
    found = imports(ort_library_path())
    if any("san_" in name for name in found):
        pytest.skip("a build for a sanitizer")
    assert found == []


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_control_what_is_imported_is_seen():
    assert "memcpy" in {name.partition("@")[0] for name in imports(_ctypes.__file__)}


HOSTILE = st.one_of(
    st.sampled_from([0, 1, -1, 2, 2**30, 2**30 + 1, 2**31, 2**31 + 1, 2**32, 2**32 + 1, 2**48, 2**48 + 1]),
    st.sampled_from([2**62, 2**63 - 1, -(2**63), -(2**62)]),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-3, 40),
)


def accepted(fields: list[int]) -> tuple[bool, bool]:
    """By the reference, and by the kernel."""
    answers = []
    for read in (Mapping.from_list, Plan):
        try:
            read(fields)
            answers.append(True)
        except MappingError as error:
            assert str(error)  # noqa: PT017
            answers.append(False)
    return answers[0], answers[1]


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(hashed(), drawn()), st.data())
def test_hostile_lists_are_judged_as_by_the_reference(m, data):
    fields = m.to_list()
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(fields) - 1))
        near = st.integers(fields[place] - 1, fields[place] + 1).filter(lambda x: abs(x) < 2**63)
        fields[place] = data.draw(st.one_of(HOSTILE, near))
    if data.draw(st.integers(0, 9)) == 0:
        fields = fields[: data.draw(st.integers(0, len(fields)))]
    if data.draw(st.integers(0, 9)) == 0:
        fields = fields + data.draw(st.lists(HOSTILE, max_size=12))
    reference, kernel = accepted(fields)
    assert reference == kernel, fields


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, HEADER_LENGTH + 1), HOSTILE)
def test_one_hostile_number_in_a_good_list(place, value):
    m = Mapping((6, 4), 40, (6, 4), True, (2, 2), hash1=Hash(7, 1, 2), range=36, sign=Sign.TILE,
                sign_hash=Hash(7, 1, 1))  # fmt: skip
    fields = m.to_list()
    fields[place] = value
    reference, kernel = accepted(fields)
    assert reference == kernel, fields


@pytest.mark.parametrize("stream", ["slots", "signs", "none"])
def test_weights_that_draw_have_fewer_elements(stream):
    """What comes before an element of a stream has to be drawn too: 2^36 draws take seconds."""
    kinds = {
        "slots": {"element": Element.MT19937_32},
        "signs": {"sign": Sign.MT19937, "sign_seed": 7, "sign_skip": 2**31},
        "none": {},
    }
    fields = Mapping((2**29, 2), 64, (2**29, 2), **kinds[stream]).to_list()
    assert accepted(fields) == (True, True)
    fields[4] = fields[32] = 2**29 + 1
    assert accepted(fields) == ((False, False) if stream != "none" else (True, True))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_scale_that_is_not_finite_is_refused(scale):
    with pytest.raises(MappingError, match="scale is not finite"):
        Plan(Mapping((2,), 2, (1, 2)).to_list(), scale)


def test_a_message_is_cut_at_its_buffer():
    good = Mapping((2,), 2, (1, 2)).to_list()
    fields = np.array([2, *good[1:]], np.int64)
    plan = Plan(good)
    for capacity in range(8):
        buffer = c.create_string_buffer(b"\xff" * 16, 16)
        assert lib.roast_plan_init(plan.plan, fields, len(fields), 1.0, buffer, capacity)
        assert buffer.raw[:capacity] == (b"mapping"[: max(capacity - 1, 0)] + b"\0")[:capacity]
        assert buffer.raw[capacity:] == b"\xff" * (16 - capacity)
