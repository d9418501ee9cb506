"""The proof: an exported file against the PyTorch model, in every runtime at hand.

Two classes of exactness, never mixed. Gathered weights and stored parameters: equal bits. Outputs:
within a bound that is measured (bounds.py), because runtimes add in other orders.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export import gate
from roast_export.all_runtimes import all_runtimes, optional_runtimes
from roast_export.arrays import array_of
from roast_export.artifact import Artifact, expected_layer
from roast_export.calls import PlainModel, facts_of
from roast_export.compare import failed, limits_of
from roast_export.dimensions import Dynamic, dim_names, flat_shapes
from roast_export.errors import ExportError, InputError, RoastError
from roast_export.mapping import Mapping
from roast_export.measure import measure
from roast_export.open_file import private_artifact
from roast_export.outputs import output_checks
from roast_export.program import (
    Inputs,
    LoadedProgram,
    Program,
    VirtualLayer,
    evaluation,
    flat_inputs,
    input_names,
    layers_of,
    output_names,
    signature,
)
from roast_export.report import Check, Report
from roast_export.restrict import fitted, restricted
from roast_export.runtimes import Runtime
from roast_export.source import source_of
from roast_export.state import unchanged
from roast_export.stateful import with_state
from roast_export.storage import own_inputs
from roast_export.subject import Subject
from roast_export.trace import prepared, trace
from roast_export.untraced import untraced
from roast_export.watched import step
from roast_export.wrappers import bare

Progress = Callable[[str, int, int], None]
"""Called with a step's name, how much of it is done, and how much there is."""


def verify(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Inputs | None = None,
    runtimes: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    progress: Progress | None = None,
    trust: bool = False,
    require: Sequence[str] = (),
    allow_unproved: bool = False,
) -> Report:
    """Compare an exported file with the model it came from. A mismatch is in the report, not raised.

    path: .onnx, TorchScript, lite interpreter or .pt2; the content tells which.
    runtimes: names to use ("onnxruntime native", ...); "all"; default: those of
        onnxruntime, onnx and torch that fit the model's size.
    require: names of runtimes that must take part, beside the others; one that cannot is a failure.
    atol, rtol: the bound on outputs is atol + rtol * max|y|, and one that is not given counts as 0;
        without either it is measured for each output (bounds.py).
    trust: the file comes from someone you trust with running code on this machine.
    allow_unproved: a dimension that the file calls dynamic, and that the model runs at one length of, is
        told in the report; otherwise it is a failure.

    Raises:
        InputError: no example inputs for a live module, or a runtime that is not known.
        RoastError: the file was not written by roast-export.
    """
    with private_artifact(Path(path), trust=trust) as (file, restored):
        example_inputs = own_inputs(example_inputs)
        with bare(model) as model, evaluation(model), unchanged(model):
            model, example_inputs = prepared_for(file, model, example_inputs)
            program, example_inputs = program_for(file, model, example_inputs, {})
            report = prove(
                model, program, file, example_inputs, runtimes, atol, rtol, progress, require, allow_unproved
            )
        return restored(report)


def complete(file: Artifact, program: Program, inputs: Inputs) -> None:
    """What a format keeps no record of is as the program has it; its lengths are the example's."""
    if not file.layers:
        file.layers = [gate.stated(layer) for layer in layers_of(program)]
        arrays = {layer.array: layer.memory for layer in layers_of(program)}.values()
        file.array_bytes = sum(memory.numel() * memory.element_size() for memory in arrays)
    if not file.names_weights and not file.inputs:
        example = flat_inputs(program, inputs)
        kinds = signature(program)
        file.inputs = {name: (kinds[name][0], [*value.shape]) for name, value in example.items()}
        file.outputs = output_names(program)


def prepared_for(
    file: Artifact, model: nn.Module, example_inputs: Inputs | None
) -> tuple[nn.Module, Inputs | None]:
    """The model as `prepared` makes it, with its state among its inputs where the file has it so."""
    live, example = prepared(model, example_inputs)
    if isinstance(live, PlainModel) and set(file.inputs) - set(live.names):
        with contextlib.suppress(RoastError):
            return with_state(live, example)
    return live, example


def program_for(
    file: Artifact,
    model: nn.Module,
    example_inputs: Inputs | None,
    known: dict[str, tuple[Program, Inputs | None]],
) -> tuple[Program, Inputs | None]:
    """The traced form of a model, as dynamic as the file, and the example at lengths that the file takes.

    known: those of other files of this model.
    """
    shapes, script = _shapes_of(file, model), file.target in ("torchscript", "lite")
    key = repr((shapes, script))
    if key not in known:
        known[key] = program_of(model, example_inputs, shapes, script=script)
    return known[key]


def program_of(
    model: nn.Module, example_inputs: Inputs | None, dynamic_shapes: Any = None, *, script: bool = False
) -> tuple[Program, Inputs | None]:
    """The traced form of a model, and the example at its lengths; None for the program's own.

    An archive carries its trace. script: the target may do without one.
    """
    if isinstance(model, LoadedProgram):
        return restricted(model, example_inputs, dynamic_shapes)
    assert example_inputs is not None, "prepared() has asked for it"
    if isinstance(model, PlainModel) and isinstance(example_inputs, dict):
        dynamic_shapes = flat_shapes(model, dynamic_shapes)
        example_inputs = fitted(model, example_inputs, dynamic_shapes)
    try:
        return trace(model, example_inputs, dynamic_shapes), example_inputs
    except ExportError:
        if not script:
            raise
    return untraced(model, example_inputs, dim_names(dynamic_shapes)), example_inputs


def prove(
    model: nn.Module,
    program: Program,
    file: Artifact,
    example_inputs: Inputs | None = None,
    runtimes: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    progress: Progress | None = None,
    require: Sequence[str] = (),
    allow_unproved: bool = False,
) -> Report:
    """`verify` with the traced program at hand."""
    began = time.perf_counter()
    inputs = example_inputs if example_inputs is not None else example_of(program)
    complete(file, program, inputs)

    def tell(name: str, done: int, total: int) -> None:
        step()
        if progress is not None:
            progress(name, done, total)

    subject = Subject(
        model=model,
        program=program,
        file=file,
        layers=layers_of(program),
        inputs=inputs,
        limits=limits_of(atol, rtol),
        allow_unproved=allow_unproved,
    )
    report = gate.describe(subject)
    report.warnings += facts_of(model)
    tell("structure", 0, 1)
    report.checks += [gate.size_check(report), *gate.name_checks(subject)]
    report.checks += file.structure_checks(subject)
    usable = _usable(subject, runtimes, require, report)
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
    if not subject.file.names_weights:
        return []
    checks = list(subject.file.weight_checks(subject, usable, tell))
    found = {layer.name.partition("#")[0] for layer in subject.file.layers}
    covered = {_weight(layer) for layer in subject.layers if layer.name in found}
    for layer in subject.layers:
        # Tied weights, and equal uses that an exporter merged, go by one name.
        if _weight(layer) not in covered:
            checks.append(failed("file", "weight", layer.name, "", RoastError("the file has no such layer")))
    tell("weights", 1, 1)
    return [_traced(check, subject.layers) for check in checks]


def _traced(check: Check, layers: list[VirtualLayer]) -> Check:
    """With the slot and the seed of the worst element, where a weight differs."""
    layer = expected_layer(layers, check.name)
    if check.passed or layer is None or len(check.index) != len(layer.mapping.shape):
        return check
    return replace(check, source=source_of(layer, check.index))


def _weight(layer: VirtualLayer) -> tuple[str, Mapping, float]:
    return layer.array, layer.mapping, layer.scale


def _measure(subject: Subject, usable: list[Runtime], report: Report, tell: Progress) -> None:
    """What loading and running the file costs in a fresh process. A cost that cannot be read is a warning."""
    values = {name: array_of(value) for name, value in flat_inputs(subject.program, subject.inputs).items()}
    feeds = subject.file.feeds(values) if subject.file.inputs else values
    wanted = subject.file.measured(usable)
    for done, (label, options) in enumerate(wanted):
        tell("measure", done, len(wanted))
        try:
            report.measurements.append(measure(subject.file.path, feeds, label=label, runs=3, **options))
        except RoastError as error:
            report.warnings.append(str(error))
    tell("measure", len(wanted), len(wanted))

    values = {name: array_of(value) for name, value in flat_inputs(subject.program, subject.inputs).items()}
    feeds = subject.file.feeds(values) if subject.file.inputs else values


def _usable(
    subject: Subject, wanted: Sequence[str] | None, require: Sequence[str], report: Report
) -> list[Runtime]:
    """The runtimes to use. What is missing is a named skip; what is required or refused, a failure."""
    known = subject.file.runtimes()
    _check_names([*(wanted or ()), *require], known)
    here = {runtime.name for runtime in known}
    for name in require:
        if name not in here:
            report.checks.append(_missing(name, f"it does not take {subject.file.target} files of this form"))
    optional = {runtime.name for runtime in optional_runtimes()}
    every = wanted is not None and "all" in wanted
    usable = []
    for runtime in known:
        named = runtime.name in (wanted or ()) or runtime.name in require
        if not named and not every and (wanted is not None or runtime.name in optional):
            continue
        reason = runtime.unavailable()
        if reason is not None and (runtime.name in require or runtime.refused() is not None):
            report.checks.append(_missing(runtime.name, reason))
            continue
        if reason is None and not named and runtime.limit is not None:
            reason = _too_large(subject.virtual_elements, runtime.limit)
        if reason is None:
            usable.append(runtime)
        else:
            report.skipped[runtime.name] = reason
    return usable


def _check_names(names: Sequence[str], known: list[Runtime]) -> None:
    everywhere = {runtime.name for runtime in [*known, *all_runtimes()]}
    for name in names:
        if name not in everywhere | {"all"}:
            raise InputError(f"no runtime is called {name!r}; known are {', '.join(sorted(everywhere))}")


def _missing(runtime: str, reason: str) -> Check:
    return failed(runtime, "output", "all outputs", "open", RoastError(reason))


def _too_large(elements: int, limit: int) -> str | None:
    if elements <= limit:
        return None
    return f"{elements:,} virtual weights; used up to {limit:,} unless asked for"


def _shapes_of(file: Artifact, model: nn.Module) -> dict[str, dict[int, Any]] | None:
    """The dimensions of a file in the form that tracing takes. A live model's example has the fixed ones."""
    archive = isinstance(model, LoadedProgram)
    found = {
        name: {
            axis: Dynamic(length, *file.ranges.get(length, ())) if isinstance(length, str) else length
            for axis, length in enumerate(lengths)
            if isinstance(length, str) or archive
        }
        for name, (_, lengths) in file.inputs.items()
    }
    return {name: axes for name, axes in found.items() if axes} or None


def example_of(program: Program) -> Inputs:
    if not isinstance(program, ExportedProgram):
        return program.example
    leaves = pytree.tree_leaves(program.example_inputs)
    return dict(zip(input_names(program), leaves, strict=True))
