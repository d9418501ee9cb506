"""The mapping in torch: weights, looked-up rows and their adjoints out of plain aten operators.

One source for three readers: Python calls it where the native library does not serve, torch.jit
compiles it into portable TorchScript, torch.export traces it into portable graphs. Hence the subset
of Python that all three take: the record is its flat list, and every position is a literal.
docs/mapping.md is the specification; the section numbers below refer to it.
"""

import math

import torch
from torch import Tensor

# A record `m` here is a hashed map: m[1] = 0. Signs from MT19937 come packed, as
# uint8[ceil(numel / 8)]: bit e mod 8 of byte e div 8 is 1 where element e is positive. Without such
# signs `signs` is empty.


def gather(memory: Tensor, m: list[int], scale: float, signs: Tensor) -> Tensor:
    """The virtual weight (section 1).

    memory: float16, bfloat16, float32 [n_memory], giving float32[shape]; float64 gives float64.
    """
    memory = memory.to(compute_dtype(memory))
    slots, factors = _tiles(m, scale, memory)
    n_i, n_j = _grid(m)
    tiles = _units(m, memory).index_select(0, slots).view(n_i, n_j, m[7], m[8]) * factors
    r, c = m[9] % m[7], m[10] % m[8]
    rows, cols = _view(m)
    view = tiles.transpose(1, 2).reshape(n_i * m[7], n_j * m[8])[r : r + rows, c : c + cols]
    if m[6] == 1:
        view = view.t()
    weight = view.reshape(m[32:]).contiguous()
    if m[2] == 2:
        weight = weight * _every_sign(m, signs, weight)
    return weight


def gather_backward(grad: Tensor, m: list[int], scale: float, signs: Tensor) -> Tensor:
    """The adjoint of `gather`: for each slot, the sum of scale * sign * grad of what it is read for.

    grad: float[shape], giving float32[n_memory] (float64 for float64).
    """
    grad = grad.to(compute_dtype(grad))
    if m[2] == 2:
        grad = grad * _every_sign(m, signs, grad)
    slots, factors = _tiles(m, scale, grad)
    n_i, n_j = _grid(m)
    r, c = m[9] % m[7], m[10] % m[8]
    rows, cols = _view(m)
    view = grad.reshape(m[4], m[5])
    if m[6] == 1:
        view = view.t()
    padding = [c, n_j * m[8] - c - cols, r, n_i * m[7] - r - rows]
    tiles = torch.constant_pad_nd(view, padding).view(n_i, m[7], n_j, m[8]).transpose(1, 2)
    unit, spill = tile_unit(m), _spill(m)
    zeros = torch.zeros([(m[3] + spill) // unit, unit], dtype=grad.dtype, device=grad.device)
    sums = zeros.index_add(0, slots, (tiles * factors).reshape(-1, unit)).flatten()
    return sums[: m[3]] + torch.constant_pad_nd(sums[m[3] :], [0, m[3] - spill])


def embedding(memory: Tensor, ids: Tensor, m: list[int], scale: float, signs: Tensor) -> Tensor:
    """Rows `ids` (int64 or int32, any shape) of a virtual (rows, dim) weight: float32[ids.shape..., dim].

    Raises IndexError (torch's own) if an id is outside [0, rows).
    """
    memory = memory.to(compute_dtype(memory))
    unit = row_unit(m)
    slots, factors = _lookup(ids, m, scale, signs, memory)
    rows = memory.reshape(-1, unit).index_select(0, slots.flatten()).view(-1, slots.size(1), unit)
    return (rows * factors).reshape(list(ids.shape) + [m[33]])  # noqa: RUF005 - the subset


def embedding_backward(grad: Tensor, ids: Tensor, m: list[int], scale: float, signs: Tensor) -> Tensor:
    """The adjoint of `embedding` in its array: float32[n_memory] (float64 for float64)."""
    grad = grad.to(compute_dtype(grad))
    unit = row_unit(m)
    slots, factors = _lookup(ids, m, scale, signs, grad)
    rows = grad.reshape(-1, slots.size(1), unit) * factors
    zeros = torch.zeros([m[3] // unit, unit], dtype=grad.dtype, device=grad.device)
    return zeros.index_add(0, slots.flatten(), rows.reshape(-1, unit)).flatten()


def compute_dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def tile_unit(m: list[int]) -> int:
    """Run length that divides tile starts, tiles and array: what a tile is copied in."""
    return math.gcd(math.gcd(m[22], m[7] * m[8]), m[3])


def row_unit(m: list[int]) -> int:
    """The same for runs along a row of a two-dimensional weight; 1 if view or signs know elements only."""
    if m[6] == 1 or m[4] != m[32] or m[5] != m[33] or m[2] == 2:
        return 1
    return math.gcd(math.gcd(math.gcd(m[22], m[8]), math.gcd(m[10], m[33])), m[3])


def _view(m: list[int]) -> tuple[int, int]:
    """Rows and columns of the view that is cut into tiles."""
    if m[6] == 1:
        return m[5], m[4]
    return m[4], m[5]


def _grid(m: list[int]) -> tuple[int, int]:
    """Tile rows and tile columns that the view touches."""
    rows, cols = _view(m)
    n_i = (m[9] + rows - 1) // m[7] - m[9] // m[7] + 1
    n_j = (m[10] + cols - 1) // m[8] - m[10] // m[8] + 1
    return n_i, n_j


def _spill(m: list[int]) -> int:
    """How many elements past the array's end the last possible tile reaches; it wraps to the start."""
    return max(0, (m[21] - 1) * m[22] + m[7] * m[8] - m[3])


def _hash(hash1: list[int], i: Tensor, j: Tensor) -> Tensor:
    return torch.remainder(i * hash1[1] + j * hash1[2] + j * j * hash1[3] + hash1[4], hash1[0])


def _starts(m: list[int], i: Tensor, j: Tensor) -> Tensor:
    h = _hash(m[11:16], i, j)
    if m[16] != 1:
        h = h * m[11] + _hash(m[16:21], i, j)
    return torch.remainder(h, m[21]) * m[22]


def _factors(m: list[int], scale: float, i: Tensor, j: Tensor, like: Tensor) -> Tensor:
    """scale * sign of each tile; MT19937 signs are not per tile and come later."""
    # The scale is a float32, also where the arithmetic is float64.
    factor = torch.full([1, 1], scale, dtype=torch.float32, device=like.device).to(like.dtype)
    if m[2] == 1:
        factor = torch.where(_hash(m[24:29], i, j) % 2 == 1, -factor, factor)
    return factor


def _tiles(m: list[int], scale: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Unit numbers int64[tiles * tile_size / unit] and factors [tile rows, tile cols, 1, 1]."""
    i0, j0 = m[9] // m[7], m[10] // m[8]
    n_i, n_j = _grid(m)
    i = torch.arange(i0, i0 + n_i, device=like.device).unsqueeze(1)
    j = torch.arange(j0, j0 + n_j, device=like.device).unsqueeze(0)
    unit = tile_unit(m)
    inside = torch.arange(m[7] * m[8] // unit, device=like.device)
    slots = torch.div(_starts(m, i, j), unit, rounding_mode="floor").unsqueeze(2) + inside
    return slots.flatten(), _factors(m, scale, i, j, like).unsqueeze(2).unsqueeze(3)


def _units(m: list[int], memory: Tensor) -> Tensor:
    """The array as rows of one unit, followed by its own start where tiles may wrap (section 3)."""
    spill = _spill(m)
    if spill > 0:
        memory = torch.cat([memory, memory[:spill]])
    return memory.reshape(-1, tile_unit(m))


def _lookup(ids: Tensor, m: list[int], scale: float, signs: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Unit numbers int64[ids, dim / unit] and factors [ids, dim / unit, 1] of the rows asked for."""
    dim, unit = m[33], row_unit(m)
    ids = ids.to(torch.int64).flatten().unsqueeze(1)
    place = ids * dim + torch.arange(0, dim, unit, device=ids.device)
    r = torch.div(place, m[5], rounding_mode="floor")
    c = torch.remainder(place, m[5])
    if m[6] == 1:
        r, c = c, r
    r, c = r + m[9], c + m[10]
    i = torch.div(r, m[7], rounding_mode="floor")
    j = torch.div(c, m[8], rounding_mode="floor")
    inner = torch.remainder(r, m[7]) * m[8] + torch.remainder(c, m[8])
    slots = torch.div(torch.remainder(_starts(m, i, j) + inner, m[3]), unit, rounding_mode="floor")
    # An id outside the table becomes a slot outside the array, which index_select refuses.
    slots = torch.where((ids >= 0) & (ids < m[32]), slots, m[3])
    factors = _factors(m, scale, i, j, like)
    if m[2] == 2:
        inside = torch.where((ids >= 0) & (ids < m[32]), place, 0)
        factors = factors * _signs_at(inside, signs, like)
    return slots, factors.unsqueeze(2)


def _powers(like: Tensor) -> Tensor:
    """1, 2, 4 ... 128 as uint8; a literal tensor would not survive torch.export's decompositions."""
    base = torch.full([8], 2, dtype=torch.uint8, device=like.device)
    return torch.pow(base, torch.arange(8, dtype=torch.uint8, device=like.device))


def _every_sign(m: list[int], signs: Tensor, like: Tensor) -> Tensor:
    """+-1 for each element of the weight, in its shape."""
    bits = torch.bitwise_and(signs.to(like.device).unsqueeze(1), _powers(like)) != 0
    positive = bits.flatten()[: m[4] * m[5]].view(m[32:])
    return positive.to(like.dtype) * 2 - 1


def _signs_at(place: Tensor, signs: Tensor, like: Tensor) -> Tensor:
    """+-1 for the elements at `place`; only with a row unit of 1."""
    signs = signs.to(like.device)
    byte = signs.index_select(0, torch.div(place, 8, rounding_mode="floor").flatten()).view(place.shape)
    power = _powers(like).index_select(0, torch.remainder(place, 8).flatten()).view(place.shape)
    return (torch.bitwise_and(byte, power) != 0).to(like.dtype) * 2 - 1
