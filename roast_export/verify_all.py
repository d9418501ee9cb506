"""Several exported files of one model, proved one after the other into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import nn

from roast_export.all_runtimes import all_runtimes
from roast_export.errors import InputError
from roast_export.matrix import Matrix
from roast_export.open_file import private_artifact
from roast_export.program import Inputs, Program, evaluation
from roast_export.state import unchanged
from roast_export.verify import Progress, prepared_for, program_for, prove
from roast_export.watched import comparing, resting
from roast_export.wrappers import bare


def verify_all(
    model: nn.Module,
    paths: Sequence[Path],
    *,
    example_inputs: Inputs | None = None,
    runtimes: Sequence[str] | None = None,
    require: Sequence[str] = (),
    atol: float | None = None,
    rtol: float | None = None,
    trust: bool = False,
    allow_unproved: bool = False,
    name: str | None = None,
    showing: Callable[[], AbstractContextManager[Progress | None]] = nullcontext,
) -> Matrix:
    """`verify` for each file, with its arguments.

    require: runtimes that must take part, each in every file that it takes and in at least one.
    name: what reports call the model; its class by default.
    showing: makes the context, one for each file, whose value is told of the progress.

    Raises:
        InputError, RoastError: as `verify`.
    """
    names = {runtime.name for runtime in all_runtimes()}
    for runtime in require:
        if runtime not in names:
            raise InputError(f"no runtime is called {runtime!r}; known are {', '.join(sorted(names))}")
    matrix = Matrix(name or type(model).__name__, [], lacking=list(require))
    programs: dict[str, tuple[Program, Inputs | None]] = {}
    for path in paths:
        with comparing(path), private_artifact(path, trust=trust) as (file, restored):
            known = {runtime.name for runtime in file.runtimes()}
            matrix.lacking = [runtime for runtime in matrix.lacking if runtime not in known]
            # What no file takes is left to the matrix.
            needed = [runtime for runtime in require if runtime in known]
            with showing() as progress, bare(model) as model, evaluation(model), unchanged(model):
                with resting():
                    live, example = prepared_for(file, model, example_inputs)
                    program, inputs = program_for(file, live, example, programs)
                report = prove(
                    live, program, file, inputs, runtimes, atol, rtol, progress, needed, allow_unproved
                )
            report = restored(report)
        report.model = matrix.model
        matrix.reports.append(report)
    return matrix
