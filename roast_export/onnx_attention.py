"""Scaled dot product attention in ONNX, with PyTorch's answer for queries that may attend to nothing.

There PyTorch gives 0. torch.onnx's own translation averages all values if the mask is boolean, and gives NaN
if the mask holds -inf: ONNX has no softmax that knows of empty rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch


def attention(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file.

    Source: torch.nn.functional.scaled_dot_product_attention and torch's _safe_softmax.
    """

    def attend(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if enable_gqa:
            key, value = (_repeated(standard, each, query.shape[-3]) for each in (key, value))
        root = _root_of_scale(standard, query, scale)
        axes = list(range(len(query.shape)))
        turned = standard.Transpose(key, perm=[*axes[:-2], axes[-1], axes[-2]])
        scores = standard.MatMul(standard.Mul(query, root), standard.Mul(turned, root))
        if is_causal:
            attn_mask = _causal(standard, query, key)
        if attn_mask is None:
            return standard.MatMul(standard.Softmax(scores, axis=-1), value)
        if not is_causal and attn_mask.dtype != ir.DataType.BOOL:
            weights = standard.Softmax(standard.Add(scores, attn_mask), axis=-1)
            nothing = _number(standard, attn_mask.dtype, -math.inf)
            empty = standard.Equal(standard.ReduceMax(attn_mask, _last(standard)), nothing)
        else:
            # The least number and not -inf: an empty row must not become NaN on the way.
            least = _number(standard, query.dtype, query.dtype.min)
            weights = standard.Softmax(standard.Where(attn_mask, scores, least), axis=-1)
            if is_causal:
                return standard.MatMul(weights, value)
            kept = standard.ReduceSum(standard.Cast(attn_mask, to=int(ir.DataType.FLOAT)), _last(standard))
            empty = standard.Equal(kept, _number(standard, ir.DataType.FLOAT, 0.0))
        return standard.Where(empty, _number(standard, query.dtype, 0.0), standard.MatMul(weights, value))

    return {torch.ops.aten.scaled_dot_product_attention.default: attend}


def _root_of_scale(standard: Any, query: Any, scale: float | None) -> Any:
    """The square root of the scale: queries and keys take one each, as in torch."""
    width = query.shape[-1]
    if scale is None and isinstance(width, int):
        scale = 1 / math.sqrt(width)
    if scale is not None:
        return _number(standard, query.dtype, math.sqrt(scale))
    length = standard.Cast(standard.Shape(query, start=-1), to=int(ir.DataType.FLOAT))
    return standard.CastLike(standard.Pow(length, _number(standard, ir.DataType.FLOAT, -0.25)), query)


def _repeated(standard: Any, x: Any, heads: int) -> Any:
    """Each head of keys or values for several heads of queries in turn: [..., heads, length, width]."""
    before, own = len(x.shape) - 3, x.shape[-3]
    wide = standard.Unsqueeze(x, standard.Constant(value_ints=[before + 1]))
    wide = standard.Expand(wide, standard.Constant(value_ints=[1] * (before + 1) + [heads // own, 1, 1]))
    ends = (standard.Shape(x, end=before), standard.Constant(value_ints=[heads]), standard.Shape(x, start=-2))
    return standard.Reshape(wide, standard.Concat(*ends[not before :], axis=0))


def _causal(standard: Any, query: Any, key: Any) -> Any:
    """Query i attends to the keys 0 to i: bool[queries, keys]."""
    zero, one = standard.Constant(value_int=0), standard.Constant(value_int=1)

    def places(x: Any) -> Any:
        length = standard.Squeeze(standard.Shape(x, start=-2, end=-1), standard.Constant(value_ints=[0]))
        return standard.Range(zero, length, one)

    rows = standard.Unsqueeze(places(query), standard.Constant(value_ints=[1]))
    return standard.GreaterOrEqual(rows, places(key))


def _last(standard: Any) -> Any:
    return standard.Constant(value_ints=[-1])


def _number(standard: Any, dtype: ir.DataType, value: float) -> Any:
    return standard.Constant(value=ir.tensor(np.array(value, dtype.numpy())))
