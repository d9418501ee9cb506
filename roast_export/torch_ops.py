"""The operators in torch, `roast::gather`, `roast::linear`, `roast::embedding`, and their gradients.

They are opaque to torch.export, so that a traced graph holds the record and never a dense weight.
On a CPU the native library serves them, where it is installed; everything else (CUDA, float64,
bfloat16, no library) runs in aten operators (torch_mapping.py), with equal bits in gathers and lookups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, library
from torch.utils._python_dispatch import TorchDispatchMode

from roast_export import torch_mapping
from roast_export.errors import RoastError
from roast_export.libraries import load_torch_library
from roast_export.mapping import Element, Mapping, Sign

SCHEMAS = {
    "gather": "(Tensor memory, int[] mapping, float scale) -> Tensor",
    "gather_backward": "(Tensor grad, int[] mapping, float scale) -> Tensor",
    "embedding": "(Tensor memory, Tensor ids, int[] mapping, float scale) -> Tensor",
    "embedding_backward": "(Tensor grad, Tensor ids, int[] mapping, float scale) -> Tensor",
    "linear": "(Tensor x, Tensor memory, Tensor? bias, int[] mapping, float scale) -> Tensor",
}
"""The library defines the same; where it is absent, this module does."""


def gather(memory: Tensor, mapping: list[int], scale: float) -> Tensor:
    """The virtual weight (docs/mapping.md section 1).

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


def linear(x: Tensor, memory: Tensor, bias: Tensor | None, mapping: list[int], scale: float) -> Tensor:
    """x @ W^T + bias, W the virtual weight as (out, in): x float32[..., in] gives float32[..., out].

    With the library W is never made. In gradients it is, one layer at a time.
    """
    return cast(Tensor, torch.ops.roast.linear(x, memory, bias, mapping, scale))


def gather_backward(grad: Tensor, mapping: list[int], scale: float) -> Tensor:
    """The adjoint of `gather`: for each slot, the sum of scale * sign * grad of what it is read for.

    grad: float[shape], giving float32[n_memory] (float64 for float64).
    """
    return cast(Tensor, torch.ops.roast.gather_backward(grad, mapping, scale))


@contextmanager
def without_library() -> Iterator[None]:
    """Run the operators in aten, whatever is installed: what a proof compares with.

    torch.jit's own interpreter does not see it.
    """
    # torch compiles the branches of torch.cond, and what it compiled under this mode fails without it.
    with torch.compiler.set_stance("force_eager"), _Aten():  # type: ignore[no-untyped-call]
        yield


def packed_signs(m: Mapping) -> Tensor:
    """Signs from MT19937 as torch_mapping takes them: uint8[ceil(numel / 8)]; empty for other signs."""
    return _packed_signs(m) if m.sign is Sign.MT19937 else torch.empty(0, dtype=torch.uint8)


@lru_cache(maxsize=1024)
def _packed_signs(m: Mapping) -> Tensor:
    # Under torch.export a fake tensor must not end up in the cache.
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.from_numpy(m.packed_signs())


@lru_cache(maxsize=4096)
def _record(fields: tuple[int, ...]) -> Mapping:
    return Mapping.from_list(fields)


def _drawn(m: Mapping, scale: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Slots int64[shape] and factors [shape] of a map drawn from MT19937."""
    slots = torch.from_numpy(m.indices()).to(like.device)
    factor = torch.tensor(scale, dtype=torch.float32, device=like.device).to(like.dtype)
    return slots, torch.from_numpy(m.signs()).to(like) * factor


def _gather(memory: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _record(tuple(mapping))
    if m.element is Element.HASH:
        return torch_mapping.gather(memory, m.to_list(), scale, packed_signs(m))
    memory = memory.to(torch_mapping.compute_dtype(memory))
    slots, factors = _drawn(m, scale, memory)
    return memory[slots] * factors


def _gather_backward(grad: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _record(tuple(mapping))
    if m.element is Element.HASH:
        return torch_mapping.gather_backward(grad, m.to_list(), scale, packed_signs(m))
    grad = grad.to(torch_mapping.compute_dtype(grad))
    slots, factors = _drawn(m, scale, grad)
    return grad.new_zeros(m.n_memory).index_add_(0, slots.flatten(), (grad * factors).flatten())


def _embedding(memory: Tensor, ids: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _checked_table(ids, mapping)
    if m.element is Element.HASH:
        return torch_mapping.embedding(memory, ids, m.to_list(), scale, packed_signs(m))
    memory = memory.to(torch_mapping.compute_dtype(memory))
    slots, factors = _drawn(m, scale, memory)
    return memory[slots[ids]] * factors[ids]


def _embedding_backward(grad: Tensor, ids: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    m = _checked_table(ids, mapping)
    if m.element is Element.HASH:
        return torch_mapping.embedding_backward(grad, ids, m.to_list(), scale, packed_signs(m))
    grad = grad.to(torch_mapping.compute_dtype(grad))
    slots, factors = _drawn(m, scale, grad)
    sums = grad.new_zeros(m.n_memory)
    return sums.index_add_(0, slots[ids].flatten(), (grad * factors[ids]).flatten())


def _checked_table(ids: Tensor, mapping: Sequence[int]) -> Mapping:
    m = _record(tuple(mapping))
    rows = m.shape[0]
    if ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < rows):
        raise IndexError(f"an id is outside [0, {rows})")
    return m


def _linear(x: Tensor, memory: Tensor, bias: Tensor | None, mapping: Sequence[int], scale: float) -> Tensor:
    weight = torch.ops.roast.gather(memory, mapping, scale)
    return torch.nn.functional.linear(x, weight.flatten(1), bias)


def _linear_aten(
    x: Tensor, memory: Tensor, bias: Tensor | None, mapping: Sequence[int], scale: float
) -> Tensor:
    return torch.nn.functional.linear(x, _gather(memory, mapping, scale).flatten(1), bias)


ATEN: dict[str, Callable[..., Tensor]] = {
    "gather": _gather,
    "gather_backward": _gather_backward,
    "embedding": _embedding,
    "embedding_backward": _embedding_backward,
    "linear": _linear_aten,
}
"""What each operator computes, in aten operators alone."""


class _Aten(TorchDispatchMode):
    # Branches of torch.cond and its like run as they are, with the library where it is installed.
    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):
            # torch turns the mode off for torch.cond and loops; their branches and bodies need it.
            return func(*(self._within(a) if callable(a) else a for a in args), **(kwargs or {}))
        namespace, _, name = str(getattr(func, "_name", "")).partition("::")
        if namespace == "roast" and name in ATEN:
            return ATEN[name](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _within(self, branch: Callable[..., Any]) -> Callable[..., Any]:
        def run(*operands: Any) -> Any:
            with self:
                return branch(*operands)

        return run


# ---- What torch.export and autograd need to know ----


def _fake_gather(memory: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    shape = _record(tuple(mapping)).shape
    return memory.new_empty(shape, dtype=torch_mapping.compute_dtype(memory))


def _fake_sums(grad: Tensor, *rest: Any) -> Tensor:
    n_memory = _record(tuple(rest[-2])).n_memory
    return grad.new_empty(n_memory, dtype=torch_mapping.compute_dtype(grad))


def _fake_embedding(memory: Tensor, ids: Tensor, mapping: Sequence[int], scale: float) -> Tensor:
    dim = _record(tuple(mapping)).shape[1]
    return memory.new_empty((*ids.shape, dim), dtype=torch_mapping.compute_dtype(memory))


def _fake_linear(
    x: Tensor, memory: Tensor, bias: Tensor | None, mapping: Sequence[int], scale: float
) -> Tensor:
    m = _record(tuple(mapping))
    torch._check(x.shape[-1] == m.numel // m.shape[0], lambda: "x does not fit the weight")
    return x.new_empty((*x.shape[:-1], m.shape[0]))


# Gather and embedding are linear in the array, so each gradient's own gradient is the operator.


def _keep_gather(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.array_dtype, ctx.mapping, ctx.scale = inputs[0].dtype, inputs[1], inputs[2]


def _keep_lookup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.array_dtype, ctx.mapping, ctx.scale = inputs[0].dtype, inputs[2], inputs[3]


def _keep_linear(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.mapping, ctx.scale = inputs[3], inputs[4]


def _gather_gradient(ctx: Any, grad: Tensor) -> Any:
    sums = torch.ops.roast.gather_backward(grad, ctx.mapping, ctx.scale)
    return sums.to(ctx.array_dtype), None, None


def _gather_second(ctx: Any, grad: Tensor) -> Any:
    return torch.ops.roast.gather(grad, ctx.mapping, ctx.scale), None, None


def _embedding_gradient(ctx: Any, grad: Tensor) -> Any:
    (ids,) = ctx.saved_tensors
    sums = torch.ops.roast.embedding_backward(grad, ids, ctx.mapping, ctx.scale)
    return sums.to(ctx.array_dtype), None, None, None


def _embedding_second(ctx: Any, grad: Tensor) -> Any:
    (ids,) = ctx.saved_tensors
    return torch.ops.roast.embedding(grad, ids, ctx.mapping, ctx.scale), None, None, None


def _linear_gradient(ctx: Any, grad: Tensor) -> Any:
    x, memory = ctx.saved_tensors
    needs_x, needs_memory, needs_bias, *_ = ctx.needs_input_grad
    of_x = of_memory = of_bias = None
    rows = grad.reshape(-1, grad.shape[-1])
    if needs_x:
        of_x = grad @ torch.ops.roast.gather(memory, ctx.mapping, ctx.scale).flatten(1)
    if needs_memory:
        of_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).view(_record(tuple(ctx.mapping)).shape)
        sums = torch.ops.roast.gather_backward(of_weight, ctx.mapping, ctx.scale)
        of_memory = sums.to(memory.dtype)
    if needs_bias:
        of_bias = rows.sum(0)
    return of_x, of_memory, of_bias, None, None


def _register() -> None:
    ours = library.Library("roast", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.roast, name):
            ours.define(name + schema)
        # The library's kernels hand over to these what they do not serve.
        ours.define(f"{name}_aten{schema}")
        ours.impl(f"{name}_aten", ATEN[name], "CompositeExplicitAutograd")
        ours.impl(name, ATEN[name] if name != "linear" else _linear, "CompositeExplicitAutograd")
    for device in ("AutocastCPU", "AutocastCUDA"):
        # As nn.Linear: the weight is made, and the product runs in autocast's own dtype.
        ours.impl("linear", _linear, device)
    _KEEP.append(ours)

    fakes: dict[str, Callable[..., Tensor]] = {
        "gather": _fake_gather,
        "gather_backward": _fake_sums,
        "embedding": _fake_embedding,
        "embedding_backward": _fake_sums,
        "linear": _fake_linear,
    }
    for name, fake in fakes.items():
        library.register_fake(f"roast::{name}", fake)
        library.register_fake(f"roast::{name}_aten", fake)

    register = library.register_autograd
    register("roast::gather", _gather_gradient, setup_context=_keep_gather)
    register("roast::gather_backward", _gather_second, setup_context=_keep_gather)
    register("roast::embedding", _embedding_gradient, setup_context=_keep_lookup)
    register("roast::embedding_backward", _embedding_second, setup_context=_keep_lookup)
    register("roast::linear", _linear_gradient, setup_context=_keep_linear)


_KEEP: list[library.Library] = []
"""Registrations last as long as the objects that made them."""


def _load() -> str | None:
    try:
        load_torch_library()
    except RoastError as error:
        if hasattr(torch.ops.roast, "gather"):
            raise  # operators of another version are in this process
        return str(error)
    return None


LIBRARY_ABSENT = _load()
"""Why the native library does not serve, or None."""
_register()
