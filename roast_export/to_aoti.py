"""Exported program in, AOTInductor package out: machine code for this kind of processor, and constants.

The operators on virtual weights stay calls of the library, so the package holds the array and no weight.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import torch
from torch.export import ExportedProgram

from roast_export.errors import ExportError
from roast_export.note import NOTE, note_of
from roast_export.program import DimNames, layers_of, quiet
from roast_export.torch_zip import deflated


def compiler_absent() -> str | None:
    """Why AOTInductor cannot compile here, or None."""
    if shutil.which("g++") or shutil.which("clang++"):
        return None
    return "AOTInductor needs a C++ compiler and finds none; install g++, or export to pt2"


def write_aoti(program: ExportedProgram, path: Path, *, dim_names: DimNames | None = None) -> None:
    """Compile the program. It takes a minute or more, and the file runs on processors like this one.

    dim_names: see signature.

    Raises:
        ExportError: there is no compiler, or AOTInductor cannot compile the model.
    """
    reason = compiler_absent()
    if reason is not None:
        raise ExportError(reason)
    uses = [(layer.node, layer) for layer in layers_of(program)]
    note = note_of(program, "aoti", False, uses, dim_names)
    # torch's writer of files ends the process where the disk is full.
    package = io.BytesIO()
    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=package)
        with deflated(path) as large:
            _without_sources(package, large, note.to_json())
    except (OSError, ExportError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"AOTInductor cannot compile this model: {lines[0]}") from error


def _without_sources(package: io.BytesIO, target: io.BytesIO, note: str) -> None:
    """The package with our note, and without the C++ that it was compiled from.

    The package runs without it, and it quotes the compiler's command with the paths of this machine.
    """
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "w") as archive:
        names = [name for name in source.namelist() if not name.endswith(".cpp")]
        for name in names:
            archive.writestr(name, source.read(name))
        archive.writestr(f"{names[0].partition('/')[0]}/extra/{NOTE}", note)
