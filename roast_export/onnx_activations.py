"""Activations in ONNX whose translation by torch.onnx loses digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def activations(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file."""

    def log_sigmoid(x: Any) -> Any:
        # The logarithm of a rounded sigmoid is off by 3e-5 of it at -9, and -inf at -100.
        return standard.Neg(standard.Softplus(standard.Neg(x)))

    return {torch.ops.aten.log_sigmoid.default: log_sigmoid}
