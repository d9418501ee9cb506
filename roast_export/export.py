"""export(): trace, write, prove, and only then put the file in place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram

from roast_export import to_executorch, to_ort, to_web
from roast_export.artifact import Artifact
from roast_export.calls import PlainModel, facts_of
from roast_export.compare import limits_of
from roast_export.contexts import tell_training
from roast_export.dimensions import EVERY_OTHER, dim_names, flat_shapes
from roast_export.errors import InputError, VerificationError
from roast_export.files import replacing
from roast_export.gate import describe, size_check
from roast_export.open_file import open_artifact
from roast_export.program import Inputs, LoadedProgram, evaluation, layers_of
from roast_export.report import Report
from roast_export.restrict import check_bounded, fixed_of
from roast_export.state import unchanged
from roast_export.stateful import with_state
from roast_export.storage import own_inputs
from roast_export.subject import Subject
from roast_export.to_aoti import write_aoti
from roast_export.to_onnx import DEFAULT_OPSET, OnnxOptions, to_onnx, write
from roast_export.to_pt2 import write_pt2
from roast_export.to_torchscript import write_torchscript
from roast_export.trace import prepared
from roast_export.truth import hold_to_module
from roast_export.verify import Progress, complete, example_of, program_of, prove
from roast_export.watched import goes_with_the_child
from roast_export.wrappers import bare

TARGETS = {
    "onnx": ".onnx",
    "ort": ".ort",
    "web": ".onnx",
    "torchscript": ".ts",
    "lite": ".ptl",
    "pt2": ".pt2",
    "aoti": ".aoti.pt2",
    "executorch": ".pte",
}
"""What can be written, with the suffix of the files."""


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    to: str = "onnx",
    example_inputs: Inputs | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    weights: Literal["virtual", "materialized"] = "virtual",
    verify: bool = True,
    portable: bool = False,
    delegate: Literal["xnnpack"] | None = None,
    input_names: Mapping[str, str] | None = None,
    data_file: str | None = None,
    progress: Progress | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    allow_unproved: bool = False,
    state: Literal["inputs"] | None = None,
) -> Report:
    """Write `model` to `path` and prove the file equal to PyTorch before it is put in place.

    example_inputs: arguments of forward, in order or by name; an archive of `save` brings its own.
    dynamic_shapes: as torch.export takes it, or {"input": {axis: "name"}}, where "name[1..8]" bounds a
        length, a number fixes it, None fixes it at the example's, and {"*": None} fixes all that nothing is
        said of. A live module has fixed shapes by default; an archive keeps what is dynamic in it unless
        names are given.
    weights: "virtual" reads the array at every run; "materialized" lets the runtime expand all
        weights once, at load: the same file size, dense memory and dense speed.
    portable: a file that needs no library. torchscript, pt2: aten operators instead of ours (lite is
        always so). onnx: is so by itself; signs from MT19937 are stored packed.
    delegate: executorch only: "xnnpack" leaves to XNNPACK what is not virtual.
    input_names: what the file calls inputs (onnx, ort, web), such as
        {"past_key_values_0_key": "past_key_values.0.key"}. Nested inputs go by their path, joined by _;
        a name may have other characters in the place of _.
    data_file: onnx only: the name of a file beside `path` for all tensors of 4 KiB or more. What is in it
        already is not written again: files that name the same one share the array.
    progress: called with a step's name, how much of it is done, and how much there is.
    atol, rtol: the bound on outputs, as in `verify`.
    allow_unproved: a dynamic dimension that the model runs at one length of is told in the report;
        otherwise it is a failure.
    state: "inputs" makes what forward writes into (buffers, and attributes that hold a tensor) inputs and
        outputs of the file. Without it a model whose outputs depend on that is refused.

    Raises:
        InputError: an argument does not fit the model, or nothing in the model is virtual.
        ExportError: the model cannot be expressed, or the file cannot be written.
        VerificationError: the file does not match PyTorch, or no runtime here could compare them; its
            `report` says where and why. Nothing is written.
    """
    if to not in TARGETS:
        raise InputError(f"target {to!r} is not one of {', '.join(TARGETS)}")
    if weights not in ("virtual", "materialized"):
        raise InputError(f"weights {weights!r} must be 'virtual' or 'materialized'")
    if to not in ("onnx", "ort", "web") and (opset is not None or weights != "virtual"):
        raise InputError(f"opset and weights='materialized' belong to ONNX; leave them out for {to}")
    if to != "executorch" and delegate is not None:
        raise InputError(f"a delegate belongs to executorch; leave it out for {to}")
    if data_file is not None and (to != "onnx" or Path(data_file).name != data_file):
        raise InputError(f"data_file {data_file!r} is for onnx, and a name beside the file, not a path")
    if state not in (None, "inputs"):
        raise InputError(f"state {state!r} must be 'inputs' or None")
    if to == "ort" and not os.fspath(path).endswith(".ort"):
        raise InputError(f"{path}: onnxruntime knows the format by the suffix .ort; name the file so")
    limits_of(atol, rtol)
    tell = progress or (lambda step, done, total: None)
    example_inputs = own_inputs(example_inputs)
    training = model.training
    with bare(model) as model, evaluation(model), unchanged(model), replacing(path) as target:
        tell("trace", 0, 1)
        model, example_inputs = prepared(model, example_inputs)
        if state == "inputs":
            model, example_inputs = with_state(model, example_inputs)
        tell_training(model, example_inputs, training)
        if isinstance(model, PlainModel):
            dynamic_shapes = flat_shapes(model, dynamic_shapes)
        names = dim_names(dynamic_shapes)
        options = OnnxOptions(
            opset=DEFAULT_OPSET if opset is None else opset,
            materialized=weights == "materialized",
            portable=portable,
            dim_names=names,
            input_names=input_names or {},
        )
        script = to in ("torchscript", "lite")
        if to == "executorch" and isinstance(model, LoadedProgram):
            dynamic_shapes = {**(dynamic_shapes or {}), EVERY_OTHER: None}
        program, example_inputs = program_of(model, example_inputs, dynamic_shapes, script=script)
        if to == "executorch" and isinstance(program, ExportedProgram):
            check_bounded(program, names)
        if not layers_of(program):
            raise InputError(
                "nothing in this model is virtual; compress it first (roast-compress, compress())"
            )
        truth = hold_to_module(model, program, example_inputs or ())
        tell("translate", 0, 1)
        if script:
            always = to == "lite"
            write_torchscript(program, target, portable=portable or always, lite=always, dim_names=names)
        elif isinstance(program, ExportedProgram):
            if to in ("onnx", "ort", "web"):
                data = None if data_file is None else Path(path).with_name(data_file)
                _write_onnx(program, options, target, to, data)
            elif to == "executorch":
                to_executorch.write(program, target, portable=portable, delegate=delegate, dim_names=names)
            elif to == "aoti":
                write_aoti(program, target, dim_names=names)
            else:
                write_pt2(program, target, portable=portable, dim_names=names)
        file = open_artifact(target, trust=True)
        if verify:
            report = prove(
                model,
                program,
                file,
                example_inputs,
                atol=atol,
                rtol=rtol,
                progress=progress,
                allow_unproved=allow_unproved,
            )
        else:
            report = _unproved(model, program, file, example_inputs)
        report.path = os.fspath(path)
        report.warnings += truth.warnings
        if to == "executorch":
            report.warnings += fixed_of(model, program)
        if report.failures:
            raise VerificationError(_summary(report), report)
        if verify and not report.passed:
            raise VerificationError(_unverified(report), report)
    return report


def _write_onnx(
    program: ExportedProgram, options: OnnxOptions, target: Path, to: str, data: Path | None
) -> None:
    model = to_onnx(program, options)
    if to == "onnx":
        write(model, target, data)
        return
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        goes_with_the_child(Path(folder))
        source = Path(folder) / "model.onnx"
        write(model, source)
        if to == "ort":
            to_ort.write(source, target, portable=options.portable)
        else:
            to_web.write(source, target)


def _unproved(model: nn.Module, program: Any, file: Artifact, inputs: Inputs | None) -> Report:
    subject = Subject(model, program, file, layers_of(program), inputs or ())
    complete(file, program, inputs if inputs is not None else example_of(program))
    report = describe(subject)
    report.checks.append(size_check(report))
    report.warnings += facts_of(model)
    report.warnings.append("not verified")
    return report


def _summary(report: Report) -> str:
    first = report.failures[0]
    where = f"{first.name} in {first.runtime}"
    detail = first.note or f"expected {first.expected:g}, found {first.actual:g} at {list(first.index)}"
    return (
        f"the exported file does not match PyTorch: {where}: {detail} ({len(report.failures)} checks failed)"
    )


def _unverified(report: Report) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in report.skipped.items())
    return (
        f"nothing is written, because nothing compared an output of the {report.target} file with PyTorch"
        f"{f' ({reasons})' if reasons else ''}; install what is missing, or write it unproved with "
        "--no-verify (verify=False)"
    )
