"""The two comparisons of a proof: equal bits for weights, a stated bound for outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export.errors import InputError
from roast_export.report import Check

Array = NDArray[Any]
Bound = NDArray[np.float64]
"""The largest difference allowed for each element; infinite where rounding decides a whole number."""


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


@dataclass(frozen=True)
class Limits:
    """A bound that the user sets: atol + rtol * max|expected| for each output; whole numbers are equal."""

    atol: float = 0.0
    rtol: float = 0.0

    def of(self, expected: Array) -> Bound:
        exact = expected.dtype.kind in "biu"
        size = np.abs(expected.astype(_wide(expected)))
        largest = float(np.max(size[np.isfinite(size)], initial=0.0))
        return np.full(expected.shape, 0.0 if exact else self.atol + self.rtol * largest)


def limits_of(atol: float | None, rtol: float | None) -> Limits | None:
    """The bound that the user sets; one of the two that is not given counts as 0. None without either.

    Raises:
        InputError: a bound that is negative, infinite or no number.
    """
    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and not 0 <= value < np.inf:
            raise InputError(f"{name} is {value}; it must be a finite number, 0 or larger")
    return None if atol is None and rtol is None else Limits(atol or 0.0, rtol or 0.0)


def compare_values(
    runtime: str, name: str, case: str, expected: Array, actual: Array, atol: float, rtol: float
) -> Check:
    """|actual - expected| <= atol + rtol * max|expected|; integers equal; NaN and infinity alike."""
    return compare_within(runtime, name, case, expected, actual, Limits(atol, rtol).of(expected))


GUARD = 0.7
"""Share of a measured bound that a proof accepts, so that what passes stays within it on other inputs.

The guard band of measurement (JCGM 106). A right file needs 0.05 to 0.45 of a bound.
"""

TOGETHER = 0.3
"""Share of what is accepted that the differences of many elements may be, as a root mean square.

Of right files it is 0.03 to 0.15, whatever the type: room is left for the worst element.
"""

FEWEST = 8
"""Elements that say something together."""


def compare_measured(
    runtime: str, name: str, case: str, expected: Array, actual: Array, bound: Bound
) -> Check:
    """compare_within a measured bound, inside its guard band, and the differences of many elements together.

    Rounding moves each element another way. What is wrong in a file moves many of them, all or those at one
    place of an axis, and each may be within its bound.
    """
    bound = GUARD * bound
    check = compare_within(runtime, name, case, expected, actual, bound)
    if not check.passed or expected.dtype.kind in "biu" or expected.size < FEWEST:
        return check
    a, b = expected.astype(_wide(expected)), _as_complex(expected, actual).astype(_wide(expected))
    counts = np.isfinite(a) & np.isfinite(bound)
    with np.errstate(all="ignore"):
        difference = np.where(counts & (a != b), np.abs(a - b), 0.0)
        share = np.where(difference > 0, difference / bound, 0.0)
    found, allowed = _together(share, counts, a)
    if found <= allowed:
        return check
    note = (
        f"no element is beyond its bound, but together they are {found:.2g} of their bounds (root mean "
        f"square), of which rounding explains {allowed:.2g}"
    )
    return replace(check, passed=False, note=note)


def _together(share: NDArray[np.float64], counts: NDArray[np.bool_], values: Array) -> tuple[float, float]:
    """The root mean square of shares, and what is allowed, where it is largest: over all or at one place.

    Elements of one value are one element: where all rows of an input are alike, all have one rounding.
    """
    every = tuple(range(share.ndim))
    worst = (0.0, 1.0)
    for axis in (None, *(every if share.ndim > 1 else ())):
        axes = tuple(k for k in every if k != axis)
        n = np.asarray(counts.sum(axis=axes)).reshape(-1)
        squares = np.asarray((share**2).sum(axis=axes)).reshape(-1)
        places = np.flatnonzero(n >= FEWEST)
        found = np.sqrt(squares[places] / n[places])
        allowed = TOGETHER + 1 / np.sqrt(n[places])
        for k in np.flatnonzero(found > allowed):
            at = ... if axis is None else (slice(None),) * axis + (places[k],)
            different = len(np.unique(values[at][counts[at]]))
            allowed[k] = TOGETHER + 1 / np.sqrt(different) if different >= FEWEST else np.inf
        if found.size:
            top = int(np.argmax(found / allowed))
            worst = max(worst, (float(found[top]), float(allowed[top])), key=lambda pair: pair[0] / pair[1])
    return worst


def compare_within(runtime: str, name: str, case: str, expected: Array, actual: Array, bound: Bound) -> Check:
    """|actual - expected| <= bound, element by element; NaN and infinity alike. The worst element is named.

    bound: float64 of the shape of `expected`.
    actual: a complex value may come as its real and imaginary parts along a last axis of 2, as ONNX has it.
    """
    actual = _as_complex(expected, actual)
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        note = f"expected {expected.dtype}{list(expected.shape)}, found {actual.dtype}{list(actual.shape)}"
        return Check(runtime, "output", name, case, expected.size, False, note=note)
    if expected.size == 0:
        return Check(runtime, "output", name, case, 0, True)
    a, b = expected.astype(_wide(expected)), actual.astype(_wide(expected))
    with np.errstate(all="ignore"):
        # Whole numbers beyond 2^53 may differ and be one float64.
        apart = np.where(np.isfinite(a - b), np.maximum(np.abs(a - b), np.finfo(np.float64).tiny), np.inf)
        difference = np.where((expected == actual) | (np.isnan(a) & np.isnan(b)), 0.0, apart)
    index = _farthest(difference, bound)
    return Check(
        runtime, "output", name, case, expected.size, bool((difference <= bound).all()),
        bound=float(bound[index]), index=index, expected=_real(a[index]), actual=_real(b[index]),
    )  # fmt: skip


def _as_complex(expected: Array, actual: Array) -> Array:
    """What the pairs of real and imaginary parts stand for, where a complex array is expected."""
    pairs = expected.dtype.kind == "c" and actual.dtype.kind == "f"
    if not pairs or actual.shape != (*expected.shape, 2) or actual.dtype.itemsize * 2 != expected.itemsize:
        return actual
    return np.ascontiguousarray(actual).view(expected.dtype)[..., 0]


def _farthest(difference: NDArray[np.float64], bound: Bound) -> tuple[int, ...]:
    """Where a difference is the largest in multiples of its bound; of several beyond any, the largest."""
    with np.errstate(all="ignore"):
        multiple = np.where((difference == 0) | np.isinf(bound), 0.0, difference / bound)
    if np.isinf(multiple).any():
        multiple = np.where(np.isinf(multiple), difference, -1.0)
    return tuple(int(k) for k in np.unravel_index(int(np.argmax(multiple)), difference.shape))


def _wide(values: Array) -> type[np.floating[Any]] | type[np.complexfloating[Any, Any]]:
    return np.complex128 if values.dtype.kind == "c" else np.float64


def _real(value: Any) -> float:
    """What a report shows of a value: of a complex one the part that is not 0, or its size."""
    return float(value.real if value.imag == 0 else abs(value))


def failed(runtime: str, kind: str, name: str, case: str, error: BaseException) -> Check:
    return Check(runtime, kind, name, case, 0, False, note=first_line(error))


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
