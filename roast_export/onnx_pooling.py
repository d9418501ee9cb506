"""Adaptive average pooling in ONNX, for lengths that are known only when the file runs.

torch.onnx writes one AveragePool whose kernel follows from the example's lengths, which is wrong for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def pooling(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file.

    Place i of n averages the elements from floor(i * length / n) to ceil((i + 1) * length / n), exclusive;
    source: torch.nn.AdaptiveAvgPool2d. The window is a rectangle, so one axis is averaged after the other.
    """

    def along(x: Any, axis: int, places: int) -> Any:
        if places == 1:
            return standard.ReduceMean(x, _numbers(standard, axis), keepdims=1)
        length = standard.Gather(standard.Shape(x), _numbers(standard, axis), axis=0)
        parts = []
        for i in range(places):
            start = standard.Div(standard.Mul(length, _numbers(standard, i)), _numbers(standard, places))
            ahead = standard.Add(
                standard.Mul(length, _numbers(standard, i + 1)), _numbers(standard, places - 1)
            )
            end = standard.Div(ahead, _numbers(standard, places))
            window = standard.Slice(x, start, end, _numbers(standard, axis))
            parts.append(standard.ReduceMean(window, _numbers(standard, axis), keepdims=1))
        return standard.Concat(*parts, axis=axis)

    def pool(x: Any, output_size: Sequence[int | None]) -> Any:
        for k, places in enumerate(output_size):
            axis = k - len(output_size)
            if places is not None and places >= 0:
                x = along(x, axis, int(places))
        return x

    aten = torch.ops.aten
    return {
        aten.adaptive_avg_pool1d.default: pool,
        aten.adaptive_avg_pool2d.default: pool,
        aten._adaptive_avg_pool2d.default: pool,
        aten._adaptive_avg_pool3d.default: pool,
    }


def _numbers(standard: Any, value: int) -> Any:
    return standard.Constant(value_ints=[value])
