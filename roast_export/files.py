"""Writing so that a failure leaves nothing behind and never destroys what was there."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path

from roast_export.errors import ExportError
from roast_export.watched import goes_with_the_child

DATA = (".data", ".onnx_data")
"""Suffixes of files that hold tensors of a model beside them."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path of the same name in a fresh folder beside `path`; on success what is there is moved into place.

    Files that were written beside it move along (`<name>.data` of ONNX, a page's settings). A file that is
    replaced hands on its mode and its owner; a link goes on pointing to what is replaced.

    Raises:
        ExportError: the folder cannot be written, the disk is full, `path` is no ordinary file, or a file
            beside it would be lost that does not belong to it.
    """
    # What a link points to is replaced, and the link stays a link.
    target = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name a file")
    if target.exists() and not target.is_file():
        raise ExportError(f"{target} is a device, a pipe or a socket; name a file")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ExportError(f"cannot write into {target.parent}: {error.strerror}") from error
    goes_with_the_child(folder)
    try:
        yield folder / target.name
        _move(folder, target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    """Data first, because the file itself is what readers open. Data that is no longer used goes."""
    others = sorted(path for path in folder.iterdir() if path.is_file() and path.name != target.name)
    for other in others:
        beside = target.with_name(other.name)
        if os.path.lexists(beside) and not (_names(target, beside) or _goes_on(other, beside)):
            raise ExportError(
                f"{beside} is there and does not belong to {target}; move it away or choose another output"
            )
    data = target.with_name(f"{target.name}.data")
    old_data = data if _names(target, data) else None
    for other in others:
        _replace(other, target.with_name(other.name))
    _replace(folder / target.name, target)
    if old_data is not None and not any(other.name == data.name for other in others):
        old_data.unlink(missing_ok=True)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target`, whose files are moved into `target` on success.

    `target` is made if it is not there; what else is in it stays.

    Raises:
        ExportError: the folder cannot be written, or a file in it would be lost that does not belong to the
            models that are replaced.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent) as folder:
            goes_with_the_child(Path(folder))
            yield Path(folder)
            _move_into(Path(folder), target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error


def _move_into(folder: Path, target: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    data = [path for path in files if path.suffix in DATA]
    models = [path for path in files if path.suffix not in DATA]
    for new in files:
        old = target / new.name
        if old.is_symlink() or (os.path.lexists(old) and not old.is_file()):
            raise ExportError(f"{old} is a link or no ordinary file; move it away or choose another output")
    for new in data:
        old = target / new.name
        if os.path.lexists(old) and not any(_names(target / model.name, old) for model in models):
            raise ExportError(
                f"{old} is there and does not belong to {target}; move it away or choose another output"
            )
    target.mkdir(exist_ok=True)
    for new in (*data, *models):
        _replace(new, target / new.name)


def _names(file: Path, beside: Path) -> bool:
    """Whether `file` speaks of the file `beside` it: as ONNX does of its data, or by being of one stem."""
    if not file.is_file():
        return False
    if beside.suffix not in DATA:
        return True
    if not beside.is_file() or file.stat().st_size == 0:
        return False
    with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(beside.name.encode()) >= 0


def _goes_on(new: Path, old: Path) -> bool:
    """Whether a file begins with all that another holds, so that nothing of it is lost."""
    size = old.stat().st_size if old.is_file() else -1
    if not 0 < size <= new.stat().st_size:
        return False
    with new.open("rb") as longer, old.open("rb") as shorter:
        return all(longer.read(len(piece)) == piece for piece in iter(lambda: shorter.read(1 << 20), b""))


def _replace(new: Path, old: Path) -> None:
    """A file that is there keeps its mode and its owner."""
    if old.is_file() and not old.is_symlink():
        state = old.stat()
        if hasattr(os, "chown"):
            with suppress(PermissionError):
                os.chown(new, state.st_uid, state.st_gid)
        new.chmod(stat.S_IMODE(state.st_mode))
    os.replace(new, old)
