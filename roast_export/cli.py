"""The four commands: roast-export, roast-verify, roast-inspect, roast-compress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
import torch

from roast_export.bundle import PLATFORMS
from roast_export.cli_command import RoastCommand
from roast_export.cli_folder import check_options, compress_into, export_folder, part_for, task_option
from roast_export.cli_options import (
    bound_options,
    check_file,
    check_output,
    check_report,
    debug_option,
    example_options,
    list_runtimes,
    loading_options,
    opened,
    report_option,
    reported,
    save_report,
    shape_options,
    state_option,
    unproved_option,
    version_option,
)
from roast_export.compress import compress
from roast_export.errors import InputError, VerificationError
from roast_export.export import TARGETS, export
from roast_export.huggingface import is_folder
from roast_export.huggingface.commands import open_model, open_parts
from roast_export.huggingface.folder import open_folder
from roast_export.inputs import merge_inputs, parse_shapes
from roast_export.inspect import inspect
from roast_export.progress import progress
from roast_export.save import save
from roast_export.summary import summary
from roast_export.to_bundle import export_bundle
from roast_export.verify_all import verify_all


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
@example_options
@shape_options
@state_option
@click.option("--opset", type=int, help="ONNX opset.")
@task_option
@loading_options
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
@bound_options
@unproved_option
@click.option(
    "--bundle",
    type=click.Choice(list(PLATFORMS)),
    help="Write a folder that an app takes in; -o names it. The libraries come from make cross.",
)
@report_option
@click.option(
    "--runtimes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=list_runtimes,
    help="List the runtimes that are usable here, and exit.",
)
@debug_option
@version_option
def export_command(
    model: Path,
    to: str,
    output: Path | None,
    specs: Sequence[str],
    inputs_file: Path | None,
    dynamic_specs: Sequence[str],
    static_specs: Sequence[str],
    state: Literal["inputs"] | None,
    opset: int | None,
    task: str | None,
    factory: str | None,
    trust: bool,
    facts: Path | None,
    keep_dense: bool,
    weights: Literal["virtual", "materialized"],
    portable: bool,
    delegate: Literal["xnnpack"] | None,
    no_verify: bool,
    atol: float | None,
    rtol: float | None,
    allow_unproved: bool,
    bundle: str | None,
    report_path: Path | None,
) -> None:
    """Export MODEL and prove the file equal to PyTorch before it is put in place."""
    if no_verify and (atol is not None or rtol is not None):
        raise InputError("--atol and --rtol are the bounds of the proof; leave them or --no-verify out")
    given = (to, weights, portable, delegate, state, no_verify)
    own = given != ("onnx", "virtual", False, None, None, False)
    if bundle is not None and own:
        rest = "--to, --weights, --portable, --delegate, --state, --no-verify"
        raise InputError(f"--bundle chooses form and proof itself; leave {rest} out")
    if is_folder(model):
        unused = {
            "--input": specs,
            "--inputs": inputs_file,
            "--dynamic": dynamic_specs,
            "--static": static_specs,
            "--bundle": bundle,
            "--state": state,
        }
        check_options(unused | {"--model": factory, "--facts": facts, "--keep-dense": keep_dense})
        forms: dict[str, Any] = {
            "opset": opset,
            "weights": weights,
            "portable": portable,
            "delegate": delegate,
            "atol": atol,
            "rtol": rtol,
            "allow_unproved": allow_unproved,
        }
        export_folder(model, output, to, task, report_path, trust, verify=not no_verify, **forms)
        return
    output = output or Path(f"{model.stem}-{bundle}" if bundle else model.stem + TARGETS[to])
    check_output(output, model, folder=bundle is not None)
    check_report(report_path, model, output)
    examples = merge_inputs(specs, inputs_file)
    shapes = parse_shapes(dynamic_specs, static_specs, examples)
    loaded = opened(model, factory, trust, facts, keep_dense)
    common: dict[str, Any] = {"example_inputs": examples, "dynamic_shapes": shapes, "opset": opset}
    common |= {"atol": atol, "rtol": rtol, "allow_unproved": allow_unproved}
    with progress() as show:
        common["progress"] = show
        if bundle is not None:
            reported(lambda: export_bundle(loaded, output, bundle, **common), model, report_path)
            return
        common |= {"portable": portable, "delegate": delegate, "verify": not no_verify, "state": state}
        reported(
            lambda: export(loaded, output, to=to, weights=weights, **common),
            model,
            report_path,
        )


@click.command("roast-verify", cls=RoastCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("exported", type=click.Path(path_type=Path), nargs=-1, required=True)
@example_options
@task_option
@loading_options
@click.option("--runtime", "chosen", multiple=True, metavar="NAME", help="Only this one, or all.")
@click.option("--require", multiple=True, metavar="NAME", help="This one too, or fail. Repeatable.")
@bound_options
@unproved_option
@report_option
@debug_option
@version_option
def verify_command(
    model: Path,
    exported: Sequence[Path],
    specs: Sequence[str],
    inputs_file: Path | None,
    task: str | None,
    factory: str | None,
    trust: bool,
    facts: Path | None,
    keep_dense: bool,
    chosen: Sequence[str],
    require: Sequence[str],
    atol: float | None,
    rtol: float | None,
    allow_unproved: bool,
    report_path: Path | None,
) -> None:
    """Compare each EXPORTED file with MODEL in every runtime at hand."""
    check_report(report_path, model, *exported)
    for path in exported:
        check_file(path)
    examples: Any = merge_inputs(specs, inputs_file)
    if is_folder(model):
        check_options({"--model": factory, "--facts": facts, "--keep-dense": keep_dense})
        part = part_for(open_parts(model, task, trust=trust), exported)
        loaded, examples = part.module, examples or part.inputs
    else:
        loaded = opened(model, factory, trust, facts, keep_dense)
    matrix = verify_all(
        loaded,
        exported,
        example_inputs=examples,
        runtimes=list(chosen) or None,
        require=require,
        atol=atol,
        rtol=rtol,
        trust=trust,
        allow_unproved=allow_unproved,
        name=str(model),
        showing=progress,
    )
    shown = matrix.reports[0] if len(exported) == 1 and not matrix.lacking else matrix
    click.echo(str(shown))
    save_report(shown, report_path)
    if not matrix.passed:
        wrong = [report for report in matrix.reports if not report.passed] or matrix.reports
        names = ", ".join(report.path for report in wrong)
        raise VerificationError(f"{names}: not proved equal to {model}; the reason is above", wrong[0])


@click.command("roast-inspect", cls=RoastCommand)
@click.argument("file", type=click.Path(path_type=Path))
@loading_options
@debug_option
@version_option
def inspect_command(
    file: Path, factory: str | None, trust: bool, facts: Path | None, keep_dense: bool
) -> None:
    """Show what is in FILE: virtual weights, arrays, sizes, and how it would run on this machine."""
    if is_folder(file):
        check_options({"--model": factory, "--facts": facts, "--keep-dense": keep_dense})
        click.echo(str(summary(open_model(open_folder(file), trust=trust))))
        return
    click.echo(str(inspect(file, model=factory, trust=trust, facts=facts)))


@click.command("roast-compress", cls=RoastCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--ratio", type=float, required=True, help="Elements that become virtual per array element.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Compressed archive.  [default: *.roast.pt]"
)
@example_options
@state_option
@task_option
@loading_options
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
@debug_option
@version_option
def compress_command(
    model: Path,
    ratio: float,
    output: Path | None,
    specs: Sequence[str],
    inputs_file: Path | None,
    state: Literal["inputs"] | None,
    task: str | None,
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
    A transformers folder becomes a folder.
    """
    options: dict[str, Any] = {
        "seed": seed,
        "min_params": min_params,
        "include": list(include) or None,
        "exclude": list(exclude) or None,
        "local": local,
        "init": init,
        "memory_dtype": torch.float16 if half else None,
    }
    if is_folder(model):
        unused = {"--input": specs, "--inputs": inputs_file, "--model": factory, "--facts": facts}
        check_options(unused | {"--keep-dense": keep_dense, "--state": state})
        compress_into(model, output, ratio, task, trust, **options)
        return
    if output is not None:
        check_output(output, model)
    examples = merge_inputs(specs, inputs_file)
    if output is not None and examples is None:
        raise InputError(
            f"{output} cannot be written without example inputs; add --input NAME:DTYPE[DIMS] "
            "or --inputs FILE.npz"
        )
    compressed = compress(opened(model, factory, trust, facts, keep_dense), ratio, **options)
    click.echo(str(summary(compressed)))
    if examples is None:
        click.echo("nothing written: add --input NAME:DTYPE[DIMS] or --inputs FILE.npz to save the model")
        return
    output = output or Path(f"{model.stem}.roast.pt")
    check_output(output, model)
    save(compressed, output, examples, state=state)
    click.echo(f"wrote {output}, {output.stat().st_size:,} bytes")
