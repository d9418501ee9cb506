"""The mapping of docs/mapping.md: a frozen record, its flat list, and the slow, clear reference.

This is the reference that the torch, ONNX and C++ implementations are compared with, bit by bit.
numpy only; nothing here is tuned for speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from roast_export.errors import MappingError

VERSION = 1
HEADER_LENGTH = 32
"""Integers before the shape in the flat list (docs/mapping.md section 5)."""

MAX_DIMS = 8
MAX_NUMEL = 1 << 48
MAX_DRAWN = 1 << 30
"""Elements whose slots or signs are drawn: what comes before one in the stream has to be drawn too."""
MAX_MEMORY = 1 << 30
MAX_PRIME = 1 << 31


class Element(IntEnum):
    """How a weight finds its array slot."""

    HASH = 0
    MT19937_32 = 1
    MT19937_64 = 2


class Sign(IntEnum):
    """How a weight finds its sign."""

    NONE = 0
    TILE = 1
    MT19937 = 2


@dataclass(frozen=True)
class Hash:
    """One level of the tile hash: (a*i + b*j + q*j*j + g) mod p. `Hash()` is constantly 0."""

    p: int = 1
    a: int = 0
    b: int = 0
    q: int = 0
    g: int = 0

    def __call__(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
        """Hash tile numbers. int64 with wrap-around; `mod` is floored, so the result is in [0, p)."""
        with np.errstate(over="ignore"):
            mixed = i * np.int64(self.a) + j * np.int64(self.b) + j * j * np.int64(self.q)
            hashed: NDArray[np.int64] = np.mod(mixed + np.int64(self.g), np.int64(self.p))
            return hashed

    def to_list(self) -> list[int]:
        return [self.p, self.a, self.b, self.q, self.g]


UNUSED = Hash()


@dataclass(frozen=True)
class Mapping:
    """Where every element of one virtual weight lives in the shared array (docs/mapping.md).

    Raises:
        MappingError: a field breaks a rule of docs/mapping.md section 2.
    """

    shape: tuple[int, ...]
    n_memory: int
    matrix: tuple[int, int]
    """The weight in row-major order seen as (rows, cols)."""
    transposed: bool = False
    tile: tuple[int, int] = (1, 1)
    origin: tuple[int, int] = (0, 0)
    hash1: Hash = UNUSED
    hash2: Hash = UNUSED
    range: int = 1
    align: int = 1
    element: Element = Element.HASH
    seed: int = 0
    sign: Sign = Sign.NONE
    sign_hash: Hash = UNUSED
    sign_seed: int = 0
    sign_skip: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def view(self) -> tuple[int, int]:
        """(rows, cols) of the view that is cut into tiles."""
        rows, cols = self.matrix
        return (cols, rows) if self.transposed else (rows, cols)

    @property
    def tile_size(self) -> int:
        return self.tile[0] * self.tile[1]

    @property
    def first_tile(self) -> tuple[int, int]:
        """Tile numbers (i, j) of the view's element (0, 0)."""
        return self.origin[0] // self.tile[0], self.origin[1] // self.tile[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tile rows and tile columns that the view touches."""
        (rows, cols), (i0, j0) = self.view, self.first_tile
        return (
            (self.origin[0] + rows - 1) // self.tile[0] - i0 + 1,
            (self.origin[1] + cols - 1) // self.tile[1] - j0 + 1,
        )

    @property
    def tile_unit(self) -> int:
        """Run length that divides tile starts, tiles and array: what a tile can be copied in."""
        return math.gcd(self.align, self.tile_size, self.n_memory)

    @property
    def row_unit(self) -> int:
        """The same for runs along a row of a two-dimensional weight; 1 if the view is not the weight."""
        if self.transposed or self.matrix != self.shape:
            return 1
        return math.gcd(self.align, self.tile[1], self.origin[1], self.shape[1], self.n_memory)

    @property
    def spill(self) -> int:
        """How many elements past the array's end the last possible tile reaches; it wraps to the start."""
        return max(0, (self.range - 1) * self.align + self.tile_size - self.n_memory)

    def starts(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
        """First array slot of each tile (i, j): int64, each in [0, n_memory). Section 3, step 3."""
        h = self.hash1(i, j)
        if self.hash2 != UNUSED:
            h = h * np.int64(self.hash1.p) + self.hash2(i, j)
        return (h % self.range) * np.int64(self.align)

    def indices(self) -> NDArray[np.int64]:
        """Array slot of every element: int64[shape], each in [0, n_memory). Section 3."""
        if self.element is not Element.HASH:
            return self._drawn_indices()
        i, j, inner = self._tiles()
        return self._from_view((self.starts(i, j) + inner) % self.n_memory)

    def signs(self) -> NDArray[np.int8]:
        """Sign of every element: int8[shape], each -1 or +1. Section 4."""
        if self.sign is Sign.NONE:
            return np.ones(self.shape, np.int8)
        if self.sign is Sign.TILE:
            i, j, _ = self._tiles()
            bits = self.sign_hash(i, j) % 2
            return self._from_view(1 - 2 * bits).astype(np.int8)
        raw = mt19937_stream(self.sign_seed, self.sign_skip + self.numel)[self.sign_skip :]
        return (2 * (raw % 2).astype(np.int8) - 1).reshape(self.shape)

    def packed_signs(self) -> NDArray[np.uint8]:
        """The signs as bits, uint8[ceil(numel / 8)]: bit e mod 8 of byte e div 8 is 1 where e is positive."""
        return np.packbits(self.signs().reshape(-1) > 0, bitorder="little")

    def weight(self, memory: NDArray[np.floating], scale: float = 1.0) -> NDArray[np.float32]:
        """The virtual weight: float32[shape] = scale * sign * memory[index]. Section 1.

        memory: float32 or float16 [n_memory]; scale is rounded to float32 first.
        """
        if memory.shape != (self.n_memory,):
            raise MappingError(f"the array has shape {memory.shape}, the mapping needs ({self.n_memory},)")
        values = memory.astype(np.float32)[self.indices()] * np.float32(check_scale(scale))
        return values * self.signs().astype(np.float32)

    def to_list(self) -> list[int]:
        """The flat list of section 5: HEADER_LENGTH + len(shape) int64."""
        return [
            VERSION,
            int(self.element),
            int(self.sign),
            self.n_memory,
            *self.matrix,
            int(self.transposed),
            *self.tile,
            *self.origin,
            *self.hash1.to_list(),
            *self.hash2.to_list(),
            self.range,
            self.align,
            self.seed,
            *self.sign_hash.to_list(),
            self.sign_seed,
            self.sign_skip,
            len(self.shape),
            *self.shape,
        ]

    @classmethod
    def from_list(cls, fields: list[int] | tuple[int, ...]) -> Mapping:
        """The inverse of `to_list`. Raises MappingError for any list that `to_list` cannot produce."""
        if any(type(field) is not int or not -(1 << 63) <= field < 1 << 63 for field in fields):
            raise MappingError("a mapping list holds something that is not a 64-bit integer")
        n = len(fields)
        if n <= HEADER_LENGTH or n != HEADER_LENGTH + fields[HEADER_LENGTH - 1]:
            raise MappingError(f"a mapping list of {n} integers has the wrong length")
        if fields[0] != VERSION:
            raise MappingError(
                f"mapping version {fields[0]} is not known here (this is version {VERSION}); "
                "upgrade roast-export"
            )
        if fields[1] not in set(Element) or fields[2] not in set(Sign) or fields[6] not in (0, 1):
            raise MappingError("a mapping list holds an unknown kind of map, sign or view")
        return cls(
            element=Element(fields[1]),
            sign=Sign(fields[2]),
            n_memory=fields[3],
            matrix=(fields[4], fields[5]),
            transposed=bool(fields[6]),
            tile=(fields[7], fields[8]),
            origin=(fields[9], fields[10]),
            hash1=Hash(*fields[11:16]),
            hash2=Hash(*fields[16:21]),
            range=fields[21],
            align=fields[22],
            seed=fields[23],
            sign_hash=Hash(*fields[24:29]),
            sign_seed=fields[29],
            sign_skip=fields[30],
            shape=tuple(fields[HEADER_LENGTH:]),
        )

    def _tiles(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Tile row, tile column and place inside the tile of every element: int64[view] each."""
        r, c = np.indices(self.view, dtype=np.int64)
        r, c = r + self.origin[0], c + self.origin[1]
        inner = (r % self.tile[0]) * self.tile[1] + c % self.tile[1]
        return r // self.tile[0], c // self.tile[1], inner

    def _from_view(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return (values.T if self.transposed else values).reshape(self.shape)

    def _drawn_indices(self) -> NDArray[np.int64]:
        width = 2 if self.element is Element.MT19937_64 else 1
        raw = mt19937_stream(self.seed, width * self.numel).reshape(self.numel, width)
        draws = (raw[:, 0] << np.uint64(32)) | raw[:, 1] if width == 2 else raw[:, 0]
        return (draws % np.uint64(self.range)).astype(np.int64).reshape(self.shape) % self.n_memory


def check_scale(scale: float) -> float:
    """The scale, if float32 can hold it. Raises MappingError (docs/mapping.md section 5)."""
    if not abs(scale) <= float(np.finfo(np.float32).max):
        raise MappingError(f"scale {scale} is not a finite float32")
    return float(scale)


def mt19937_stream(seed: int, n: int) -> NDArray[np.uint64]:
    """The first n raw 32-bit outputs of MT19937 after init_genrand(seed) (Matsumoto, Nishimura 1998)."""
    generator = np.random.MT19937()
    generator._legacy_seeding(seed)
    return generator.random_raw(n).astype(np.uint64)


def _check(m: Mapping) -> None:
    """The rules of docs/mapping.md section 2, in their order."""

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise MappingError(message)

    require(
        1 <= len(m.shape) <= MAX_DIMS and all(1 <= d <= MAX_NUMEL for d in m.shape),
        f"shape {list(m.shape)} must have 1 to {MAX_DIMS} dimensions of at least 1",
    )
    require(m.numel <= MAX_NUMEL, f"shape {list(m.shape)} has more than 2^48 elements")
    require(
        min(m.matrix) >= 1 and m.matrix[0] * m.matrix[1] == m.numel,
        f"matrix view {m.matrix} does not hold the {m.numel} elements of shape {list(m.shape)}",
    )
    require(1 <= m.n_memory <= MAX_MEMORY, f"an array of {m.n_memory} slots is not in [1, 2^30]")
    require(min(m.tile) >= 1, f"tile {m.tile[0]}x{m.tile[1]} must be at least 1x1")
    require(
        m.tile_size <= m.n_memory,
        f"tile {m.tile[0]}x{m.tile[1]} needs {m.tile_size} slots, the array has {m.n_memory}; "
        "use a smaller tile or a larger array",
    )
    require(all(0 <= o <= MAX_NUMEL for o in m.origin), f"origin {m.origin} is not in [0, 2^48]")
    require(m.range >= 1 and m.align >= 1, f"range {m.range} and align {m.align} must be at least 1")
    for name, level in (("hash1", m.hash1), ("hash2", m.hash2), ("sign_hash", m.sign_hash)):
        require(1 <= level.p <= MAX_PRIME, f"{name} has modulus {level.p}, not in [1, 2^31]")
        coefficients = level.to_list()[1:]
        require(
            all(-(1 << 63) <= x < 1 << 63 for x in coefficients),
            f"{name} has a coefficient outside int64",
        )
        require(level.p > 1 or not any(coefficients), f"{name} has modulus 1 but is not all 0")
    require(
        (m.element is Element.HASH and m.sign is not Sign.MT19937) or m.numel <= MAX_DRAWN,
        f"a weight whose slots or signs are drawn has {m.numel} elements, at most 2^30",
    )
    require(0 <= m.seed < 1 << 32 and 0 <= m.sign_seed < 1 << 32, "a seed is not in [0, 2^32)")
    require(0 <= m.sign_skip <= 2 * m.numel, f"sign_skip {m.sign_skip} is not in [0, 2 * elements]")
    if m.element is Element.HASH:
        require(
            (m.range - 1) * m.align < m.n_memory,
            f"range {m.range} with align {m.align} starts tiles past the array's {m.n_memory} slots",
        )
        require(m.seed == 0, "a hashed map has no seed")
    else:
        require(
            m.hash1 == m.hash2 == UNUSED and m.tile == (1, 1) and m.align == 1 and not m.transposed,
            "a drawn map has no hash, tile, align or transposed view",
        )
        require(m.origin == (0, 0) and m.range <= 1 << 32, "a drawn map has no origin, range <= 2^32")
    require((m.sign is Sign.TILE) == (m.sign_hash != UNUSED), "sign_hash belongs to tile signs only")
    require(
        m.sign is Sign.MT19937 or (m.sign_seed, m.sign_skip) == (0, 0),
        "sign_seed and sign_skip belong to mt19937 signs only",
    )
    require(
        m.element is Element.HASH or m.sign is not Sign.TILE,
        "a drawn map has no tiles and so no tile signs",
    )
