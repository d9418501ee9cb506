"""Pooling over a whole axis, as in max_pool1d(x, x.size(2)), without fixing the length of that axis.

torch keeps the window of a pooling operator as plain numbers, so a trace would take the example's length for
a constant. The maximum or the mean over the axis is the same, and takes any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_POOLING: dict[str, tuple[int, Callable[..., Tensor], dict[str, Any]]] = {
    f"{name}_pool{axes}d": (axes, whole, plain)
    for axes in (1, 2, 3)
    for name, whole, plain in (
        ("max", torch.amax, {"padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}),
        ("avg", torch.mean, {"padding": 0, "ceil_mode": False, "divisor_override": None}),
    )
}
"""By name: pooled axes, what is computed over a whole one, and the options under which that is the same."""

_ORDER = {"max": ("stride", "padding", "dilation", "ceil_mode"), "avg": ("stride", "padding", "ceil_mode")}


class WholePooling(TorchFunctionMode):
    """While it is active, pooling whose window is the length of an axis becomes a reduction over it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = _POOLING.get(getattr(func, "__name__", ""))
        found = None if known is None else _reduced(func, *known, args, kwargs or {})
        return func(*args, **(kwargs or {})) if found is None else found


def _reduced(
    func: Any,
    axes: int,
    whole: Callable[..., Tensor],
    plain: dict[str, Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Tensor | None:
    options = {
        **dict(zip(("input", "kernel_size", *_ORDER[func.__name__[:3]]), args, strict=False)),
        **kwargs,
    }
    x, window, stride = options.pop("input"), options.pop("kernel_size", None), options.pop("stride", None)
    window = _each(window, axes)
    lengths = x.shape[x.dim() - axes :]
    if window is None or not any(isinstance(k, torch.SymInt) for k in window):
        return None
    if any(not _is_plain(options.get(name, value), value) for name, value in plain.items()):
        return None
    taken = [k - axes for k in range(axes) if _same(window[k], lengths[k])]
    left = [1 if k - axes in taken else size for k, size in enumerate(window)]
    if any(isinstance(size, torch.SymInt) for size in left) or not _is_default(stride, window, taken):
        return None
    reduced: Tensor = whole(x, dim=taken, keepdim=True)
    return func(reduced, left) if any(size != 1 for size in left) else reduced


def _each(value: Any, axes: int) -> list[Any] | None:
    """A setting for each axis, from one for all."""
    if isinstance(value, int | torch.SymInt):
        return [value] * axes
    found = list(value) if value is not None else []
    return found * axes if len(found) == 1 else found if len(found) == axes else None


def _same(size: Any, length: Any) -> bool:
    """Whether they are one number by their symbols alone: a question of the values would fix them."""
    if isinstance(size, torch.SymInt) and isinstance(length, torch.SymInt):
        return bool(size.node.expr == length.node.expr)
    return isinstance(size, int) and isinstance(length, int) and size == length


def _is_default(stride: Any, window: list[Any], taken: list[int]) -> bool:
    """Whether the stride is the window itself. Along a whole axis it makes no step."""
    each = window if stride is None or stride == () else _each(stride, len(window))
    places = [k for k in range(len(window)) if k - len(window) not in taken]
    return each is not None and all(_same(each[k], window[k]) for k in places)


def _is_plain(value: Any, wanted: Any) -> bool:
    return all(item == wanted for item in value) if isinstance(value, tuple | list) else value == wanted
