"""torch.nn.Bilinear with a virtual weight in ONNX: a product with the weight as it is, never expanded.

    y[o] = sum over i, j of x[i] z[j] W[o, i, j] + bias[o]

is the linear layer W as (out, in1 * in2) of the products x[i] z[j]. fuse.py makes RoastLinear of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.function_libs.torch_lib.ops import core

from roast_export.onnx_steps import is_multiplied


def bilinear(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation for torch.onnx. standard: the onnxscript opset of the file."""

    def translate(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
        if not is_multiplied(weight):
            return core.aten_bilinear(input1, input2, weight, bias)
        # float[..., in1, 1] * float[..., 1, in2] to float[..., in1 * in2]
        left = standard.Unsqueeze(input1, standard.Constant(value_ints=[-1]))
        right = standard.Unsqueeze(input2, standard.Constant(value_ints=[-2]))
        lengths = standard.Shape(input1, start=0, end=-1)
        flat = standard.Concat(lengths, standard.Constant(value_ints=[-1]), axis=0)
        products = standard.Reshape(standard.Mul(left, right), flat)
        rows = standard.Reshape(weight, standard.Constant(value_ints=[int(weight.shape[0]), -1]))
        y = standard.MatMul(products, standard.Transpose(rows, perm=[1, 0]))
        return y if bias is None else standard.Add(y, bias)

    return {torch.ops.aten.bilinear.default: translate}
