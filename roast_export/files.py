"""Writing so that a failure leaves nothing behind and never destroys what was there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roast_export.errors import ExportError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path of the same name in a fresh folder beside `path`; on success what is there is moved into place.

    Files that were written beside it move along (`<name>.data` of ONNX, a page's settings).

    Raises:
        ExportError: the folder cannot be written or the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name a file")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ExportError(f"cannot write into {target.parent}: {error.strerror}") from error
    try:
        yield folder / target.name
        _move(folder, target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    """Data first, because the file itself is what readers open. Data that is no longer used goes."""
    data = target.with_name(f"{target.name}.data")
    has_data = (folder / data.name).exists()
    for beside in sorted(path for path in folder.iterdir() if path.is_file() and path.name != target.name):
        os.replace(beside, target.with_name(beside.name))
    os.replace(folder / target.name, target)
    if not has_data:
        data.unlink(missing_ok=True)
