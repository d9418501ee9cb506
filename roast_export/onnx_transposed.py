"""Transposed convolutions with a virtual weight in ONNX: a product with the weight as it is, never expanded.

    ConvTranspose(x, W), W float[in, out, *kernel], is what Col2Im adds up of
    columns[place] = W^T x[place]    float[batch, out * kernel, places]

The operator ConvTranspose turns the weight in every run where it is not stored. fuse.py makes RoastLinear of
the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from roast_export import onnx_ops

TILE_WIDTH = 16
"""Tiles from this width on are multiplied as vectors."""

FEW_PLACES = 32
"""Places of the input up to which the turning of the weight counts."""

LEAST_ELEMENTS = 1 << 15
MANY_ELEMENTS = 1 << 18
"""Elements of a weight from which the product is faster than ConvTranspose, at few and at many places."""


def transposed_convolutions(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file."""
    aten = torch.ops.aten
    return {
        aten.conv_transpose1d.default: _translation(standard, 1),
        aten.conv_transpose2d.input: _translation(standard, 2),
    }


def _translation(standard: Any, axes: int) -> Callable[..., Any]:
    def each(given: int | Sequence[int]) -> list[int]:
        """One number for every axis of the kernel."""
        numbers = [given] if isinstance(given, int) else list(given)
        return numbers * axes if len(numbers) == 1 else numbers

    def translate(
        input: Any,  # noqa: A002 - torch.onnx passes arguments by the operator's names for them
        weight: Any,
        bias: Any = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Any:
        window = _Window(
            [int(length) for length in weight.shape[2:]],
            *map(each, (stride, padding, output_padding, dilation)),
        )
        alone = len(input.shape) == axes + 1
        first = standard.Constant(value_ints=[0])
        x = standard.Unsqueeze(input, first) if alone else input
        if groups == 1 and _is_multiplied(weight, _least(input.shape[-axes:])):
            y = _multiplied(standard, x, weight, bias, window)
        else:
            y = _operator(standard, x, weight, bias, window, groups)
        return standard.Squeeze(y, first) if alone else y

    return translate


class _Window:
    """Where a kernel lies: a number for each of its axes in each list."""

    def __init__(
        self, kernel: list[int], stride: list[int], padding: list[int], more: list[int], dilation: list[int]
    ) -> None:
        self.kernel, self.stride, self.padding, self.more = kernel, stride, padding, more
        self.dilation = dilation

    def added(self) -> list[int]:
        """What the output's lengths are longer than stride * the input's lengths."""
        return [
            d * (k - 1) + 1 + m - 2 * p - s
            for k, s, p, m, d in zip(
                self.kernel, self.stride, self.padding, self.more, self.dilation, strict=True
            )
        ]

    def of_two_axes(self) -> _Window:
        """The same with a first axis of length 1, if there is one axis: Col2Im is fastest with two."""
        if len(self.kernel) == 2:
            return self
        return _Window(
            [1, *self.kernel], [1, *self.stride], [0, *self.padding], [0, *self.more], [1, *self.dilation]
        )


def _least(lengths: Sequence[Any]) -> int:
    """Elements of a weight from which it is multiplied. lengths: of the input, as far as they are known."""
    known = [length for length in lengths if isinstance(length, int)]
    # Sequences are often short where their length is dynamic, and images seldom small.
    few = math.prod(known) <= FEW_PLACES if len(known) == len(lengths) else len(lengths) == 1
    return LEAST_ELEMENTS if few else MANY_ELEMENTS


def _is_multiplied(weight: Any, least: int) -> bool:
    """Whether a value is a virtual weight of so many elements that lies in the array as (inputs, outputs)."""
    node = weight.producer()
    if node is None or (node.domain, node.op_type) != (onnx_ops.DOMAIN, "RoastGather"):
        return False
    mapping, _ = onnx_ops.mapping_of(ir.to_proto(node))
    as_it_lies = not mapping.transposed and mapping.matrix[0] == mapping.shape[0]
    return as_it_lies and mapping.tile[1] >= TILE_WIDTH and mapping.numel >= least


def _operator(standard: Any, x: Any, weight: Any, bias: Any, window: _Window, groups: int) -> Any:
    return standard.ConvTranspose(
        x,
        weight,
        bias,
        strides=window.stride,
        pads=[*window.padding, *window.padding],
        output_padding=window.more,
        dilations=window.dilation,
        group=groups,
    )


def _multiplied(standard: Any, x: Any, weight: Any, bias: Any, window: _Window) -> Any:
    def numbers(values: Sequence[int]) -> Any:
        return standard.Constant(value_ints=list(values))

    single = len(window.kernel) == 1
    inputs, outputs = int(weight.shape[0]), int(weight.shape[1])
    window = window.of_two_axes()
    x = standard.Unsqueeze(x, numbers([2])) if single else x
    lengths = standard.Add(
        standard.Mul(standard.Shape(x, start=2), numbers(window.stride)), numbers(window.added())
    )
    places = standard.Transpose(standard.Reshape(x, numbers([0, inputs, -1])), perm=[0, 2, 1])
    matrix = standard.Reshape(weight, numbers([inputs, outputs * math.prod(window.kernel)]))
    columns = standard.Transpose(standard.MatMul(places, matrix), perm=[0, 2, 1])
    y = standard.Col2Im(
        columns,
        lengths,
        numbers(window.kernel),
        strides=window.stride,
        pads=[*window.padding, *window.padding],
        dilations=window.dilation,
    )
    y = standard.Squeeze(y, numbers([2])) if single else y
    if bias is None:
        return y
    return standard.Add(y, standard.Reshape(bias, numbers([outputs, 1] if single else [outputs, 1, 1])))
