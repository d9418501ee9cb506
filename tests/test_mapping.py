"""The reference against the golden vectors, the research code's tables, and the page itself."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors.make_vectors import (
    GOLDEN,
    RESEARCH,
    Vector,
    entry,
    make,
    memory_of,
    render,
    research_mapping,
    sha256,
)

from roast_export.errors import MappingError
from roast_export.mapping import HEADER_LENGTH, Element, Hash, Mapping, Sign, mt19937_stream

VECTORS = json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]
TABLES = [
    pytest.param(family, table, id=f"{family}-{number}")
    for family, tables in json.loads(RESEARCH.read_text(encoding="utf-8")).items()
    if family != "_comment"
    for number, table in enumerate(tables)
]
HASHED = Mapping((4, 6), 64, (4, 6), tile=(2, 2), hash1=Hash(101, 3, 5, 7, 11), range=61)
DRAWN = Mapping((4, 6), 64, (1, 24), element=Element.MT19937_32, range=1 << 29)
SIGNED = dataclasses.replace(HASHED, sign=Sign.TILE, sign_hash=Hash(101, 1, 2, 3, 4))
STREAMED = dataclasses.replace(HASHED, sign=Sign.MT19937, sign_seed=1)


def by_the_page(m: Mapping, r: int, c: int) -> tuple[int, int]:
    """Index and tile sign of view element (r, c): docs/mapping.md sections 3 and 4 in unbounded integers."""

    def wrap(x: int) -> int:
        return (x + (1 << 63)) % (1 << 64) - (1 << 63)

    def level(h: Hash) -> int:
        return wrap(h.a * i + h.b * j + h.q * j * j + h.g) % h.p

    row, col = r + m.origin[0], c + m.origin[1]
    i, j = row // m.tile[0], col // m.tile[1]
    h = level(m.hash1) if m.hash2 == Hash() else wrap(level(m.hash1) * m.hash1.p + level(m.hash2))
    inner = (row % m.tile[0]) * m.tile[1] + col % m.tile[1]
    return ((h % m.range) * m.align + inner) % m.n_memory, 1 - 2 * (level(m.sign_hash) % 2)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_reference_gives_the_golden_vectors(vector):
    m = Mapping.from_list(vector["mapping"])
    made = entry(Vector(vector["name"], vector["why"], m, vector["scale"]))
    assert made == vector


def test_mapping_json_is_current():
    assert GOLDEN.read_text(encoding="utf-8") == render(make()), (
        "run `make vectors` and look at the difference"
    )


def test_every_golden_vector_has_its_own_name_and_record():
    assert len({v["name"] for v in VECTORS}) == len(VECTORS)
    assert len({(*v["mapping"], v["scale"]) for v in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("field", range(1, HEADER_LENGTH - 1))
def test_every_field_of_the_list_varies_over_the_golden_vectors(field):
    assert len({v["mapping"][field] for v in VECTORS}) > 1


@pytest.mark.parametrize(("family", "table"), TABLES)
def test_reference_gives_the_research_tables(family, table):
    m = research_mapping(family, table)
    index = m.indices().T if family == "rzlinear" else m.indices()
    assert index.ravel()[:12].tolist() == table["index_first"]
    assert sha256(index) == table["index_sha256"]
    if family == "fakeroast":
        assert m.signs().ravel()[:12].tolist() == table["sign_first"]
        assert sha256(m.signs()) == table["sign_sha256"]
    else:
        assert m.sign is Sign.NONE


def test_there_are_44_research_tables():
    assert len(TABLES) == 44


@pytest.mark.parametrize(
    ("family", "number", "field", "place"),
    [
        *(("fakeroast", n, "coefficients", place) for n in (0, 6, 12, 30) for place in (0, 1, 2)),
        ("fakeroast", 37, "seed", None),
        *(("uma", 1, "random_numbers", place) for place in (0, 1, 2, 3)),
        *(("rzlinear", 2, "random_numbers", place) for place in (0, 1, 2, 3, 4, 5, 7)),
    ],
)
def test_control_a_changed_coefficient_changes_the_table(family, number, field, place):
    table = json.loads(RESEARCH.read_text(encoding="utf-8"))[family][number]
    before = sha256(research_mapping(family, table).indices())
    if place is None:
        table[field] += 1
    else:
        table[field][place] += 1
    assert sha256(research_mapping(family, table).indices()) != before


@pytest.mark.parametrize(
    "change", [{"range": 10}, {"origin": (0, 1)}, {"tile": (2, 3)}, {"transposed": True}]
)
def test_control_a_changed_field_changes_the_index(change):
    assert sha256(dataclasses.replace(HASHED, **change).indices()) != sha256(HASHED.indices())


def test_digest_is_of_little_endian_row_major_bytes():
    table = np.arange(6, dtype=">i8").reshape(3, 2).T
    row_major = b"".join(x.to_bytes(8, "little") for x in (0, 2, 4, 1, 3, 5))
    assert sha256(table) == hashlib.sha256(row_major).hexdigest()


def test_golden_array_is_exact():
    exact = [(k * 2654435761) % (1 << 24) / (1 << 24) - 0.5 for k in range(5000)]
    assert memory_of(5000).tolist() == exact


def test_mt19937_gives_the_published_stream():
    """First outputs for seed 5489 and the 10000th, which the C++ standard fixes at 4123659995."""
    stream = mt19937_stream(5489, 10000).tolist()
    assert stream[:5] == [3499211612, 581869302, 3890346734, 3586334585, 545404204]
    assert stream[-1] == 4123659995
    assert mt19937_stream(5490, 1).tolist() != stream[:1]


WIDE = {"shape": ((1 << 30) + 2,), "matrix": ((1 << 29) + 1, 2)}


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (HASHED, {"shape": ()}, "1 to 8 dimensions"),
        (HASHED, {"shape": (24,) + (1,) * 8}, "1 to 8 dimensions"),
        (HASHED, {"shape": (4, 0)}, "at least 1"),
        (HASHED, {"shape": (-4, -6)}, "at least 1"),
        (HASHED, {"shape": (1 << 30, 1 << 30)}, "more than 2^48"),
        (HASHED, {"matrix": (4, 5)}, "does not hold the 24 elements"),
        (HASHED, {"matrix": (-4, -6)}, "does not hold the 24 elements"),
        (HASHED, {"n_memory": 0}, "not in [1, 2^30]"),
        (HASHED, {"n_memory": (1 << 30) + 1}, "not in [1, 2^30]"),
        (HASHED, {"tile": (0, 2)}, "at least 1x1"),
        (HASHED, {"tile": (2, -1)}, "at least 1x1"),
        (HASHED, {"tile": (5, 13)}, "needs 65 slots, the array has 64"),
        (HASHED, {"tile": (1 << 32, 1 << 32)}, "use a smaller tile or a larger array"),
        (HASHED, {"origin": (-1, 0)}, "not in [0, 2^48]"),
        (HASHED, {"origin": (0, (1 << 48) + 1)}, "not in [0, 2^48]"),
        (HASHED, {"hash1": Hash(0)}, "hash1 has modulus 0"),
        (HASHED, {"hash1": Hash((1 << 31) + 1)}, "hash1 has modulus"),
        (HASHED, {"hash2": Hash(-5)}, "hash2 has modulus -5"),
        (HASHED, {"hash1": Hash(7, a=1 << 63)}, "outside int64"),
        (HASHED, {"hash1": Hash(7, g=-(1 << 63) - 1)}, "outside int64"),
        (HASHED, {"hash2": Hash(1, a=1)}, "hash2 has modulus 1 but is not all 0"),
        (SIGNED, {"sign_hash": Hash(1, g=1)}, "sign_hash has modulus 1 but is not all 0"),
        (HASHED, {"range": 0}, "must be at least 1"),
        (HASHED, {"align": 0}, "must be at least 1"),
        (HASHED, {"range": 65}, "starts tiles past the array's 64 slots"),
        (HASHED, {"range": 5, "align": 16}, "starts tiles past the array's 64 slots"),
        (HASHED, {"seed": 1}, "a hashed map has no seed"),
        (DRAWN, {"seed": 1 << 32}, "a seed is not in [0, 2^32)"),
        (DRAWN, {"seed": -1}, "a seed is not in [0, 2^32)"),
        (STREAMED, {"sign_seed": 1 << 32}, "a seed is not in [0, 2^32)"),
        (STREAMED, {"sign_skip": -1}, "sign_skip -1 is not in"),
        (STREAMED, {"sign_skip": 49}, "sign_skip 49 is not in"),
        (SIGNED, {"sign": Sign.NONE}, "sign_hash belongs to tile signs only"),
        (SIGNED, {"sign_hash": Hash()}, "sign_hash belongs to tile signs only"),
        (STREAMED, {"sign": Sign.NONE}, "belong to mt19937 signs only"),
        (HASHED, {"sign_skip": 1}, "belong to mt19937 signs only"),
        (STREAMED, WIDE, "at most 2^30"),
        (DRAWN, WIDE, "at most 2^30"),
        (DRAWN, {"hash1": Hash(7)}, "a drawn map has no hash"),
        (DRAWN, {"hash2": Hash(7)}, "a drawn map has no hash"),
        (DRAWN, {"tile": (1, 2)}, "a drawn map has no hash, tile"),
        (DRAWN, {"align": 2}, "a drawn map has no hash, tile, align"),
        (DRAWN, {"transposed": True}, "transposed view"),
        (DRAWN, {"origin": (0, 1)}, "a drawn map has no origin"),
        (DRAWN, {"range": (1 << 32) + 1}, "range <= 2^32"),
        (DRAWN, {"sign": Sign.TILE, "sign_hash": Hash(7)}, "no tile signs"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(base, change, message):
    with pytest.raises(MappingError) as refusal:
        dataclasses.replace(base, **change)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (HASHED, {"shape": (24,) + (1,) * 7}),
        (HASHED, {"shape": (1 << 24, 1 << 24), "matrix": (1 << 24, 1 << 24)}),
        (HASHED, WIDE),
        (DRAWN, {"shape": (1 << 30,), "matrix": (1 << 29, 2)}),
        (STREAMED, {"shape": (1 << 30,), "matrix": (1 << 29, 2), "sign_skip": 1 << 31}),
        (HASHED, {"n_memory": 1 << 30}),
        (HASHED, {"tile": (8, 8)}),
        (HASHED, {"origin": (1 << 48, 1 << 48)}),
        (HASHED, {"hash1": Hash(1 << 31, -(1 << 63), (1 << 63) - 1, -(1 << 63), (1 << 63) - 1)}),
        (HASHED, {"range": 64}),
        (HASHED, {"range": 4, "align": 16}),
        (DRAWN, {"range": 1 << 32, "seed": (1 << 32) - 1}),
        (DRAWN, {"sign": Sign.MT19937, "sign_seed": 9, "sign_skip": 48}),
        (STREAMED, {"sign_skip": 48, "sign_seed": (1 << 32) - 1}),
    ],
)
def test_control_the_limit_itself_is_accepted(base, change):
    m = dataclasses.replace(base, **change)
    assert Mapping.from_list(m.to_list()) == m


def changed(place: int, value: object) -> list:
    fields = HASHED.to_list()
    fields[place] = value
    return fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "0 integers has the wrong length"),
        (HASHED.to_list()[:HEADER_LENGTH], "wrong length"),
        (HASHED.to_list()[:-1], "wrong length"),
        ([*HASHED.to_list(), 1], "wrong length"),
        (changed(HEADER_LENGTH - 1, 3), "wrong length"),
        (changed(HEADER_LENGTH - 1, -1), "wrong length"),
        (changed(0, 2), "version 2 is not known here"),
        (changed(0, 0), "version 0 is not known here"),
        (changed(1, 3), "unknown kind of map"),
        (changed(2, -1), "unknown kind of map, sign"),
        (changed(6, 2), "unknown kind of map, sign or view"),
        (changed(3, 64.0), "not a 64-bit integer"),
        (changed(3, "64"), "not a 64-bit integer"),
        (changed(6, True), "not a 64-bit integer"),
        (changed(15, 1 << 63), "not a 64-bit integer"),
        (changed(15, -(1 << 63) - 1), "not a 64-bit integer"),
    ],
)
def test_a_list_that_no_record_gives_is_refused(fields, message):
    with pytest.raises(MappingError) as refusal:
        Mapping.from_list(fields)
    assert message in str(refusal.value)


@pytest.mark.parametrize("shape", [(63,), (65,), (64, 1)])
def test_an_array_of_another_size_is_refused(shape):
    with pytest.raises(MappingError, match="the array has shape"):
        HASHED.weight(np.zeros(shape, np.float32))


INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
HASHES = st.builds(Hash, st.integers(2, 1 << 31), INT64, INT64, INT64, INT64)


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    """Any legal record of a small weight."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    numel = int(np.prod(shape))
    rows = draw(st.sampled_from([d for d in range(1, numel + 1) if numel % d == 0]))
    n_memory = draw(st.integers(1, 200))
    sign = draw(st.sampled_from(Sign))
    fields = {"sign": sign, "matrix": (rows, numel // rows)}
    if sign is Sign.MT19937:
        fields |= {
            "sign_seed": draw(st.integers(0, (1 << 32) - 1)),
            "sign_skip": draw(st.integers(0, 2 * numel)),
        }
    if sign is not Sign.TILE and draw(st.booleans()):
        fields |= {"element": draw(st.sampled_from([Element.MT19937_32, Element.MT19937_64]))}
        fields |= {"seed": draw(st.integers(0, (1 << 32) - 1)), "range": draw(st.integers(1, 1 << 32))}
        return Mapping(shape, n_memory, **fields)
    tile_r = draw(st.integers(1, min(n_memory, 6)))
    align = draw(st.integers(1, 20))
    return Mapping(
        shape,
        n_memory,
        transposed=draw(st.booleans()),
        tile=(tile_r, draw(st.integers(1, n_memory // tile_r))),
        origin=(draw(st.integers(0, 1 << 48)), draw(st.integers(0, 1 << 48))),
        hash1=draw(st.just(Hash()) | HASHES),
        hash2=draw(st.just(Hash()) | HASHES),
        sign_hash=draw(HASHES) if sign is Sign.TILE else Hash(),
        align=align,
        range=draw(st.integers(1, (n_memory - 1) // align + 1)),
        **fields,
    )


@given(mappings())
@settings(deadline=None)
def test_the_list_and_the_record_are_inverse(m):
    fields = m.to_list()
    assert Mapping.from_list(fields) == m
    assert Mapping.from_list(json.loads(json.dumps(fields))) == m


@given(mappings())
@settings(deadline=None)
def test_the_reference_follows_the_page(m):
    index, sign = m.indices(), m.signs()
    assert index.shape == sign.shape == m.shape
    assert index.dtype == np.int64
    assert sign.dtype == np.int8
    assert ((index >= 0) & (index < m.n_memory)).all()
    assert (np.abs(sign) == 1).all()
    if m.element is not Element.HASH:
        return
    rows, cols = m.view
    page = np.array([[by_the_page(m, r, c) for c in range(cols)] for r in range(rows)], dtype=object)
    page = page.transpose(1, 0, 2) if m.transposed else page
    assert page[..., 0].ravel().tolist() == index.ravel().tolist()
    if m.sign is Sign.TILE:
        assert page[..., 1].ravel().tolist() == sign.ravel().tolist()


@given(st.lists(INT64, max_size=40))
@settings(deadline=None)
def test_a_list_at_random_is_refused_as_a_mapping_error(fields):
    with pytest.raises(MappingError):
        Mapping.from_list(fields)


@given(mappings(), st.data())
@settings(deadline=None)
def test_a_list_with_one_wild_field_is_refused_or_comes_back(m, data):
    fields = m.to_list()
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(INT64)
    try:
        other = Mapping.from_list(fields)
    except MappingError:
        return
    assert other.to_list() == fields
