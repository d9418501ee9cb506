"""An exported file by what is in it, and the private copy of a stranger's file that a proof works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from roast_export import pte_file
from roast_export.aoti_file import open_aoti_file
from roast_export.artifact import Artifact
from roast_export.compare import first_line
from roast_export.data_file import copy_data_files
from roast_export.errors import RoastError
from roast_export.file_kind import begins_as_zip, check_members
from roast_export.note import read_note
from roast_export.onnx_file import open_onnx
from roast_export.ort_file import open_ort
from roast_export.printable import changed
from roast_export.pt2_file import open_pt2_file
from roast_export.reading import copied, opened
from roast_export.report import Report
from roast_export.script_code import script_runs_code
from roast_export.script_file import open_script_file
from roast_export.stored_tensors import check_stored

Restored = Callable[[Report], Report]
"""Gives a report the names that its reader knows, in the place of those of a copy."""

_OPENERS: dict[bytes, Callable[[Path], Artifact]] = {b"ORTM": open_ort, pte_file.MAGIC: pte_file.open_pte}
"""By bytes 4 to 8 of a file; what is no zip archive and not in here is taken for ONNX."""


@contextmanager
def private_artifact(path: Path, *, trust: bool = False) -> Iterator[tuple[Artifact, Restored]]:
    """`open_artifact` of a copy of the file, and of the data beside it, that is gone afterwards.

    What is checked, compared and run is then one file, whatever happens at `path` meanwhile. Messages of
    errors that are raised in the context, and reports that go through the function, speak of `path`.
    """
    with opened(path, wanted="name an exported file") as file, copied(file, path) as copy:

        def original(text: str) -> str:
            return text.replace(str(copy), str(path)).replace(str(copy.parent), str(path.absolute().parent))

        try:
            if not _is_archive(copy) and _head(copy)[4:8] not in _OPENERS:
                copy_data_files(copy, path)
            yield open_artifact(copy, trust=trust), lambda report: changed(report, original)
        except RoastError as error:
            if str(copy.parent) not in str(error):
                raise
            raise type(error)(original(str(error))) from error


def open_artifact(path: Path, *, trust: bool = False) -> Artifact:
    """An exported file by what is in it. Raises RoastError if it is not one of ours.

    trust: the file may be one whose comparison runs code from it.
    """
    if not path.is_file():
        raise RoastError(f"{path} does not exist; check the path")
    with _damage_named(path):
        file = _opened_by_kind(path, trust)
        for name, (_, lengths) in file.inputs.items():
            if any(length < 1 for length in lengths if isinstance(length, int)):
                raise ValueError(f"its input {name!r} has the lengths {lengths}")
        return file


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever a reader makes of damaged bytes becomes one message with the file's name and a next step."""
    try:
        yield
    except RoastError as error:
        if str(path) in str(error):
            raise
        raise RoastError(f"{path} is damaged or of another version ({error}); export it again") from error
    except Exception as error:
        raise RoastError(
            f"{path} is damaged or of another version ({first_line(error)}); export it again"
        ) from error


def _opened_by_kind(path: Path, trust: bool) -> Artifact:
    if not _is_archive(path):
        return _OPENERS.get(_head(path)[4:8], open_onnx)(path)
    check_members(path, path)
    target = read_note(path).target
    if target in ("torchscript", "lite"):
        reason = None if trust else script_runs_code(path)
        if reason is not None:
            raise RoastError(
                f"{path} could do more than compute ({reason}), and comparing it runs it; add --trust "
                "(trust=True) if you trust where it comes from"
            )
        check_stored(path, path)
        return open_script_file(path, target)
    if target == "pt2":
        file = open_pt2_file(path)
        check_stored(path, path)
        return file
    if target == "aoti" and trust:
        return open_aoti_file(path)
    if target == "aoti":
        raise RoastError(
            f"{path} holds machine code, and comparing it runs it; add --trust (trust=True) if you trust "
            "where it comes from"
        )
    raise RoastError(f"{path} is of the unknown kind {target!r}; upgrade roast-export")


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return begins_as_zip(file)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)
