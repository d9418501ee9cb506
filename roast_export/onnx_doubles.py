"""Numbers in float64 models in ONNX. torch.onnx rounds 0.1 to float32 before it makes it a float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

PARTS = {ir.DataType.COMPLEX64: ir.DataType.FLOAT, ir.DataType.COMPLEX128: ir.DataType.DOUBLE}
"""Complex numbers are pairs of these in what torch.onnx writes."""


def doubles(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file."""

    def number(value: Any, kind: ir.DataType) -> Any:
        if isinstance(value, int | float) and kind is ir.DataType.DOUBLE:
            return standard.Constant(value=ir.tensor(float(value), dtype=kind))
        return standard.Cast(value, to=int(kind))

    def scalar_tensor(
        s: Any, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False
    ) -> Any:
        kind = ir.DataType.FLOAT if dtype == -1 else ir.DataType(dtype)
        if kind in PARTS and isinstance(s, int | float | complex):
            return standard.Constant(value=ir.tensor([complex(s).real, complex(s).imag], dtype=PARTS[kind]))
        return number(s, kind)

    def full(
        size: Any,
        fill_value: Any,
        dtype: int = -1,
        layout: str = "",
        device: str = "",
        pin_memory: bool = False,
    ) -> Any:
        value = fill_value if dtype == -1 else number(fill_value, ir.DataType(dtype))
        return standard.Expand(value, standard.Cast(size, to=int(ir.DataType.INT64)))

    aten = torch.ops.aten
    return {aten.scalar_tensor.default: scalar_tensor, aten.full.default: full}
