"""A comparison of arrays that shares no code with the project's proof.

The bound of an output is made of two parts: the rounding of its largest value in float32, and what the
module itself changes when it is computed in float64. A model that amplifies rounding gets the second part.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

RELATIVE = 1e-5
"""Share of an output's largest value that two correct float32 programs may differ by."""

AMPLIFIED = 16.0
"""Times the difference of float32 and float64 that another order of additions may cost."""

LARGEST = 1e-2
"""A bound above this share of an output's largest value would prove nothing; it is cut to it."""

Array = NDArray[Any]


def leaves(value: Any) -> list[Tensor]:
    """The tensors in the return value of a forward, in order; everything else is passed over."""
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "layers") and hasattr(value, "get_seq_length"):
        # A cache of transformers that nobody asked for is no output of a file; rows that want one say so.
        return []
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [leaf for item in dataclasses.fields(value) for leaf in leaves(getattr(value, item.name))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [leaf for item in value for leaf in leaves(item)]
    return []


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The outputs of one call in evaluation mode. The model keeps the state that it has."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [leaf.detach().clone() for leaf in leaves(result)]


def bounds(model: nn.Module, inputs: Any, outputs: Sequence[Tensor]) -> list[float]:
    """How far each output of an exported file may be from `outputs`; 0 for integers."""
    precise = _in_float64(model, inputs, outputs)
    found = []
    for output, better in zip(outputs, precise, strict=True):
        if not output.is_floating_point() or output.numel() == 0:
            found.append(0.0)
            continue
        finite = output.isfinite()
        scale = float(output[finite].abs().max()) if bool(finite.any()) else 0.0
        noise = float((output.double() - better.double())[finite].abs().max()) if scale else 0.0
        found.append(min(RELATIVE * scale + AMPLIFIED * noise, LARGEST * scale))
    return found


def _in_float64(model: nn.Module, inputs: Any, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs computed in float64, or `outputs` where the model insists on float32."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    named = isinstance(inputs, dict)
    widened = {k: wide(v) for k, v in inputs.items()} if named else tuple(wide(v) for v in inputs)
    try:
        precise = call(copy.deepcopy(model).double(), widened)
    except (RuntimeError, TypeError, ValueError):
        return outputs
    same = len(precise) == len(outputs) and all(
        a.shape == b.shape for a, b in zip(precise, outputs, strict=True)
    )
    return precise if same else outputs


def difference(expected: Array, actual: Array, bound: float) -> str | None:
    """What is wrong with an output of a file, or None."""
    if expected.shape != actual.shape:
        return f"shape {list(actual.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind != actual.dtype.kind:
        return f"{actual.dtype} instead of {expected.dtype}"
    if expected.dtype.kind != "f":
        wrong = int((expected != actual).sum())
        return f"{wrong} of {expected.size} values differ" if wrong else None
    for name, of in (("NaN", np.isnan), ("infinity", np.isinf)):
        if not np.array_equal(of(expected), of(actual)):
            return f"{name} in other places: {int(of(actual).sum())} instead of {int(of(expected).sum())}"
    finite = np.isfinite(expected)
    if not finite.any():
        return None
    worst = float(np.abs(expected[finite].astype(np.float64) - actual[finite].astype(np.float64)).max())
    return None if worst <= bound else f"off by {worst:.3g}, the bound is {bound:.3g}"


def all_differences(
    expected: Sequence[Array], actual: Sequence[Array], allowed: Sequence[float]
) -> list[str]:
    """What is wrong with the outputs of a file; nothing if all are right."""
    if len(expected) != len(actual):
        return [f"{len(actual)} outputs instead of {len(expected)}"]
    found = []
    for k, (right, given, bound) in enumerate(zip(expected, actual, allowed, strict=True)):
        wrong = difference(right, given, bound)
        if wrong is not None:
            found.append(f"output {k}: {wrong}")
    return found
