"""What the commands do where MODEL is a folder of a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from roast_export.cli_options import check_output, check_report, reported
from roast_export.errors import ExportError, InputError
from roast_export.export import TARGETS, export
from roast_export.files import staging
from roast_export.huggingface.beside import copy_beside, copy_config
from roast_export.huggingface.commands import Opened, compress_folder, open_parts
from roast_export.huggingface.parts import Part
from roast_export.progress import progress
from roast_export.report import Report
from roast_export.summary import summary

DATA_FILE = "model.onnx_data"
"""Where the parts of a model share their array: optimum's name."""

task_option = click.option(
    "--task",
    metavar="TASK",
    help="What to export a transformers folder for: feature-extraction, text-classification, "
    "text-generation-with-past ...  [default: what config.json says it was trained for]",
)


def check_options(unused: dict[str, Any]) -> None:
    """Refuse options that mean nothing for a folder. unused: by their names on the command line."""
    for name, value in unused.items():
        if value:
            raise InputError(
                f"{name} is for model files; a transformers folder brings what it says, leave it out"
            )


def export_folder(
    model: Path,
    output: Path | None,
    to: str,
    task: str | None,
    report_path: Path | None,
    trust: bool,
    **options: Any,
) -> None:
    """Export the parts of a task, each proved before it is put in place."""
    suffix = TARGETS[to]
    opened = open_parts(model, task, trust=trust)
    name = model.resolve().name
    if output is None:
        output = Path(name + suffix) if len(opened.parts) == 1 else Path(f"{name}-{to}")
    into_folder = not output.name.endswith(suffix)
    if not into_folder and len(opened.parts) > 1:
        files = ", ".join(part.name + suffix for part in opened.parts)
        raise InputError(f"{opened.task.name} is exported as {files}; name a folder with -o, not {output}")
    check_output(output, model, folder=into_folder)
    if into_folder and output.exists() and not output.is_dir():
        raise ExportError(f"{output} is a file; choose a folder, or a name that ends in {suffix}, with -o")
    data = DATA_FILE if to == "onnx" and len(opened.parts) > 1 else None
    paths = {part.name: output / f"{part.name}{suffix}" if into_folder else output for part in opened.parts}
    with staging(output) if into_folder else nullcontext(output.parent) as stage:
        if into_folder:
            # Before the work, because they may be refused.
            copy_beside(opened.folder, stage, output)
            copy_config(opened.folder, stage, output)
        for part in opened.parts:
            path = paths[part.name]
            # One report for each file: report-encoder_model.json beside report-decoder_model.json.
            own = report_path and report_path.with_stem(f"{report_path.stem}-{part.name}")
            report = report_path if len(opened.parts) == 1 else own
            _export_part(part, stage / path.name, path, to, model, report, {**options, "data_file": data})


def _export_part(
    part: Part,
    path: Path,
    final: Path,
    to: str,
    model: Path,
    report_path: Path | None,
    options: dict[str, Any],
) -> None:
    """Write `path`, which will be moved to `final`."""
    check_report(report_path, model, final)

    def work() -> Report:
        try:
            with progress() as show:
                report = export(
                    part.module,
                    path,
                    to=to,
                    example_inputs=part.inputs,
                    dynamic_shapes=part.dynamic,
                    input_names=part.names,
                    progress=show,
                    **options,
                )
        except InputError as error:
            raise InputError(
                f"{error}. The task chose inputs and dimensions; with others, export the model in Python: "
                f"roast_export.huggingface.from_pretrained({str(model)!r}), roast_export.export"
            ) from error
        report.path = str(final)
        return report

    reported(work, model, report_path)


def part_for(opened: Opened, exported: Sequence[Path]) -> Part:
    """The part that files were exported from, by their names; the only one where there is one."""
    if len(opened.parts) == 1:
        return opened.parts[0]
    found = {part.name: part for part in opened.parts}
    stems = {path.name.partition(".")[0] for path in exported}
    if len(stems) != 1 or not stems <= set(found):
        raise InputError(
            f"{opened.task.name} is exported as {', '.join(found)}; verify one at a time, under its name"
        )
    return found[stems.pop()]


def compress_into(
    model: Path, output: Path | None, ratio: float, task: str | None, trust: bool, **options: Any
) -> None:
    """Compress a folder into a folder, and say what it cost."""
    output = output or Path(f"{model.resolve().name}-{ratio:g}x")
    if output.resolve() == model.resolve():
        raise ExportError(f"{output} is the model itself; choose another output with -o")
    compressed, cost = compress_folder(model, output, ratio, task, trust=trust, **options)
    click.echo(str(summary(compressed)))
    size = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
    click.echo(f"wrote {output}, {size:,} bytes of weights")
    click.echo(cost)
