"""The two comparisons of a proof: equal bits for weights, a stated bound for outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export.report import Check


def compare_bits(runtime: str, name: str, case: str, expected: NDArray[Any], actual: NDArray[Any]) -> Check:
    """Equal shape, dtype and bits; NaN equals NaN (docs/mapping.md section 1). The worst element is named."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        note = f"expected {expected.dtype}{list(expected.shape)}, found {actual.dtype}{list(actual.shape)}"
        return Check(runtime, "weight", name, case, expected.size, False, note=note)
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}.get(expected.dtype.itemsize, np.uint8)
    differs = np.ascontiguousarray(expected).view(bits) != np.ascontiguousarray(actual).view(bits)
    if expected.dtype.kind == "f" and differs.any():
        differs &= ~(np.isnan(expected) & np.isnan(actual))
    if not differs.any():
        return Check(runtime, "weight", name, case, expected.size, True)
    index = _worst(expected, actual, differs)
    return Check(
        runtime, "weight", name, case, expected.size, False, index=index,
        expected=float(expected[index]), actual=float(actual[index]),
        note=f"{int(differs.sum())} of {expected.size} differ",
    )  # fmt: skip


def _worst(expected: NDArray[Any], actual: NDArray[Any], differs: NDArray[np.bool_]) -> tuple[int, ...]:
    """Where the largest difference is, of those that count: 0 and -0 differ by nothing."""
    with np.errstate(all="ignore"):
        distance = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    distance = np.where(np.isnan(distance), np.inf, distance)
    place = int(np.argmax(np.where(differs, distance, -1.0)))
    return tuple(int(k) for k in np.unravel_index(place, differs.shape))


def compare_values(
    runtime: str, name: str, case: str, expected: NDArray[Any], actual: NDArray[Any], atol: float, rtol: float
) -> Check:
    """|actual - expected| <= atol + rtol * max|expected|; integers equal; NaN and infinity alike."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        note = f"expected {expected.dtype}{list(expected.shape)}, found {actual.dtype}{list(actual.shape)}"
        return Check(runtime, "output", name, case, expected.size, False, note=note)
    if expected.size == 0:
        return Check(runtime, "output", name, case, 0, True)
    exact = expected.dtype.kind not in "fc"
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(a)
    bound = 0.0 if exact else atol + rtol * float(np.max(np.abs(a[finite]), initial=0.0))
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    difference = np.where(np.isnan(difference), np.inf, difference)
    index = tuple(int(k) for k in np.unravel_index(int(np.argmax(difference)), difference.shape))
    return Check(
        runtime, "output", name, case, expected.size, bool(difference[index] <= bound), bound=bound,
        index=index, expected=float(a[index]), actual=float(b[index]),
    )  # fmt: skip


def failed(runtime: str, kind: str, name: str, case: str, error: BaseException) -> Check:
    return Check(runtime, kind, name, case, 0, False, note=first_line(error))


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
