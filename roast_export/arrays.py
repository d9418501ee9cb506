"""Tensors as numpy arrays and back. numpy has no bfloat16; ml_dtypes has, and onnx uses it too."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def array_of(value: Any) -> NDArray[Any]:
    """A tensor, or a number that a model gives, with the same type and bits."""
    tensor = torch.as_tensor(value).detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.contiguous().view(torch.uint16).numpy().view(BFLOAT16))
    return np.asarray(tensor.numpy())


def tensor_of(value: NDArray[Any]) -> Tensor:
    """The reverse of `array_of`."""
    value = np.ascontiguousarray(value).reshape(value.shape)
    if value.dtype == BFLOAT16:
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)
