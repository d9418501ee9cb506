"""The proof: an exported file against the PyTorch model, in every runtime at hand.

Two classes of exactness, never mixed. Gathered weights and stored parameters: equal bits. Outputs:
|y - y_torch| <= atol + rtol * max|y_torch|, because runtimes add in other orders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.export import ExportedProgram

from roast_export import gate, probe
from roast_export.cases import Case, cases_for
from roast_export.compare import compare_values, failed
from roast_export.errors import InputError, RoastError
from roast_export.localise import first_difference
from roast_export.mapping import Mapping
from roast_export.measure import measure
from roast_export.program import Inputs, LoadedProgram, evaluation, flat_inputs, layers_of, trace
from roast_export.report import Check, Report
from roast_export.runtimes import Run, Runtime
from roast_export.runtimes import runtimes as all_runtimes
from roast_export.subject import Subject, read, roast_nodes

Progress = Callable[[str, int, int], None]
"""Called with a step's name, how much of it is done, and how much there is."""

ATOL = 1e-5
RTOL = 1e-5
"""About 80 float32 roundings of the largest output; the samples stay at least 7 times below it."""


FEWEST_LENGTHS = 3
"""Lengths of the dynamic dimensions, beside the example's, below which the report warns."""


def verify(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Inputs | None = None,
    runtimes: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare an exported ONNX file with the model it came from. A mismatch is in the report, not raised.

    runtimes: names to use ("onnxruntime native", ...); default: all that fit the model's size.
    atol, rtol: the bound on outputs; default ATOL, RTOL.

    Raises:
        InputError: no example inputs for a live module, or a runtime that is not known.
        RoastError: the file is not an ONNX model.
    """
    with evaluation(model):
        program = program_of(model, example_inputs, _dynamic_of(Path(path)))
        return prove(model, program, Path(path), example_inputs, runtimes, atol, rtol, progress)


def program_of(
    model: nn.Module, example_inputs: Inputs | None, dynamic_shapes: Any = None
) -> ExportedProgram:
    """The traced form of a model; archives carry theirs."""
    if isinstance(model, LoadedProgram):
        return model.program
    if example_inputs is None:
        raise InputError("a live module needs example_inputs (--input NAME:DTYPE[DIMS] or --inputs FILE.npz)")
    return trace(model, example_inputs, dynamic_shapes)


def prove(
    model: nn.Module,
    program: ExportedProgram,
    path: Path,
    example_inputs: Inputs | None = None,
    runtimes: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """`verify` with the traced program at hand."""
    began = time.perf_counter()
    tell = progress or (lambda step, done, total: None)
    subject = Subject(
        model=model,
        program=program,
        path=path,
        proto=read(path),
        layers=layers_of(program),
        inputs=example_inputs if example_inputs is not None else _example(program),
        atol=ATOL if atol is None else atol,
        rtol=RTOL if rtol is None else rtol,
    )
    report = gate.describe(subject)
    tell("structure", 0, 1)
    report.checks += [gate.size_check(report), *gate.structure_checks(subject)]
    usable = _usable(subject, runtimes, report)
    report.checks += gate.parameter_checks(subject)
    report.checks += weight_checks(subject, usable, tell)
    report.checks += output_checks(subject, usable, report, tell)
    if not report.failures:
        _measure(subject, usable, report, tell)
    if report.failures:
        report.checks.sort(key=lambda check: check.passed)
    report.seconds = time.perf_counter() - began
    return report


def weight_checks(subject: Subject, usable: list[Runtime], tell: Progress) -> list[Check]:
    """Every element of every virtual weight in every runtime: equal bits."""
    checks: list[Check] = []
    by_name = {layer.name: layer for layer in subject.layers}
    nodes = roast_nodes(subject.proto)
    covered: set[tuple[str, Mapping, float]] = set()
    for done, node in enumerate(nodes):
        tell("weights", done, len(nodes))
        layer = by_name.get(node.name.partition("#")[0])
        if layer is None:
            error = RoastError("the model has no such layer")
            checks.append(failed("file", "weight", node.name, "", error))
            continue
        covered.add((layer.array, layer.mapping, layer.scale))
        checks += probe.check(subject.proto, node, layer, usable)
    for layer in subject.layers:
        # The exporter may merge equal uses of one weight under one name.
        if (layer.array, layer.mapping, layer.scale) not in covered:
            checks.append(failed("file", "weight", layer.name, "", RoastError("the file has no such layer")))
    tell("weights", len(nodes), len(nodes))
    return checks


def output_checks(subject: Subject, usable: list[Runtime], report: Report, tell: Progress) -> list[Check]:
    """Every output on every case in every runtime; on a mismatch, the first layer that differs."""
    checks: list[Check] = []
    names = [value.name for value in subject.proto.graph.output]
    cases = list(cases_for(subject.model, subject.program, subject.inputs, subject.proto))
    dynamic = any(d.dim_param for v in subject.proto.graph.input for d in v.type.tensor_type.shape.dim)
    lengths = sum(case.name.startswith("random ") for case in cases)
    if dynamic and lengths < FEWEST_LENGTHS:
        report.warnings.append(f"the model ran at only {lengths} other lengths of its dynamic dimensions")
    total = len(usable) * len(cases)
    for number, runtime in enumerate(usable):
        try:
            run = runtime.open(str(subject.path))
        except Exception as error:
            checks.append(failed(runtime.name, "output", "all outputs", "open", error))
            continue
        for done, case in enumerate(cases):
            tell(f"outputs in {runtime.name}", number * len(cases) + done, total)
            found = list(_run_case(subject, runtime, run, case, names, report))
            checks += found
            if any(not check.passed for check in found):
                checks += first_difference(subject, runtime, case)
                break
    tell("outputs", total, total)
    return checks


def _measure(subject: Subject, usable: list[Runtime], report: Report, tell: Progress) -> None:
    """What loading and running the file costs in a fresh process. A cost that cannot be read is a warning."""
    feeds = {name: value.numpy() for name, value in flat_inputs(subject.program, subject.inputs).items()}
    paths = [
        name for name in ("onnxruntime native", "onnxruntime portable") if name in {r.name for r in usable}
    ]
    for done, name in enumerate(paths):
        tell("measure", done, len(paths))
        try:
            report.measurements.append(measure(subject.path, feeds, native=name.endswith("native"), runs=3))
        except RoastError as error:
            report.warnings.append(str(error))
    tell("measure", len(paths), len(paths))


def _run_case(
    subject: Subject, runtime: Runtime, run: Run, case: Case, names: list[str], report: Report
) -> Iterator[Check]:
    feeds = {value.name: case.feeds[value.name] for value in subject.proto.graph.input}
    try:
        outputs = run(feeds)
    except Exception as error:
        if not runtime.complete:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            report.skipped.setdefault(runtime.name, f"it cannot run this model: {reason[:100]}")
            return
        yield failed(runtime.name, "output", "all outputs", case.name, error)
        return
    for name, expected, actual in zip(names, case.expected, outputs, strict=True):
        yield compare_values(runtime.name, name, case.name, expected, actual, subject.atol, subject.rtol)


def _usable(subject: Subject, wanted: Sequence[str] | None, report: Report) -> list[Runtime]:
    known = {runtime.name: runtime for runtime in all_runtimes()}
    for name in wanted or ():
        if name not in known:
            raise InputError(f"no runtime is called {name!r}; known are {', '.join(known)}")
    usable = []
    drawn = any(node.op_type == "RoastGatherDrawn" for node in roast_nodes(subject.proto))
    for runtime in known.values():
        reason = runtime.unavailable()
        if wanted is not None and runtime.name not in wanted:
            continue
        if drawn and runtime.name != "onnxruntime native":
            reason = "this file needs the library (weights drawn from MT19937)"
        elif wanted is None and runtime.limit is not None and subject.virtual_elements > runtime.limit:
            reason = (
                f"{subject.virtual_elements:,} virtual weights; used up to {runtime.limit:,} unless asked for"
            )
        if reason is None:
            usable.append(runtime)
        else:
            report.skipped[runtime.name] = reason
    return usable


def _dynamic_of(path: Path) -> dict[str, dict[int, str]] | None:
    """The dynamic dimensions of a file, in the form that tracing takes."""
    found = {
        value.name: {axis: dim.dim_param for axis, dim in enumerate(value.type.tensor_type.shape.dim)}
        for value in read(path).graph.input
    }
    named = {name: {k: label for k, label in axes.items() if label} for name, axes in found.items()}
    return {name: axes for name, axes in named.items() if axes} or None


def _example(program: ExportedProgram) -> Inputs:
    args, kwargs = cast(tuple[tuple[Any, ...], dict[str, Any]], program.example_inputs)
    return args if args else kwargs
