"""The outputs of an exported file against PyTorch's, on every case, in every runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from roast_export.arrays import array_of, tensor_of
from roast_export.artifact import Tell
from roast_export.case_bounds import bounded
from roast_export.cases import Case, cases_for, spare_cases, unproved
from roast_export.compare import compare_measured, compare_within, failed
from roast_export.errors import RoastError
from roast_export.program import Dims, call, flat_inputs
from roast_export.report import Check, Report
from roast_export.runtimes import Array, Run, Runtime
from roast_export.sequence import row_checks, row_of
from roast_export.subject import Subject


def output_checks(subject: Subject, usable: list[Runtime], report: Report, tell: Tell) -> list[Check]:
    """Every output on every case in every runtime; on a mismatch, the first layer that differs."""
    file = subject.file
    dims = {name: lengths for name, (_, lengths) in file.inputs.items()}
    wrong = _wrong_inputs(subject, dims)
    if wrong is not None:
        return [failed("file", "output", "inputs", "names and shapes", RoastError(wrong))]
    found = cases_for(subject.model, subject.program, subject.inputs, dims)
    report.warnings += [*found.warnings, *_in_pairs(subject, found.cases)]
    spare = spare_cases(subject.model, subject.program, subject.inputs)
    cases, checks = bounded(subject, found.cases, spare, report.warnings, tell)
    if found.unvaried and not subject.allow_unproved:
        checks.append(failed("file", "output", "dynamic lengths", "", RoastError(unproved(found.unvaried))))
    elif found.unvaried:
        report.warnings.append(f"Not proved at any other length: {', '.join(found.unvaried)}.")
    row = row_of(subject, cases)
    for number, runtime in enumerate(usable):
        tell(f"outputs in {runtime.name}", number, len(usable))
        checks += _runtime_checks(subject, runtime, cases, row, report, tell)
    tell("outputs", 1, 1)
    return checks


def _in_pairs(subject: Subject, cases: list[Case]) -> list[str]:
    """Which outputs are complex, for formats that have no complex numbers."""
    if subject.file.target not in ("onnx", "ort", "web") or not cases:
        return []
    return [
        f"Output {name!r} is complex; the file gives its real and imaginary parts along a last axis of 2."
        for name, value in zip(subject.file.outputs, cases[0].expected, strict=False)
        if value.dtype.kind == "c"
    ]


def _runtime_checks(
    subject: Subject, runtime: Runtime, cases: list[Case], row: list[Case], report: Report, tell: Tell
) -> list[Check]:
    try:
        run = _on_copies(subject, runtime.open(str(subject.file.path)))
    except Exception as error:
        if not runtime.complete:
            _skip(report, runtime, error)
            return []
        return [failed(runtime.name, "output", "all outputs", "open", error)]
    checks: list[Check] = []
    for done, case in enumerate(cases):
        tell(f"outputs in {runtime.name}", done, len(cases))
        found = list(_run_case(subject, runtime, run, case, report))
        checks += found
        if any(not check.passed for check in found):
            return checks + subject.file.first_difference(subject, runtime, case)
    if runtime.name not in report.skipped:
        checks += row_checks(subject, runtime.name, run, row)
    return checks


def _on_copies(subject: Subject, run: Run) -> Run:
    """`run` on arrays of its own, so that what it writes into them reaches no later comparison.

    The function raises RoastError where the file leaves an input with other values than the model does.
    """

    def guarded(feeds: dict[str, Array]) -> list[Array]:
        own = {name: np.array(value, order="C") for name, value in feeds.items()}
        outputs = run(own)
        written = [name for name, value in feeds.items() if own[name].tobytes() != value.tobytes()]
        left = _left_by_the_model(subject, feeds) if written else {}
        for name in written:
            if name not in left or own[name].tobytes() != left[name].tobytes():
                raise RoastError(
                    f"the file writes over its input {name!r}, and the model does not write that"
                )
        return outputs

    return guarded


def _left_by_the_model(subject: Subject, feeds: dict[str, Array]) -> dict[str, Array]:
    """What the inputs hold after a call of the model."""
    values = {name: tensor_of(value).clone() for name, value in feeds.items()}
    with torch.no_grad():
        call(subject.model, subject.program, values)
    return {name: array_of(value) for name, value in values.items()}


def _run_case(subject: Subject, runtime: Runtime, run: Run, case: Case, report: Report) -> Iterator[Check]:
    feeds = subject.file.feeds(case.feeds)
    try:
        outputs = run(feeds)
    except Exception as error:
        if not runtime.complete:
            _skip(report, runtime, error)
            return
        yield failed(runtime.name, "output", "all outputs", case.name, error)
        return
    names = subject.file.outputs
    if not len(names) == len(case.expected) == len(outputs):
        counts = (
            f"the model gives {len(case.expected)} outputs, the file {len(outputs)} and names {len(names)}"
        )
        yield failed(runtime.name, "output", "all outputs", case.name, RoastError(counts))
        return
    compare = compare_measured if subject.limits is None else compare_within
    for name, expected, actual, bound in zip(names, case.expected, outputs, case.bounds, strict=True):
        if bound is not None:
            yield compare(runtime.name, name, case.name, expected, actual, bound)


def _skip(report: Report, runtime: Runtime, error: Exception) -> None:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    report.skipped.setdefault(runtime.name, f"it cannot run this model: {reason[:100]}")


def _wrong_inputs(subject: Subject, dims: dict[str, Dims]) -> str | None:
    """What the file says of its inputs that cannot be true of the model."""
    example = flat_inputs(subject.program, subject.inputs)
    for name, lengths in dims.items():
        if name not in example:
            return f"the file has an input {name!r}; the model takes {', '.join(example)}"
        if len(lengths) != example[name].dim():
            return (
                f"the file's input {name!r} has {len(lengths)} dimensions, the model's {example[name].dim()}"
            )
    return None
