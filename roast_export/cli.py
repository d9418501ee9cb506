"""The four commands: roast-export, roast-verify, roast-inspect, roast-compress.

Exit codes: 0 done (and verified), 1 refused or failed, 2 the exported file does not match.
The one `try` of the package is in `RoastCommand.main`.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import torch

from roast_export.all_runtimes import all_runtimes
from roast_export.bundle import PLATFORMS
from roast_export.compress import compress
from roast_export.errors import ExportError, InputError, RoastError, VerificationError
from roast_export.export import TARGETS, export
from roast_export.import_report import import_report
from roast_export.inputs import merge_inputs, parse_dynamic
from roast_export.inspect import inspect
from roast_export.load import load, save
from roast_export.matrix import Matrix
from roast_export.progress import progress
from roast_export.report import Report
from roast_export.summary import summary
from roast_export.to_bundle import export_bundle
from roast_export.verify_all import verify_all

REPORT_SUFFIXES = (".html", ".json", ".xml", ".txt")
REFUSED, MISMATCH, INTERRUPTED = 1, 2, 130

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class RoastCommand(click.Command):
    """A command that turns every exception into one message on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        # Read before the arguments are parsed: parsing them may be what fails.
        given = kwargs.get("args", args[0] if args else None)
        debug = "--debug" in (sys.argv if given is None else given)
        try:
            with _calm(debug):
                code = super().main(*args, **kwargs)
        except VerificationError as error:
            _complain(str(error), debug)
            sys.exit(MISMATCH)
        except RoastError as error:
            _complain(str(error), debug)
            sys.exit(REFUSED)
        except click.ClickException as error:
            name = getattr(getattr(error, "ctx", None), "command_path", self.name)
            _complain(f"{error.format_message()} (see {name} --help)", debug)
            sys.exit(REFUSED)
        except (click.Abort, KeyboardInterrupt):
            _complain("interrupted", False)
            sys.exit(INTERRUPTED)
        except Exception as error:
            hint = "" if debug else "; this is a bug in roast-export, --debug shows where"
            _complain(f"{type(error).__name__}: {error}{hint}", debug)
            sys.exit(REFUSED)
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)


@contextmanager
def _calm(debug: bool) -> Iterator[None]:
    """Only our own log, from warnings up, unless the user asks for everything."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO if debug else logging.ERROR)
    logging.getLogger("roast_export").setLevel(logging.INFO if debug else logging.WARNING)
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        yield


def _options(*decorators: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Several click options as one decorator, in the order in which --help lists them."""

    def decorate(function: Decorated) -> Decorated:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_debug = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks, logs and warnings.")
_version = click.version_option(package_name="roast-export", message="%(package)s %(version)s")
_loading = _options(
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
_examples = _options(
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
_reporting = click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report; the suffix chooses: .html .json .xml (JUnit) .txt",
)


def _list_runtimes(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    for runtime in all_runtimes():
        reason = runtime.unavailable()
        click.echo(f"{runtime.name}: {'usable' if reason is None else f'not usable: {reason}'}")
    context.exit(0)


@click.command("roast-export", cls=RoastCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Choice(list(TARGETS)), default="onnx", show_default=True, help="Target format."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Exported file; MODEL's name with the target's suffix.",
)
@_examples
@click.option(
    "--dynamic",
    "dynamic_specs",
    multiple=True,
    metavar="NAME:AXIS=DIM",
    help="A dimension that may have any length, such as ids:0=batch. Repeatable.",
)
@click.option("--opset", type=int, help="ONNX opset.")
@_loading
@click.option(
    "--weights",
    type=click.Choice(["virtual", "materialized"]),
    default="virtual",
    show_default=True,
    help="virtual: small in memory; materialized: decoded once at load, dense in memory and dense speed.",
)
@click.option(
    "--portable",
    is_flag=True,
    help="A file that needs no library: aten operators (torchscript, pt2), packed MT19937 signs (onnx).",
)
@click.option("--delegate", type=click.Choice(["xnnpack"]), help="Runs what is not virtual (executorch).")
@click.option("--no-verify", is_flag=True, help="Put the file in place without the proof.")
@click.option(
    "--bundle",
    type=click.Choice(list(PLATFORMS)),
    help="Write a folder that an app takes in; -o names it. The libraries come from make cross.",
)
@_reporting
@click.option(
    "--runtimes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_runtimes,
    help="List the runtimes that are usable here, and exit.",
)
@_debug
@_version
def export_command(
    model: Path,
    to: str,
    output: Path | None,
    specs: Sequence[str],
    inputs_file: Path | None,
    dynamic_specs: Sequence[str],
    opset: int | None,
    factory: str | None,
    trust: bool,
    facts: Path | None,
    keep_dense: bool,
    weights: Literal["virtual", "materialized"],
    portable: bool,
    delegate: Literal["xnnpack"] | None,
    no_verify: bool,
    bundle: str | None,
    report_path: Path | None,
) -> None:
    """Export MODEL and prove the file equal to PyTorch before it is put in place."""
    own = (to, weights, portable, delegate, no_verify) != ("onnx", "virtual", False, None, False)
    if bundle is not None and own:
        rest = "--to, --weights, --portable, --delegate, --no-verify"
        raise InputError(f"--bundle chooses form and proof itself; leave {rest} out")
    output = output or Path(f"{model.stem}-{bundle}" if bundle else model.stem + TARGETS[to])
    _check_output(output, model, folder=bundle is not None)
    _check_report(report_path, model, output)
    examples = merge_inputs(specs, inputs_file)
    dynamic = parse_dynamic(dynamic_specs, examples)
    loaded = _opened(model, factory, trust, facts, keep_dense)
    common: dict[str, Any] = {"example_inputs": examples, "dynamic_shapes": dynamic, "opset": opset}
    with progress() as show:
        common["progress"] = show
        if bundle is not None:
            _reported(lambda: export_bundle(loaded, output, bundle, **common), model, report_path)
            return
        common |= {"portable": portable, "delegate": delegate, "verify": not no_verify}
        _reported(
            lambda: export(loaded, output, to=to, weights=weights, **common),
            model,
            report_path,
        )


@click.command("roast-verify", cls=RoastCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("exported", type=click.Path(path_type=Path), nargs=-1, required=True)
@_examples
@_loading
@click.option("--runtime", "chosen", multiple=True, metavar="NAME", help="Only this one, or all.")
@click.option("--require", multiple=True, metavar="NAME", help="This one too, or fail. Repeatable.")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute bound on outputs.")
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative bound on outputs.")
@_reporting
@_debug
@_version
def verify_command(
    model: Path,
    exported: Sequence[Path],
    specs: Sequence[str],
    inputs_file: Path | None,
    factory: str | None,
    trust: bool,
    facts: Path | None,
    keep_dense: bool,
    chosen: Sequence[str],
    require: Sequence[str],
    atol: float | None,
    rtol: float | None,
    report_path: Path | None,
) -> None:
    """Compare each EXPORTED file with MODEL in every runtime at hand."""
    _check_report(report_path, model, *exported)
    missing = [str(path) for path in exported if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: there is no such file")
    examples = merge_inputs(specs, inputs_file)
    loaded = _opened(model, factory, trust, facts, keep_dense)
    matrix = verify_all(
        loaded,
        exported,
        example_inputs=examples,
        runtimes=list(chosen) or None,
        require=require,
        atol=atol,
        rtol=rtol,
        trust=trust,
        name=str(model),
        showing=progress,
    )
    shown = matrix.reports[0] if len(exported) == 1 and not matrix.lacking else matrix
    click.echo(str(shown))
    _save_report(shown, report_path)
    if not matrix.passed:
        wrong = [report for report in matrix.reports if not report.passed] or matrix.reports
        names = ", ".join(report.path for report in wrong)
        raise VerificationError(f"{names}: not proved equal to {model}; the reason is above", wrong[0])


@click.command("roast-inspect", cls=RoastCommand)
@click.argument("file", type=click.Path(path_type=Path))
@_loading
@_debug
@_version
def inspect_command(
    file: Path, factory: str | None, trust: bool, facts: Path | None, keep_dense: bool
) -> None:
    """Show what is in FILE: virtual weights, arrays, sizes, and how it would run on this machine."""
    click.echo(str(inspect(file, model=factory, trust=trust, facts=facts)))


@click.command("roast-compress", cls=RoastCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--ratio", type=float, required=True, help="Elements that become virtual per array element.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Compressed archive.  [default: *.roast.pt]"
)
@_examples
@_loading
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the hashes.")
@click.option(
    "--min-params", type=int, default=2048, show_default=True, help="Leave smaller parameters dense."
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Only parameters of this name. Repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="No parameters of this name. Repeatable.")
@click.option("--local", is_flag=True, help="An array for each parameter instead of one for all.")
@click.option(
    "--init",
    type=click.Choice(["project", "fresh"]),
    default="project",
    show_default=True,
    help="project: approximate the weights; fresh: draw the array anew, for training from scratch.",
)
@click.option("--half", is_flag=True, help="Store the array as float16.")
@_debug
@_version
def compress_command(
    model: Path,
    ratio: float,
    output: Path | None,
    specs: Sequence[str],
    inputs_file: Path | None,
    factory: str | None,
    trust: bool,
    facts: Path | None,
    keep_dense: bool,
    seed: int,
    min_params: int,
    include: Sequence[str],
    exclude: Sequence[str],
    local: bool,
    init: Literal["project", "fresh"],
    half: bool,
) -> None:
    """Make the large parameters of a dense MODEL virtual, over one small shared array.

    The compressed model is written as an archive that opens without the model's code, which takes
    example inputs (--input or --inputs). Without them the table is shown and nothing is written.
    """
    if output is not None:
        _check_output(output, model)
    examples = merge_inputs(specs, inputs_file)
    if output is not None and examples is None:
        raise InputError(
            f"{output} cannot be written without example inputs; add --input NAME:DTYPE[DIMS] "
            "or --inputs FILE.npz"
        )
    compressed = compress(
        _opened(model, factory, trust, facts, keep_dense),
        ratio,
        seed=seed,
        min_params=min_params,
        include=list(include) or None,
        exclude=list(exclude) or None,
        local=local,
        init=init,
        memory_dtype=torch.float16 if half else torch.float32,
    )
    click.echo(str(summary(compressed)))
    if examples is None:
        click.echo("nothing written: add --input NAME:DTYPE[DIMS] or --inputs FILE.npz to save the model")
        return
    output = output or Path(f"{model.stem}.roast.pt")
    _check_output(output, model)
    save(compressed, output, examples)
    click.echo(f"wrote {output}, {output.stat().st_size:,} bytes")


def _opened(
    path: Path, factory: str | None, trust: bool, facts: Path | None, keep_dense: bool
) -> torch.nn.Module:
    """The model; what became of research layers in it is shown."""
    loaded = load(path, model=factory, trust=trust, facts=facts, keep_dense=keep_dense)
    imported = import_report(loaded)
    if imported is not None:
        click.echo(str(imported))
    return loaded


def _check_output(output: Path, model: Path, *, folder: bool = False) -> None:
    """Refuse before the long work what cannot be written after it."""
    if output.resolve() == model.resolve():
        raise ExportError(f"{output} is the model itself; choose another output with -o")
    if output.is_dir() and not folder:
        raise ExportError(f"{output} is a folder; name a file with -o")
    if not output.absolute().parent.is_dir():
        raise ExportError(f"the folder {output.parent} does not exist; create it or choose another with -o")


def _check_report(path: Path | None, *others: Path) -> None:
    if path is None:
        return
    if path.suffix not in REPORT_SUFFIXES:
        raise InputError(f"--report {path}: the name must end in one of {', '.join(REPORT_SUFFIXES)}")
    if path.is_dir() or path.resolve() in [other.resolve() for other in others]:
        raise InputError(f"--report {path}: this is a folder, the model or the output; choose another name")


def _reported(work: Callable[[], Report], model: Path, report_path: Path | None) -> None:
    """Show and save the report of `work`, with the model's path in it, also when the proof fails."""
    try:
        report = work()
    except VerificationError as error:
        error.report.model = str(model)
        click.echo(str(error.report))
        _save_report(error.report, report_path)
        raise
    report.model = str(model)
    click.echo(str(report))
    _save_report(report, report_path)


def _save_report(report: Report | Matrix, path: Path | None) -> None:
    if path is None:
        return
    try:
        report.save(path)
    except OSError as error:
        raise ExportError(f"the report cannot be written to {path}: {error.strerror or error}") from error
