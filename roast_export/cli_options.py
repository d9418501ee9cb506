"""What the commands share: options, opening the model, checks of what will be written, the report.

An option of several commands stands here once; an option of one command stands beside it in cli.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from roast_export import reading
from roast_export.all_runtimes import all_runtimes
from roast_export.errors import ExportError, InputError, VerificationError
from roast_export.import_report import import_report
from roast_export.load import load
from roast_export.matrix import Matrix
from roast_export.report import Report

REPORT_SUFFIXES = (".html", ".json", ".xml", ".txt")

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def together(*decorators: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Several click options as one decorator, in the order in which --help lists them."""

    def decorate(function: Decorated) -> Decorated:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show tracebacks, logs and warnings."
)
version_option = click.version_option(package_name="roast-export", message="%(package)s %(version)s")
loading_options = together(
    click.option(
        "--model",
        "factory",
        metavar="PKG:FACTORY",
        help="Function that builds the model of a bare state dict.",
    ),
    click.option(
        "--trust", is_flag=True, help="Open pickled modules. A pickle can run any code: only files you trust."
    ),
    click.option(
        "--facts",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="What a research checkpoint does not store (scale, seed ...), as .toml or .json.",
    ),
    click.option(
        "--keep-dense", is_flag=True, help="Expand the weight of a research layer that has no formula."
    ),
)
example_options = together(
    click.option(
        "--input",
        "specs",
        multiple=True,
        metavar="NAME:DTYPE[DIMS]",
        help="An example input by the name of forward's argument, such as ids:int64[1,7]. Repeatable.",
    ),
    click.option(
        "--inputs",
        "inputs_file",
        type=click.Path(path_type=Path),
        metavar="FILE.npz",
        help="Example inputs, one array for each argument of forward.",
    ),
)
bound_options = together(
    click.option(
        "--atol",
        type=click.FloatRange(min=0),
        help="Absolute bound on outputs, instead of the one that is measured.",
    ),
    click.option(
        "--rtol",
        type=click.FloatRange(min=0),
        help="Bound on outputs, relative to the largest value of each.",
    ),
)
unproved_option = click.option(
    "--allow-unproved",
    is_flag=True,
    help="Accept a dynamic dimension that the model runs at one length of; the report tells it.",
)
state_option = click.option(
    "--state",
    type=click.Choice(["inputs"]),
    help="Make what forward writes into (caches, counters, running means) inputs and outputs.",
)
shape_options = together(
    click.option(
        "--dynamic",
        "dynamic_specs",
        multiple=True,
        metavar="NAME:AXIS=DIM",
        help="A dimension that may have any length, such as ids:0=batch, or a length within bounds, such as "
        "ids:0=batch[1..8]. Repeatable.",
    ),
    click.option(
        "--static",
        "static_specs",
        multiple=True,
        metavar="NAME:AXIS[=N]",
        help="A dimension of one length: of the example's, or of N. Repeatable; all: every dimension that "
        "--dynamic does not name.",
    ),
)
report_option = click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report; the suffix chooses: .html .json .xml (JUnit) .txt",
)


def list_runtimes(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    for runtime in all_runtimes():
        reason = runtime.unavailable()
        click.echo(f"{runtime.name}: {'usable' if reason is None else f'not usable: {reason}'}")
    context.exit(0)


def opened(
    path: Path, factory: str | None, trust: bool, facts: Path | None, keep_dense: bool
) -> torch.nn.Module:
    """The model; what became of research layers in it is shown."""
    loaded = load(path, model=factory, trust=trust, facts=facts, keep_dense=keep_dense)
    imported = import_report(loaded)
    if imported is not None:
        click.echo(str(imported))
    return loaded


def check_output(output: Path, model: Path, *, folder: bool = False) -> None:
    """Refuse before the long work what cannot be written after it."""
    if output.resolve() == model.resolve():
        raise ExportError(f"{output} is the model itself; choose another output with -o")
    reading.refuse_special(output, error=ExportError)
    if output.is_dir() and not folder:
        raise ExportError(f"{output} is a folder; name a file with -o")
    if not output.absolute().parent.is_dir():
        raise ExportError(f"the folder {output.parent} does not exist; create it or choose another with -o")


def check_file(path: Path) -> None:
    """Refuse before the long work what is no file, and what may not be read."""
    with reading.opened(path, error=InputError):
        pass


def check_report(path: Path | None, *others: Path) -> None:
    if path is None:
        return
    if path.suffix not in REPORT_SUFFIXES:
        raise InputError(f"--report {path}: the name must end in one of {', '.join(REPORT_SUFFIXES)}")
    reading.refuse_special(path, error=InputError)
    if path.is_dir() or path.resolve() in [other.resolve() for other in others]:
        raise InputError(f"--report {path}: this is a folder, the model or the output; choose another name")


def reported(work: Callable[[], Report], model: Path, report_path: Path | None) -> None:
    """Show and save the report of `work`, with the model's path in it, also when the proof fails."""
    try:
        report = work()
    except VerificationError as error:
        error.report.model = str(model)
        click.echo(str(error.report))
        save_report(error.report, report_path)
        raise
    report.model = str(model)
    click.echo(str(report))
    save_report(report, report_path)


def save_report(report: Report | Matrix, path: Path | None) -> None:
    if path is None:
        return
    try:
        report.save(path)
    except OSError as error:
        raise ExportError(f"the report cannot be written to {path}: {error.strerror or error}") from error
