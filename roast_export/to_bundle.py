"""export, and then the folder that an app takes in: bundle.py says what is in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from roast_export import bundle, torch_ops
from roast_export.arrays import array_of
from roast_export.bounds import largest, output_bounds
from roast_export.compare import limits_of
from roast_export.errors import ExportError
from roast_export.export import export
from roast_export.program import Inputs, call, evaluation, flat_inputs, output_names
from roast_export.report import Report
from roast_export.trace import prepared
from roast_export.verify import Progress, example_of, program_of
from roast_export.watched import goes_with_the_child
from roast_export.wrappers import bare


def export_bundle(
    model: nn.Module,
    folder: str | os.PathLike[str],
    platform: str,
    *,
    example_inputs: Inputs | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    progress: Progress | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    allow_unproved: bool = False,
) -> Report:
    """Prove an ONNX file of `model`, and write it with what `platform` needs into a new folder.

    platform: one of bundle.PLATFORMS. The golden values in it are the example and PyTorch's outputs.
    atol, rtol: the bound on outputs, as in `verify`, also for the golden values.
    allow_unproved: as in export.

    Raises:
        InputError, ExportError, VerificationError: as export and bundle.write. Nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not an empty folder; name another one, or empty it")
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent) as scratch:
        goes_with_the_child(Path(scratch))
        source, filled = Path(scratch) / "model.onnx", Path(scratch) / "bundle"
        report = export(
            model,
            source,
            to="onnx",
            example_inputs=example_inputs,
            dynamic_shapes=dynamic_shapes,
            opset=opset,
            portable=platform == "web",
            progress=progress,
            atol=atol,
            rtol=rtol,
            allow_unproved=allow_unproved,
        )
        with bare(model) as model, evaluation(model), torch_ops.without_library(), torch.no_grad():
            model, example = prepared(model, example_inputs)
            program, used = program_of(model, example, dynamic_shapes)
            values = flat_inputs(program, example_of(program) if used is None else used)
            leaves = pytree.tree_leaves(call(model, program, values))
            inputs = {name: array_of(value) for name, value in values.items()}
            names = output_names(program)
            outputs = {name: array_of(leaf) for name, leaf in zip(names, leaves, strict=True)}
            limits = limits_of(atol, rtol)
            measured = (
                output_bounds(model, program, inputs)
                if limits is None
                else [limits.of(value) for value in outputs.values()]
            )
        bounds = {name: largest(bound) for name, bound in zip(names, measured, strict=True)}
        bundle.write(source, platform, filled, inputs=inputs, outputs=outputs, bounds=bounds)
        if folder.exists():
            folder.rmdir()
        shutil.move(filled, folder)
    report.path = os.fspath(folder)
    return report
