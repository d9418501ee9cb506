"""The bound of each output on each case. Cases that prove nothing are named, and others take their place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from roast_export.artifact import Tell
from roast_export.bounds import at_least, output_bounds, proves, size_of, usual_share
from roast_export.cases import Case
from roast_export.compare import Array, Bound, failed
from roast_export.errors import RoastError
from roast_export.report import Check
from roast_export.subject import Subject

TELLING = 0.1
"""Share of what an output varies by over all inputs; a bound above it is too wide to prove much."""

NEXT_STEP = "give example inputs as the model meets them, or set the bound yourself (--atol, --rtol)"


def bounded(
    subject: Subject, cases: list[Case], spare: Iterator[Case], warnings: list[str], tell: Tell
) -> tuple[list[Case], list[Check]]:
    """The cases with the bound of each output, and a failed check for each output that none of them proves.

    spare: cases that take the place of those whose outputs are nothing but amplified rounding.
    """
    if subject.limits is not None:
        found = [replace(case, bounds=[subject.limits.of(y) for y in case.expected]) for case in cases]
    else:
        found = _pooled(_measured(subject, cases, spare, warnings, tell))
    checks: list[Check] = []
    for k, name in enumerate(subject.file.outputs[: len(found[0].expected)]):
        compared = [(case.expected[k], bound) for case in found if (bound := case.bounds[k]) is not None]
        if not compared:
            reason = RoastError(f"the model turns rounding into its output on every input tried; {NEXT_STEP}")
            checks.append(failed("file", "output", name, "all inputs", reason))
            continue
        warnings += _vague(name, *map(list, zip(*compared, strict=True)))
    return found, checks


def _measured(
    subject: Subject, cases: list[Case], spare: Iterator[Case], warnings: list[str], tell: Tell
) -> list[Case]:
    """The cases with measured bounds, and the spare ones that had to take the place of some."""
    pending, found = list(cases), []
    known: dict[str, list[Bound]] = {}
    for done, case in enumerate(pending):
        tell("bounds", done, len(pending))
        # What the module gave when an archive was saved is compared on inputs that are tried anyway.
        key = _digest(case.feeds)
        seen = key in known
        if not seen:
            known[key] = output_bounds(subject.model, subject.program, case.feeds)
        case, amplified = with_bounds(case, known[key], list(subject.file.outputs))
        found.append(case)
        if amplified and not seen:
            warnings.append(f"input {case.name!r} proves nothing of {'; '.join(amplified)}")
            pending += [another for another in [next(spare, None)] if another is not None]
    return found


def _pooled(cases: list[Case]) -> list[Case]:
    """The cases, none of whose bounds is below the share of its output that is usual over all cases."""
    every = [list(case.bounds) for case in cases]
    for k in range(min(map(len, every), default=0)):
        known = [(n, bounds[k], cases[n].expected[k]) for n, bounds in enumerate(every)]
        shares = [usual_share(bound, values) for _, bound, values in known if bound is not None]
        told = [share for share in shares if share is not None]
        if not told:
            continue
        usual = float(np.median(told))
        for n, bound, values in known:
            if bound is not None and values.dtype.kind not in "biu":
                every[n][k] = at_least(bound, values, usual)
    return [replace(case, bounds=bounds) for case, bounds in zip(cases, every, strict=True)]


def _digest(feeds: dict[str, Array]) -> str:
    digest = hashlib.sha256()
    for name, value in feeds.items():
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def with_bounds(case: Case, measured: list[Bound], outputs: list[str]) -> tuple[Case, list[str]]:
    """The case with a bound for each output, None where it proves nothing; and those outputs in words."""
    bounds: list[Bound | None] = []
    amplified = []
    for k, (bound, expected) in enumerate(zip(measured, case.expected, strict=True)):
        useful = bound.shape == expected.shape and (expected.size == 0 or proves(bound, expected))
        bounds.append(bound if useful else None)
        if not useful:
            name = outputs[k] if k < len(outputs) else f"output {k}"
            amplified.append(
                f"{name!r}: rounding moves it by {_usual(bound):.2g}, its size is {size_of(expected):.2g}"
            )
    return replace(case, bounds=bounds), amplified


def _vague(name: str, values: list[Array], bounds: list[Bound]) -> list[str]:
    """A warning if the output hardly depends on the inputs, so that its comparison says little."""
    if not any(value.size for value in values):
        return [f"output {name!r} has no elements on any input tried; nothing of it was compared"]
    varies, bound = _variation(values), min(_usual(bound) for bound in bounds if bound.size)
    if varies > 0 and bound <= TELLING * varies:
        return []
    what = "is the same on" if varies == 0 else f"varies by {varies:.2g} over"
    return [
        f"output {name!r} {what} all inputs tried, of which rounding may decide {bound:.2g}: "
        "what the file computes before it is hardly compared; give example inputs under which it varies"
    ]


def _variation(values: list[Array]) -> float:
    """The largest difference between two inputs' values at one place of an output.

    Rows of a batch are inputs of their own. Where lengths differ, all places of a channel are one.
    """
    rows = [np.atleast_1d(value) for value in values if value.size]
    if len({row.shape[1:] for row in rows}) > 1:
        last = {row.shape[-1] for row in rows}
        rows = [row.reshape(-1, row.shape[-1] if len(last) == 1 else 1) for row in rows]
    every = np.concatenate(rows)
    every = np.abs(every) if every.dtype.kind == "c" else every.astype(np.float64)
    every = np.where(np.isfinite(every), every, np.nan)
    apart = np.fmax.reduce(every, axis=0) - np.fmin.reduce(every, axis=0)
    return float(np.nanmax(apart, initial=0.0))


def _usual(bound: Bound) -> float:
    return float(np.median(bound))
