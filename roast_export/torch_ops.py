"""The mapping in torch: `roast::gather` and `roast::embedding`, their gradients, in plain aten ops.

The operators are opaque to torch.export, so that a traced graph holds the record and never a dense
weight. docs/mapping.md is the specification; the section numbers below refer to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, library

from roast_export.mapping import Element, Hash, Mapping, Sign

_LIBRARY = library.Library("roast", "DEF")
_LIBRARY.define("gather(Tensor memory, int[] mapping, float scale) -> Tensor")
_LIBRARY.define("gather_backward(Tensor grad, int[] mapping, float scale) -> Tensor")
_LIBRARY.define("embedding(Tensor memory, Tensor ids, int[] mapping, float scale) -> Tensor")
_LIBRARY.define("embedding_backward(Tensor grad, Tensor ids, int[] mapping, float scale) -> Tensor")


def gather(memory: Tensor, mapping: list[int], scale: float) -> Tensor:
    """The virtual weight (section 1).

    memory: float16, bfloat16, float32 [n_memory], giving float32[shape]; float64 gives float64.
    mapping: the flat list of section 5.
    """
    return cast(Tensor, torch.ops.roast.gather(memory, mapping, scale))


def embedding(memory: Tensor, ids: Tensor, mapping: list[int], scale: float) -> Tensor:
    """Rows `ids` (int64 or int32, any shape) of a virtual (rows, dim) weight: float32[ids.shape..., dim].

    Raises:
        IndexError: an id is outside [0, rows).
    """
    return cast(Tensor, torch.ops.roast.embedding(memory, ids, mapping, scale))


def gather_backward(grad: Tensor, mapping: list[int], scale: float) -> Tensor:
    """The adjoint of `gather`: for each slot, the sum of scale * sign * grad of what it is read for.

    grad: float[shape], giving float32[n_memory] (float64 for float64).
    """
    return cast(Tensor, torch.ops.roast.gather_backward(grad, mapping, scale))


@lru_cache(maxsize=4096)
def _record(fields: tuple[int, ...]) -> Mapping:
    return Mapping.from_list(fields)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _hash(h: Hash, i: Tensor, j: Tensor) -> Tensor:
    return torch.remainder(i * h.a + j * h.b + j * j * h.q + h.g, h.p)


def _starts(m: Mapping, i: Tensor, j: Tensor) -> Tensor:
    h = _hash(m.hash1, i, j)
    if m.hash2 != Hash():
        h = h * m.hash1.p + _hash(m.hash2, i, j)
    return torch.remainder(h, m.range) * m.align


def _factors(m: Mapping, scale: float, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
    """scale * sign of each tile; mt19937 signs are not per tile and come later."""
    factor = torch.tensor(scale, dtype=torch.float32, device=i.device).to(dtype)
    if m.sign is not Sign.TILE:
        return factor.expand(torch.broadcast_shapes(i.shape, j.shape))
    return torch.where(_hash(m.sign_hash, i, j) % 2 == 1, -factor, factor)


def _tiles(m: Mapping, scale: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit numbers int64[tiles * tile_size / unit] and factors [tile rows, tile cols, 1, 1]."""
    (i0, j0), (n_i, n_j) = m.first_tile, m.grid
    i = torch.arange(i0, i0 + n_i, device=device)[:, None]
    j = torch.arange(j0, j0 + n_j, device=device)[None, :]
    unit = m.tile_unit
    inside = torch.arange(m.tile_size // unit, device=device)
    slots = torch.div(_starts(m, i, j), unit, rounding_mode="floor")[:, :, None] + inside
    return slots.flatten(), _factors(m, scale, i, j, dtype)[:, :, None, None]


def _stream_signs(m: Mapping, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(m.signs()).to(device=device, dtype=dtype)


def _units(m: Mapping, memory: Tensor) -> Tensor:
    """The array as rows of one unit, followed by its own start where tiles may wrap (step 4)."""
    if m.spill:
        memory = torch.cat((memory, memory[: m.spill]))
    return memory.view(-1, m.tile_unit)


def _gather(memory: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _record(tuple(mapping))
    dtype = _compute_dtype(memory.dtype)
    memory = memory.to(dtype)
    if m.element is not Element.HASH:
        index = torch.from_numpy(m.indices()).to(memory.device)
        return memory[index] * _scale_like(scale, memory) * _stream_signs(m, dtype, memory.device)
    slots, factors = _tiles(m, scale, dtype, memory.device)
    (n_i, n_j), (tile_r, tile_c) = m.grid, m.tile
    tiles = _units(m, memory).index_select(0, slots).view(n_i, n_j, tile_r, tile_c)
    tiles = tiles * factors
    r, c = m.origin[0] % tile_r, m.origin[1] % tile_c
    rows, cols = m.view
    view = tiles.transpose(1, 2).reshape(n_i * tile_r, n_j * tile_c)[r : r + rows, c : c + cols]
    weight = (view.T if m.transposed else view).reshape(m.shape)
    weight = weight.contiguous()
    return weight * _stream_signs(m, dtype, memory.device) if m.sign is Sign.MT19937 else weight


def _scale_like(scale: float, memory: Tensor) -> Tensor:
    return torch.tensor(scale, dtype=torch.float32, device=memory.device).to(memory.dtype)


def _gather_backward(grad: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _record(tuple(mapping))
    dtype = _compute_dtype(grad.dtype)
    grad = grad.to(dtype)
    if m.sign is Sign.MT19937:
        grad = grad * _stream_signs(m, dtype, grad.device)
    if m.element is not Element.HASH:
        index = torch.from_numpy(m.indices()).to(grad.device).flatten()
        return grad.new_zeros(m.n_memory).index_add_(0, index, grad.flatten() * _scale_like(scale, grad))
    slots, factors = _tiles(m, scale, dtype, grad.device)
    (n_i, n_j), (tile_r, tile_c), unit = m.grid, m.tile, m.tile_unit
    r, c = m.origin[0] % tile_r, m.origin[1] % tile_c
    rows, cols = m.view
    view = grad.reshape(m.matrix)
    view = view.T if m.transposed else view
    padding = (c, n_j * tile_c - c - cols, r, n_i * tile_r - r - rows)
    tiles = torch.nn.functional.pad(view, padding).view(n_i, tile_r, n_j, tile_c).transpose(1, 2)
    tiles = (tiles * factors).reshape(-1, unit)
    sums = grad.new_zeros((m.n_memory + m.spill) // unit, unit).index_add_(0, slots, tiles).flatten()
    result = sums[: m.n_memory].clone()
    result[: m.spill] += sums[m.n_memory :]
    return result


def _lookup(m: Mapping, ids: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit numbers int64[ids, dim / unit] and factors [ids, dim / unit or dim] of the rows asked for."""
    rows, dim = m.shape
    if ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < rows):
        raise IndexError(f"an id is outside [0, {rows})")
    unit = m.row_unit
    place = ids.to(torch.int64).flatten()[:, None] * dim
    place = place + torch.arange(0, dim, unit, device=ids.device)
    r = torch.div(place, m.matrix[1], rounding_mode="floor")
    c = torch.remainder(place, m.matrix[1])
    r, c = (c, r) if m.transposed else (r, c)
    r, c = r + m.origin[0], c + m.origin[1]
    i = torch.div(r, m.tile[0], rounding_mode="floor")
    j = torch.div(c, m.tile[1], rounding_mode="floor")
    inner = torch.remainder(r, m.tile[0]) * m.tile[1] + torch.remainder(c, m.tile[1])
    slots = torch.remainder(_starts(m, i, j) + inner, m.n_memory)
    if m.element is not Element.HASH:
        slots = torch.from_numpy(m.indices()).to(ids.device)[ids.flatten()]
    factors = _factors(m, scale, i, j, dtype)
    if m.sign is Sign.MT19937:
        factors = factors * _stream_signs(m, dtype, ids.device)[ids.flatten()]
    return torch.div(slots, unit, rounding_mode="floor"), factors


def _embedding(memory: Tensor, ids: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _record(tuple(mapping))
    dtype, unit = _compute_dtype(memory.dtype), m.row_unit
    slots, factors = _lookup(m, ids, scale, dtype)
    units = memory.to(dtype).view(-1, unit)
    rows = units.index_select(0, slots.flatten()).view(*slots.shape, unit) * factors[:, :, None]
    return rows.reshape(*ids.shape, m.shape[1])


def _embedding_backward(grad: Tensor, ids: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _record(tuple(mapping))
    dtype, unit = _compute_dtype(grad.dtype), m.row_unit
    slots, factors = _lookup(m, ids, scale, dtype)
    rows = grad.to(dtype).reshape(*slots.shape, unit) * factors[:, :, None]
    sums = grad.new_zeros(m.n_memory // unit, unit, dtype=dtype)
    return sums.index_add_(0, slots.flatten(), rows.reshape(-1, unit)).flatten()


def _register() -> None:
    implementations = {
        "gather": _gather,
        "gather_backward": _gather_backward,
        "embedding": _embedding,
        "embedding_backward": _embedding_backward,
    }
    for name, function in implementations.items():
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")

    def fake_gather(memory: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
        return memory.new_empty(_record(tuple(mapping)).shape, dtype=_compute_dtype(memory.dtype))

    def fake_sums(grad: Tensor, *rest: Any) -> Tensor:
        return grad.new_empty(_record(tuple(rest[-2])).n_memory, dtype=_compute_dtype(grad.dtype))

    def fake_rows(memory: Tensor, ids: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
        dim = _record(tuple(mapping)).shape[1]
        return memory.new_empty((*ids.shape, dim), dtype=_compute_dtype(memory.dtype))

    library.register_fake("roast::gather", fake_gather)
    library.register_fake("roast::gather_backward", fake_sums)
    library.register_fake("roast::embedding", fake_rows)
    library.register_fake("roast::embedding_backward", fake_sums)

    # Both operators are linear in the array, so each gradient's own gradient is the operator.
    def keep_gather(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.array_dtype, ctx.mapping, ctx.scale = inputs[0].dtype, inputs[1], inputs[2]

    def keep_lookup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1])
        ctx.array_dtype, ctx.mapping, ctx.scale = inputs[0].dtype, inputs[2], inputs[3]

    def gather_gradient(ctx, grad):  # type: ignore[no-untyped-def]
        sums = torch.ops.roast.gather_backward(grad, ctx.mapping, ctx.scale)
        return sums.to(ctx.array_dtype), None, None

    def gather_second(ctx, grad):  # type: ignore[no-untyped-def]
        return torch.ops.roast.gather(grad, ctx.mapping, ctx.scale), None, None

    def embedding_gradient(ctx, grad):  # type: ignore[no-untyped-def]
        (ids,) = ctx.saved_tensors
        sums = torch.ops.roast.embedding_backward(grad, ids, ctx.mapping, ctx.scale)
        return sums.to(ctx.array_dtype), None, None, None

    def embedding_second(ctx, grad):  # type: ignore[no-untyped-def]
        (ids,) = ctx.saved_tensors
        return torch.ops.roast.embedding(grad, ids, ctx.mapping, ctx.scale), None, None, None

    register = library.register_autograd
    register("roast::gather", gather_gradient, setup_context=keep_gather)
    register("roast::gather_backward", gather_second, setup_context=keep_gather)
    register("roast::embedding", embedding_gradient, setup_context=keep_lookup)
    register("roast::embedding_backward", embedding_second, setup_context=keep_lookup)


_register()
