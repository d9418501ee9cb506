"""Exported files of torch's formats, and copies of them in which one thing is changed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from roast_export.note import NOTE
from roast_export.program import quiet
from roast_export.torch_zip import deflated

FORMS = {
    "torchscript": ("torchscript", False),
    "torchscript portable": ("torchscript", True),
    "lite": ("lite", True),
    "pt2": ("pt2", False),
    "pt2 portable": ("pt2", True),
}
"""Target and `portable` of everything that torch runs."""


def note_text(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith(f"extra/{NOTE}"))
        return archive.read(name).decode()


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Copy an archive member by member; `change` gets each member's name without the folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            content = change(member.filename.partition("/")[2], old.read(member))
            if content is not None:
                new.writestr(zipfile.ZipInfo(member.filename), content, member.compress_type)
    return target


def with_note(source: Path, target: Path, /, **fields: Any) -> Path:
    """The file with other values in its note."""
    note = json.dumps(json.loads(note_text(source)) | fields).encode()
    return rewrite(source, target, lambda name, content: note if name == f"extra/{NOTE}" else content)


def edit_script(source: Path, target: Path, edit: Callable[[Any], None]) -> Path:
    """Open a TorchScript or lite file, change the module, and write it in its own format."""
    note = {NOTE: note_text(source)}
    with quiet(), torch.no_grad():
        module = torch.jit.load(str(source))
        edit(module)
        with deflated(target) as large:
            if json.loads(note[NOTE])["target"] == "lite":
                large.write(module._save_to_buffer_for_lite_interpreter(_extra_files=note))
            else:
                torch.jit.save(module, large, _extra_files=note)
    return target


def edit_pt2(source: Path, target: Path, edit: Callable[[Any], None]) -> Path:
    """The same for a torch.export archive."""
    with quiet(), torch.no_grad():
        program = torch.export.load(source)
        edit(program)
        with deflated(target) as large:
            torch.export.save(program, large, extra_files={NOTE: note_text(source)})
    return target
