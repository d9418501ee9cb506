"""Distances between rows in ONNX, which torch.onnx translates for long matrices alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def distances(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file."""

    def number(value: float, like: Any) -> Any:
        return standard.CastLike(standard.Constant(value_float=value), like)

    def cdist(x1: Any, x2: Any, p: float, compute_mode: Any = None) -> Any:
        """Of x1[..., P, M] and x2[..., R, M]: [..., P, R]; source: torch.cdist."""
        after, before, last = (standard.Constant(value_ints=[axis]) for axis in (-2, -3, -1))
        apart = standard.Abs(standard.Sub(standard.Unsqueeze(x1, after), standard.Unsqueeze(x2, before)))
        if p == float("inf"):
            return standard.ReduceMax(apart, last, keepdims=0)
        if p == 0.0:
            differs = standard.Not(standard.Equal(apart, number(0.0, x1)))
            return standard.ReduceSum(standard.CastLike(differs, x1), last, keepdims=0)
        if p == 1.0:
            return standard.ReduceSum(apart, last, keepdims=0)
        if p == 2.0:
            return standard.ReduceL2(apart, last, keepdims=0)
        total = standard.ReduceSum(standard.Pow(apart, number(p, x1)), last, keepdims=0)
        return standard.Pow(total, number(1.0 / p, x1))

    return {torch.ops.aten._cdist_forward.default: cdist}
