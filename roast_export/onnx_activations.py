"""Activations and logarithms in ONNX whose translation by torch.onnx loses digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

NEAR = 0.5
"""Below this size 1 + x loses digits of x that its logarithm has."""

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def activations(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file.

    log1p and expm1 correct the rounding of 1 + x by the quotient of x and what was added; source: W. Kahan,
    in N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 1.14.1.
    """

    def log_sigmoid(x: Any) -> Any:
        # The logarithm of a rounded sigmoid is off by 3e-5 of it at -9, and -inf at -100.
        return standard.Neg(standard.Softplus(standard.Neg(x)))

    def number(value: float, like: Any) -> Any:
        return standard.CastLike(standard.Constant(value_float=value), like)

    def corrected(x: Any, plain: Any, near: Any, same: Any) -> Any:
        """`near` where x is small, and x itself where nothing of it was added."""
        small = standard.Less(standard.Abs(x), number(NEAR, x))
        return standard.Where(small, standard.Where(same, x, near), plain)

    def in_float32(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function that computes as PyTorch does: narrow types in float32, whole numbers as float32."""

        def translated(x: Any) -> Any:
            if x.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
                return function(x)
            found = function(standard.Cast(x, to=int(ir.DataType.FLOAT)))
            return standard.CastLike(found, x) if x.dtype in NARROW else found

        return translated

    def log1p(x: Any) -> Any:
        one = number(1.0, x)
        total = standard.Add(x, one)
        added, logarithm = standard.Sub(total, one), standard.Log(total)
        near = standard.Mul(logarithm, standard.Div(x, added))
        return corrected(x, logarithm, near, standard.Equal(added, number(0.0, x)))

    def expm1(x: Any) -> Any:
        one = number(1.0, x)
        power = standard.Exp(x)
        plain = standard.Sub(power, one)
        near = standard.Mul(plain, standard.Div(x, standard.Log(power)))
        return corrected(x, plain, near, standard.Equal(power, one))

    aten = torch.ops.aten
    return {
        aten.log_sigmoid.default: log_sigmoid,
        aten.log1p.default: in_float32(log1p),
        aten.expm1.default: in_float32(expm1),
        aten.special_log1p.default: in_float32(log1p),
        aten.special_expm1.default: in_float32(expm1),
    }
