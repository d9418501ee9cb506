"""A run in which every operator rounds worse than it does: it shows how far a model amplifies rounding.

Other runtimes add in other orders and approximate exp, tanh and erf by other polynomials. Under `Rounding`
each result of an operator is moved at random by a few units in its last place, as in Monte Carlo arithmetic
(D. S. Parker, UCLA CSD-970002, 1997). Two such runs differ by what two runtimes may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

ROUNDINGS = 8
"""Roundings (half a unit in the last place) by which a float32 or float64 result moves at most.

A sum of a few hundred products, and the polynomials of runtimes, are off by about so much.
"""

HALF_ROUNDINGS = 2
"""The same for float16 and bfloat16, whose results are computed in float32 and rounded once."""

SUMS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "linear": 0, "convolution": 1}
"""Sums of products, with the argument whose size tells how many terms each has."""

TERMS = {
    "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "linear": 0, "convolution": 0, "mv": 0, "dot": 0, "sum": 0,
    "mean": 0, "cumsum": 0, "native_layer_norm": 0, "native_group_norm": 0,
    "_scaled_dot_product_flash_attention_for_cpu": 0,
}  # fmt: skip
"""Sums, with the argument that is moved before they are computed: each term is rounded at its own size, and
a sum of both signs can be far smaller."""

TERM_ROUNDINGS = 2
"""Roundings by which a term of a sum moves at most."""

USUAL_TERMS = 256
"""Terms up to which a sum is off by ROUNDINGS; beyond them the error grows as a random walk does."""

LARGEST_WHOLE = 1 << 16
"""Whole numbers up to this are taken for counts, ids and masks."""

FOURIER = frozenset({"_fft_c2c", "_fft_c2r", "_fft_r2c"})
"""Fourier transforms: each result is off by roundings of a usual result, however small it is itself."""

INTERPOLATIONS = frozenset({
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler_2d", "grid_sampler_3d",
})  # fmt: skip
"""Values between those of a grid: runtimes round the places, and the largest places by the most."""

EUCLIDEAN = frozenset({"_cdist_forward", "_euclidean_dist"})
"""Distances that PyTorch computes of many rows as |x|^2 + |y|^2 - 2 x.y, which cancels between near rows."""

BOUNDED = frozenset({"sigmoid", "erf", "erfc", "log_sigmoid_forward"})
"""Functions that runtimes compute to within roundings of 1, also where the result is small."""

SATURATING = frozenset({"sigmoid", "erf", "tanh", "_softmax"})
"""Functions whose result is 1 in one runtime and just below it in another: there 1 is no exact number."""

OF_INPUT = frozenset({"gelu", "silu", "mish", "celu", "elu", "hardswish"})
"""Products of the input and a bounded function: runtimes are off by roundings of the input."""

EXACT = {
    "_reshape_alias", "_to_copy", "_unsafe_index", "_unsafe_view", "abs", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "alias", "amax", "amin", "arange", "argsort", "as_strided", "cat", "ceil",
    "clamp", "clamp_max", "clamp_min", "clone", "constant_pad_nd", "contiguous", "copy", "cummax",
    "cummin", "detach", "diagonal", "embedding", "empty", "empty_like", "expand", "eye", "fill",
    "flatten", "flip", "floor", "full", "full_like", "gather", "hardtanh", "im2col", "index", "index_put",
    "index_select", "lift", "lift_fresh", "lift_fresh_copy", "masked_fill", "masked_scatter", "max",
    "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d", "max_pool3d_with_indices",
    "maximum", "min", "minimum", "mode", "narrow", "neg", "new_empty", "new_full", "new_ones",
    "new_zeros", "nonzero", "one_hot", "ones", "ones_like", "pad", "permute", "pixel_shuffle",
    "pixel_unshuffle", "rand", "randn", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "relu", "relu6", "repeat", "repeat_interleave", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "reshape", "roll", "round", "scalar_tensor", "scatter", "select",
    "select_scatter", "sgn", "sign", "slice", "slice_scatter", "sort", "split", "squeeze", "stack", "t",
    "threshold", "to", "topk", "transpose", "tril", "triu", "trunc", "unbind", "unfold", "unsqueeze",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "view", "where", "zero", "zeros",
    "zeros_like",
}  # fmt: skip
"""Operators that move values or choose among them: every runtime gives the same bits."""


class Rounding(TorchDispatchMode):
    """Moves each float result of an operator by at most ROUNDINGS roundings.

    seed: of the random numbers.
    sign: 1 or -1. Two runs of one seed and both signs move in opposite directions, so that one of them
        crosses every threshold that is near.
    opaque: whether oneDNN computed a whole LSTM as one operator, so that the rounding within it went unseen.
    """

    supports_higher_order_operators = True

    def __init__(self, seed: int, sign: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.opaque = False
        self.generator = torch.Generator().manual_seed(seed)
        self.sign = sign
        self._narrowed: Any = WeakTensorKeyDictionary()

    def as_output(self, value: Tensor) -> Tensor:
        """`value`; if it was made narrow last of all, without what a runtime adds that leaves that out."""
        narrowed: Tensor = self._narrowed.get(value, value)
        return narrowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            return self._control_flow(func, args, kwargs or {})
        name = str(func.overloadpacket.__name__)
        result = func(*args, **(kwargs or {}))
        self.opaque |= name == "mkldnn_rnn_layer"
        mutates = bool(func._schema.is_mutable)
        if name == "_to_copy" and _narrows(args[0], result):
            # Runtimes leave casts out where they compute narrow types in float32.
            moved = self.moved(result)
            self._narrowed[moved] = result
            return moved
        if func.is_view or (name.rstrip("_") if mutates else name) in EXACT:
            return result
        if mutates:
            for value in pytree.tree_leaves(result):
                if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                    value.copy_(self.moved(value))
            return result
        if name in FOURIER:
            usual = _usual_size(result, args[1])
            return self.moved(result, usual, _transformed(name, args, result), exact=False)
        if name in INTERPOLATIONS:
            return self.moved(result, *_between(func, args, kwargs or {}, result))
        if name in EUCLIDEAN and (len(args) < 3 or args[2] == 2.0):
            sizes = args[0].square().sum(-1, keepdim=True) + args[1].square().sum(-1).unsqueeze(-2)
            return self.moved(result.square(), sizes, 2.0, exact=False).clamp(min=0).sqrt()
        floor, more = _floor(name, args), _accumulated(name, args)
        if name in TERMS:
            result = self._of_moved_terms(func, args, kwargs or {}, result, TERMS[name], more)
        moved = pytree.tree_map_only(Tensor, lambda value: self.moved(value, floor, more), result)
        return self._saturated(result, moved) if name in SATURATING else moved

    def _control_flow(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """A branch or a loop, with the operators in it moved; of others the results alone are moved."""
        if func is torch.ops.higher_order.cond:
            chosen, otherwise, operands = args[1:4]
            with self:
                return (chosen if bool(args[0]) else otherwise)(*operands)
        if func is torch.ops.higher_order.while_loop:
            goes_on, body, carried, fixed = args[:4]
            with self:
                while bool(goes_on(*carried, *fixed)):
                    carried = body(*carried, *fixed)
                return carried
        return pytree.tree_map_only(Tensor, self.moved, func(*args, **kwargs))

    def _of_moved_terms(self, func: Any, args: Any, kwargs: Any, result: Any, place: int, more: float) -> Any:
        """A sum whose terms are rounded, each at its own size; `result` where no runtime rounds."""
        terms = args[place]
        # Narrow types are added in float32: no term rounds as far as they do.
        if not terms.is_floating_point() or terms.dtype.itemsize < 4 or terms.numel() == 0:
            return result
        noise = self._noise(terms, TERM_ROUNDINGS * more)
        found = func(*args[:place], terms + noise * terms, *args[place + 1 :], **kwargs)
        if not bool(_few_digits(terms).all()):
            return found
        return pytree.tree_map(_unless_whole, result, found)

    def moved(
        self, value: Tensor, floor: Tensor | float = 0.0, more: float = 1.0, *, exact: bool = True
    ) -> Tensor:
        """`value` with each element moved.

        floor: the size below which an element counts as that large.
        more: how many times as far as usual.
        exact: whole numbers and numbers of few digits stay.
        """
        if value.is_complex():
            # Both parts of a product are made of both parts of its factors.
            size = torch.maximum(value.abs(), torch.as_tensor(floor)).unsqueeze(-1)
            parts = torch.view_as_real(value.resolve_conj())
            return torch.view_as_complex(self.moved(parts, size, more, exact=exact).contiguous())
        if not value.is_floating_point() or value.numel() == 0 or value.dtype.itemsize < 2:
            return value
        noise = self._noise(value, HALF_ROUNDINGS if value.dtype.itemsize == 2 else ROUNDINGS * more)
        size = value.abs() if isinstance(floor, float) and floor == 0.0 else value.abs().clamp(min=floor)
        moved = (value + noise * size).to(value.dtype)
        return torch.where(_few_digits(value), value, moved) if exact else moved

    def _saturated(self, result: Tensor, moved: Tensor) -> Tensor:
        """`moved`, which is nowhere beyond 1, and just below where the result is 1."""
        roundings = HALF_ROUNDINGS if result.dtype.itemsize == 2 else ROUNDINGS
        below = (result * (1 - self._noise(result, roundings).clamp(min=0))).to(result.dtype)
        return torch.where(result.abs() == 1, below, moved.clamp(-1, 1))

    def _noise(self, value: Tensor, roundings: float) -> Tensor:
        """Random shares of each element, of at most so many roundings of its type."""
        unit = roundings * torch.finfo(value.dtype).eps / 2
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        noise = torch.empty(value.shape, dtype=wide)
        return noise.uniform_(-unit, unit, generator=self.generator).mul_(self.sign)


def _floor(name: str, args: Any) -> Tensor | float:
    """The size below which a result of an operator counts as that large."""
    if name in OF_INPUT and isinstance(args[0], Tensor):
        return args[0].abs()
    return float(name in BOUNDED)


def _between(func: Any, args: Any, kwargs: Any, result: Tensor) -> tuple[Tensor | float, float]:
    """For an interpolation: the sizes of the values around each result, and how many times as far as usual
    it is off, measured against the same operator in float64."""
    if result.dtype != torch.float32:
        return 0.0, 1.0
    sizes = func(args[0].abs(), *args[1:], **kwargs).abs()
    wide = pytree.tree_map_only(Tensor, Tensor.double, (args, kwargs))
    off, usual = (func(*wide[0], **wide[1]) - result).square().mean().sqrt(), sizes.square().mean().sqrt()
    unit = ROUNDINGS * torch.finfo(result.dtype).eps / 2
    return sizes, max(1.0, float(torch.nan_to_num(4 * off / (unit * usual))))


def _accumulated(name: str, args: Any) -> float:
    """How many times as far off as usual a long sum is."""
    if name not in SUMS:
        return 1.0
    tensor = args[SUMS[name]]
    terms = tensor[0].numel() if name == "convolution" else tensor.shape[-1]
    return max(1.0, math.sqrt(terms / USUAL_TERMS))


def _narrows(value: Tensor, result: Tensor) -> bool:
    floats = value.is_floating_point() and result.is_floating_point()
    return floats and result.dtype.itemsize == 2 < value.dtype.itemsize


def _usual_size(value: Tensor, dims: Sequence[int]) -> Tensor:
    """The root mean square over the transformed dimensions, which keep a length of 1."""
    return value.abs().square().mean(list(dims), keepdim=True).sqrt() if len(dims) else value.abs()


def _transformed(name: str, args: Any, result: Tensor) -> float:
    """How many times as far off as usual a Fourier transform is.

    The transforms of ONNX Runtime compute angles in float32 where a length is no power of two: 88 roundings
    at a length of 48 and 690 at 400 (root mean square; 3 to 7 where it is one, up to 512).
    """
    longer = result if name == "_fft_c2r" else args[0]
    more = 1.0
    for length in (int(longer.shape[axis]) for axis in args[1]):
        whole = length & (length - 1) == 0
        more += math.log2(length) / 4 if whole and length else length / 2
    return more


def _unless_whole(result: Any, found: Any) -> Any:
    """`found`, except where the result is a whole number: sums of whole numbers are exact."""
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return result
    return torch.where(result == result.round(), result, found)


def _few_digits(value: Tensor) -> Tensor:
    """Where a number is whole or has at most half of the digits of its type: it is no result of rounding."""
    whole = (value == value.round()) & (value.abs() <= LARGEST_WHOLE)
    if value.dtype == torch.float32:
        whole |= value.contiguous().view(torch.int32) & 0xFFF == 0
    elif value.dtype == torch.float64:
        whole |= value.contiguous().view(torch.int64) & 0x3FFFFFF == 0
    return whole | ~torch.isfinite(value)
