"""Golden vectors of docs/mapping.md: made by the reference, read by every implementation.

`python tests/vectors/make_vectors.py` writes mapping.json anew. research.json is a record of what
other programs computed: it is read here and never written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export import families
from roast_export.mapping import MAX_NUMEL, MAX_PRIME, Element, Hash, Mapping, Sign

HERE = Path(__file__).parent
GOLDEN = HERE / "mapping.json"
RESEARCH = HERE / "research.json"

FULL_UP_TO = 64
"""Elements up to which a vector holds every index and sign, so that a failure can be read off."""

COMMENT = (
    "Made by tests/vectors/make_vectors.py from the reference, roast_export/mapping.py. mapping: the flat "
    "list of docs/mapping.md section 5. index_sha256: int64 little-endian, row-major; index_first: its first "
    "16. sign_sha256: int8 of +-1. weight_sha256: float32 little-endian of the weight for memory[k] = "
    "((k * 2654435761) mod 2^24) / 2^24 - 0.5, which float32 holds exactly; weight_half_sha256: the same "
    "with memory rounded to float16 first. Vectors of at most 64 elements hold all of index and sign."
)

COEFFICIENTS = [478274215, 1768736291, 1208996517, 1986098331]
"""FakeRoast's, for seed 123321."""
RZLINEAR_1024 = [45007, 20011, 38363, 15263, 24507, 36489, 12234, 43027]
ROBE_1024 = [2038074743, 634329019, 1825252241, 871205356, 80759397]
P = families.UHASH_PRIME
H = Hash(P, a=1812433253, b=1566083941, g=40503)
"""A hash of moderate coefficients for vectors whose point is something else."""


@dataclass(frozen=True)
class Vector:
    """One record, why it is worth a vector, and the scale of its weight."""

    name: str
    why: str
    mapping: Mapping
    scale: float = 1.0


def memory_of(n: int) -> NDArray[np.float32]:
    """The array of the golden weights: float32[n] in [-0.5, 0.5), exact."""
    k = np.arange(n, dtype=np.uint64)
    return ((k * np.uint64(2654435761)) % np.uint64(1 << 24) / (1 << 24) - 0.5).astype(np.float32)


def sha256(values: NDArray[Any]) -> str:
    little = values.astype(values.dtype.newbyteorder("<"))
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def family_vectors() -> Iterator[Vector]:
    """Every row of docs/mapping.md section 6."""
    f, c, seed = families, COEFFICIENTS, 123321
    yield Vector(
        "rzlinear",
        "two hash levels, ragged in both directions",
        f.rzlinear(70, 200, 5000, RZLINEAR_1024),
        0.125,
    )
    yield Vector("rzlinear one tile", "fits one tile", f.rzlinear(32, 64, 4096, RZLINEAR_1024))
    for name, mapper in (("hashednet", f.fakeroast_hashednet), ("pareto", f.fakeroast_pareto)):
        yield Vector(
            f"fakeroast {name} linear", "offset 0", mapper((33, 70), 1000, c, 0, sign_seed=seed), 0.0625
        )
        yield Vector(
            f"fakeroast {name} conv", "4-D, shifted", mapper((8, 3, 3, 3), 97, c, 2310, sign_seed=seed), 0.1
        )
        yield Vector(
            f"fakeroast {name} embedding", "shifted", mapper((50, 12), 256, c, 2526, sign_seed=7), 1.7
        )
    for layer, shape, tile in (
        ("linear", (33, 70), (16, 8)),
        ("conv", (8, 3, 3, 3), (16, 4)),
        ("embedding", (50, 12), (1, 8)),
    ):
        yield Vector(
            f"fakeroast roast {layer}",
            "tiles, signs per weight, offset folded into g",
            f.fakeroast_roast(shape, 1000, c, 5000, tile, layer=layer, sign_seed=seed),
            0.03,
        )
    for bits in (32, 64):
        yield Vector(
            f"fakeroast random {bits}",
            f"slots drawn from {bits} bits, signs after them",
            f.fakeroast_random((10, 7), 50, seed, draw_bits=bits),
            0.5,
        )
    for z in (1, 8):
        yield Vector(
            f"robe Z={z}", "shared table, val_offset", f.robe(40, 20, 1000, ROBE_1024, 12345, z), 1.0
        )
    for transposed in (True, False):
        for signs in (True, False):
            yield Vector(
                f"roast {'transposed' if transposed else 'as is'}, {'tile' if signs else 'no'} signs",
                "this package's own map, ragged",
                f.roast((70, 50), 4000, seed=1, tile=(32, 32), align=16, transposed=transposed, signs=signs),
                0.02,
            )
    yield Vector(
        "roast embedding",
        "row tiles, 16 aligned",
        f.roast((90, 40), 700, seed=2, tile=(1, 32), align=16, transposed=False),
        0.3,
    )
    yield Vector(
        "roast conv", "4-D, transposed", f.roast((20, 6, 3, 3), 1100, seed=3, tile=(32, 32), align=16), 0.3
    )


def small(shape: tuple[int, ...] = (6, 10), n_memory: int = 64, **fields: Any) -> Mapping:
    """A record whose index lists stay readable: 2-D view of `shape`, hashed by H, starts anywhere."""
    rows = shape[0]
    record = {"matrix": (rows, int(np.prod(shape[1:]))), "hash1": H, "range": n_memory, **fields}
    return Mapping(shape=shape, n_memory=n_memory, **record)


def edge_vectors() -> Iterator[Vector]:
    """Every edge of the definition, one reason each."""
    whole = {"tile": (8, 8), "range": 1}
    tile_signs = {"sign": Sign.TILE, "sign_hash": Hash(P, a=16807, b=48271, g=11)}
    yield Vector("1x1", "one weight, one slot", small((1, 1), 1, tile=(1, 1)))
    yield Vector("1-D weight", "a matrix of one column", small((7,), 16, tile=(4, 1)))
    yield Vector("1-D weight, transposed", "a view of one row", small((7,), 16, tile=(1, 4), transposed=True))
    yield Vector("8-D weight", "most dimensions", small((2, 1, 3, 1, 2, 1, 2, 1), 32, tile=(2, 4)))
    yield Vector("matrix 1 x n", "flat view", small((4, 6), 32, matrix=(1, 24), tile=(1, 5)))
    yield Vector(
        "matrix regrouped", "matrix rows cross the shape", small((4, 6), 32, matrix=(8, 3), tile=(3, 2))
    )
    yield Vector("ragged", "tiles cut off below and right", small(tile=(4, 4), **tile_signs))
    yield Vector(
        "ragged, transposed", "the same, seen turned", small(tile=(4, 4), transposed=True, **tile_signs)
    )
    yield Vector("tile larger than the weight", "one tile, mostly unused", small((3, 2), 64, **whole))
    yield Vector(
        "n_memory = tile", "the smallest legal array; range 1", small((10, 9), 64, **whole, **tile_signs)
    )
    yield Vector("tile = whole memory", "every tile wraps round", small((3, 40), 24, tile=(1, 24)))
    yield Vector(
        "2-D tile = whole memory", "wraps inside a tile row", small((9, 11), 24, tile=(4, 6), **tile_signs)
    )
    yield Vector(
        "no hash", "both levels unused: start is always 0", small(n_memory=60, hash1=Hash(), tile=(6, 10))
    )
    yield Vector("range 1", "every tile reads the same slots", small(tile=(2, 3), range=1, **tile_signs))
    yield Vector(
        "align 16", "starts are multiples of 16", small((12, 20), 100, tile=(4, 8), range=5, align=16)
    )
    yield Vector(
        "align 16, wrapping",
        "n_memory is no multiple of align and the last start wraps",
        small((12, 20), 100, tile=(4, 8), range=7, align=16),
    )
    yield Vector("align 3", "align does not divide the tile", small(tile=(2, 5), range=18, align=3))
    yield Vector(
        "origin in mid tile", "first tile is cut off above and left", small(tile=(4, 4), origin=(3, 9))
    )
    yield Vector(
        "origin in mid tile, transposed",
        "origin belongs to the view, not to the weight",
        small(tile=(4, 4), origin=(3, 9), transposed=True, **tile_signs),
    )
    yield Vector(
        "origin 2^48",
        "largest origin: j*j is 0 in int64",
        small(origin=(MAX_NUMEL, MAX_NUMEL), hash1=Hash(P, 7, 11, 13, 17), tile=(1, 1)),
    )
    yield Vector(
        "wrap past 2^63",
        "the quadratic sum is negative: truncating mod gives other slots",
        families.fakeroast_hashednet((6, 10), 64, COEFFICIENTS, 1 << 40, sign_seed=5),
    )
    yield Vector(
        "wrap past 2^63, tiles",
        "negative sums in both levels and in the signs",
        small(
            tile=(2, 2),
            hash1=Hash(45007, a=-(1 << 62), b=-3, q=-5, g=-(1 << 63)),
            hash2=Hash(P, a=-7, b=(1 << 63) - 1, q=-11, g=-13),
            sign=Sign.TILE,
            sign_hash=Hash(P, a=-17, b=-19, q=-23, g=-29),
        ),
    )
    yield Vector("two levels", "h1*p1 + h2", small(tile=(2, 2), hash2=Hash(45007, 5, 7, 0, 11)))
    yield Vector(
        "two levels, p = 2^31",
        "the largest moduli: h stays below 2^62",
        small(
            tile=(2, 2),
            hash1=Hash(MAX_PRIME, -1, 1 << 30, 3, -1),
            hash2=Hash(MAX_PRIME, 1 << 62, -1, 5, (1 << 63) - 1),
        ),
    )
    yield Vector("second level only", "an unused first level gives 0", small(hash1=Hash(), hash2=H))
    yield Vector("p = 2", "a modulus below range", small(tile=(2, 2), hash1=Hash(2, 1, 1, 0, 0)))
    yield Vector(
        "quadratic tile signs", "all of sign_hash", small(sign=Sign.TILE, sign_hash=Hash(P, 3, 5, 7, 9))
    )
    yield Vector(
        "mt19937 signs, skipped", "the stream starts at sign_skip", small(sign=Sign.MT19937, sign_skip=120)
    )
    yield Vector(
        "mt19937 signs, transposed",
        "the stream follows the weight, not the view",
        small(tile=(4, 4), transposed=True, sign=Sign.MT19937, sign_seed=(1 << 32) - 1),
    )
    yield Vector(
        "long mt19937 stream",
        "past two refills of the 624 words",
        small((40, 40), 64, tile=(8, 8), sign=Sign.MT19937, sign_seed=5489),
    )
    drawn = {"hash1": Hash(), "matrix": (1, 60)}
    for bits, element in ((32, Element.MT19937_32), (64, Element.MT19937_64)):
        yield Vector(
            f"drawn {bits}, range 2^32",
            "the largest range, seed 0, no signs",
            small(element=element, range=1 << 32, **drawn),
        )
        yield Vector(
            f"drawn {bits}, small range",
            "range is no power of two and leaves slots out",
            small(element=element, range=37, seed=(1 << 32) - 1, **drawn),
        )
    for name, why, scale in (
        ("0.1", "rounded to float32 before the product", 0.1),
        ("-0.3", "negative", -0.3),
        ("0", "gives zeros of both signs", 0.0),
        ("1e-39", "subnormal products are kept", 1e-39),
        ("3e38", "close to the largest float32", 3e38),
    ):
        yield Vector(f"scale {name}", why, small(tile=(2, 2), **tile_signs), scale)


def check_wrap_vector(vector: Vector) -> None:
    """A wrap vector is worth its name only if an implementation that truncates fails on it."""
    m = vector.mapping
    truncated = []
    for place in range(m.numel):
        j = place + m.origin[1]
        mixed = m.hash1.b * j + m.hash1.q * j * j + m.hash1.g
        wrapped = (mixed + (1 << 63)) % (1 << 64) - (1 << 63)
        truncated.append(int(np.fmod(wrapped, m.hash1.p)) % m.n_memory)
    differ = int((m.indices().ravel() != truncated).sum())
    assert differ > m.numel // 4, f"{vector.name}: only {differ} of {m.numel} indices notice a truncating mod"


def entry(vector: Vector) -> dict[str, Any]:
    """One JSON object of mapping.json."""
    m, memory = vector.mapping, memory_of(vector.mapping.n_memory)
    index, sign = m.indices(), m.signs()
    result = {
        "name": vector.name,
        "why": vector.why,
        "mapping": m.to_list(),
        "scale": vector.scale,
        "index_first": index.ravel()[:16].tolist(),
        "index_sha256": sha256(index),
        "sign_sha256": sha256(sign),
        "weight_sha256": sha256(m.weight(memory, vector.scale)),
        "weight_half_sha256": sha256(m.weight(memory.astype(np.float16), vector.scale)),
    }
    if m.numel <= FULL_UP_TO:
        result |= {"index": index.ravel().tolist(), "sign": sign.ravel().tolist()}
    return result


def make() -> dict[str, Any]:
    """All of mapping.json."""
    vectors = [*family_vectors(), *edge_vectors()]
    check_wrap_vector(next(v for v in vectors if v.name == "wrap past 2^63"))
    return {"_comment": COMMENT, "version": 1, "vectors": [entry(v) for v in vectors]}


def render(document: dict[str, Any], lists: tuple[str, ...] = ("vectors",)) -> str:
    """JSON with one key per line inside the objects of `lists`, lists of numbers on one line."""
    parts = []
    for key, value in document.items():
        if key in lists:
            items = (
                "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in e.items()) + "\n}"
                for e in value
            )
            parts.append(f"{json.dumps(key)}: [\n" + ",\n".join(items) + "\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def research_mapping(family: str, table: dict[str, Any]) -> Mapping:
    """The record of one table of research.json. family: "fakeroast", "uma" or "rzlinear"."""
    t = table
    if family == "rzlinear":
        return families.rzlinear(t["in_features"], t["out_features"], t["n_memory"], t["random_numbers"])
    if family == "uma":
        return families.robe(
            t["num_embeddings"], t["dim"], t["n_memory"], t["random_numbers"], t["val_offset"], t["chunk"]
        )
    shape, n_memory, kind = tuple(t["shape"]), t["n_memory"], t["kind"]
    if kind == "random":
        return families.fakeroast_random(shape, n_memory, t["seed"], draw_bits=64)
    if kind != "roast":
        mapper = {"hashednet": families.fakeroast_hashednet, "pareto": families.fakeroast_pareto}[kind]
        return mapper(shape, n_memory, t["coefficients"], t["offset"], sign_seed=t["seed"])
    layer = {"mlp": "linear", "conv2d": "conv", "embedding": "embedding"}[t["layer"]]
    tile = (1, t["block"]) if layer == "embedding" else (t["block_k"], t["block_n"])
    return families.fakeroast_roast(
        shape, n_memory, t["coefficients"], t["offset"], tile, layer=layer, sign_seed=t["seed"]
    )


if __name__ == "__main__":
    document = make()
    GOLDEN.write_text(render(document), encoding="utf-8")
    print(f"{GOLDEN.name}: {len(document['vectors'])} vectors")
