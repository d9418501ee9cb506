"""Opening a file of a stranger once, so that what is checked and what is loaded are the same bytes.

A path can be given another file between a check and the load that the check allowed: a link is turned, or the
file is written over. So a path is opened once. What a loader checks itself is read through that handle; what
we check for it is copied first into a folder that nobody else can write to, and then only the copy is read.
The copy is on disk and not in memory, because some models are larger than memory has room for twice.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from roast_export.errors import LoadError, RoastError

PIECE = 1 << 20
_WANTED = "give an ordinary file"
_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
)
"""A pipe that nobody writes to, and a terminal, do not hold the opening up."""


@contextmanager
def opened(
    path: str | os.PathLike[str],
    *,
    error: type[RoastError] = LoadError,
    says: str = "",
    wanted: str = _WANTED,
) -> Iterator[BinaryIO]:
    """The ordinary file at `path`, for reading.

    error: what is raised. says: what stands before the path. wanted: what to give instead of another kind.

    Raises:
        RoastError: of the class `error`: nothing is there, it cannot be read, or it is a folder, a pipe, a
            device or a socket. Those are refused without reading from them.
    """
    name = f"{says}{path}"
    file = None
    try:
        # Opening some devices does something, so the kind is asked for before, and again of what was opened.
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            file = open(path, "rb", opener=lambda place, _: os.open(place, _FLAGS))  # noqa: SIM115
    except FileNotFoundError:
        raise error(f"{name} does not exist; check the path") from None
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise error(f"{name} cannot be read: {why}; check the path and its rights") from cause
    if file is None:
        raise _refusal(mode, name, error, wanted)
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise _refusal(mode, name, error, wanted)
        yield file


def _refusal(mode: int, name: str, error: type[RoastError], wanted: str) -> RoastError:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return error(f"{name} is {kinds.get(stat.S_IFMT(mode), 'no ordinary file')}; {wanted}")


def refuse_special(path: Path, *, error: type[RoastError] = LoadError) -> None:
    """Raises `error` where a pipe, a device or a socket is at `path`; a folder or nothing may be there."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise _refusal(mode, str(path), error, _WANTED)


@contextmanager
def copied(file: BinaryIO, path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a copy of an open file, under its name in a private folder that is removed afterwards.

    path: where the file was opened, for its name and for messages.

    Raises:
        LoadError: there is no room for the copy, or the file shrinks while it is copied.
    """
    with _private_folder() as folder:
        copy = folder / Path(path).name
        copy_into(file, copy, path)
        yield copy


@contextmanager
def _private_folder() -> Iterator[Path]:
    try:
        # mkdtemp makes it for its owner alone, mode 0700.
        folder = Path(tempfile.mkdtemp(prefix="roast-")).resolve()
    except OSError as error:
        raise LoadError(
            f"there is no folder for temporary files ({error}); name one that can be written to in TMPDIR"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_into(file: BinaryIO, copy: Path, path: str | os.PathLike[str]) -> None:
    """Write what an open file holds to `copy`. Raises LoadError as `copied`."""
    size = os.fstat(file.fileno()).st_size
    room = shutil.disk_usage(copy.parent).free
    if size > room:
        raise LoadError(
            f"{path} is copied before it is checked, which takes {size:,} bytes, and {copy.parent} has room "
            f"for {room:,}; name a larger folder in TMPDIR"
        )
    try:
        file.seek(0)
        with copy.open("xb") as target:
            left = size
            while left > 0:
                piece = file.read(min(PIECE, left))
                if not piece:
                    break
                target.write(piece)
                left -= len(piece)
    except OSError as error:
        raise LoadError(f"{path} cannot be copied to {copy.parent}: {error.strerror or error}") from error
    if left:
        raise LoadError(f"{path} lost {left:,} of its bytes while it was read; wait until it is written")


def path_of(file: BinaryIO, path: str | os.PathLike[str]) -> str:
    """A path that leads to an open file whatever `path` leads to by now, where the system has such paths.

    For libraries that take no open file, and that check for themselves what they read.
    """
    here = f"/proc/self/fd/{file.fileno()}"
    return here if os.path.exists(here) else os.fspath(path)
