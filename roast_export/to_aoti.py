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
        with zipfile.ZipFile(package, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/extra/{NOTE}", note.to_json())
        path.write_bytes(package.getbuffer())
    except (OSError, ExportError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"AOTInductor cannot compile this model: {lines[0]}") from error
