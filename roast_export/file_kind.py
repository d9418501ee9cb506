"""What kind of file an open file is, by its first bytes, and whether a zip archive is whole."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from roast_export import budget
from roast_export.errors import LoadError

INDEX = ".index.json"
ARCHIVE, PICKLE, SAFETENSORS, SHARDS = (
    "export archive",
    "torch pickle",
    "a safetensors file",
    "an index of weights",
)

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    # An encrypted member, and NotImplementedError of a compression that torch has not either.
    RuntimeError,
)
"""What zipfile raises on bytes that are not its own."""


def kind_of(file: BinaryIO, path: Path) -> str:
    """One of the kinds above, or a phrase for another kind. Raises LoadError if a zip is damaged."""
    file.seek(0)
    head = file.read(512)
    if not head:
        return "empty"
    if begins_as_zip(file):
        return _zip_kind(file, path)
    if head[4:8] == b"ORTM":
        return "an ORT-format model"
    if head[4:8] == b"ET12":
        return "an ExecuTorch program"
    if head.startswith(b"GGUF"):
        return "a GGUF file"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return SAFETENSORS
    if path.name.endswith(INDEX):
        return SHARDS
    if path.suffix == ".onnx":
        return "an ONNX model"
    if head[0] == 0x80:
        return PICKLE
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "a text file" if printable > 0.95 * len(head) else "of no kind known here"


def begins_as_zip(file: BinaryIO) -> bool:
    """Whether an open file is a zip archive from its first byte on.

    A zip archive is found by its end, so that another file can stand before it, and torch goes by the
    beginning: it would open that other file, which nobody has looked at. The fifth to eighth bytes, where
    formats of runtimes have their names, are a version and flags in an archive, and no letters.
    """
    file.seek(0)
    head = file.read(8)
    return head.startswith(b"PK") and not head[4:].isalnum()


def _zip_kind(file: BinaryIO, path: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except _DAMAGE as error:
        raise LoadError(f"{path} is truncated or damaged ({error}); copy it again") from error
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return ARCHIVE
    if "constants.pkl" in inner:
        return "a TorchScript archive"
    if "data.pkl" in inner:
        return PICKLE
    return "a numpy archive" if any(name.endswith(".npy") for name in names) else "a zip file without a model"


def check_members(file: BinaryIO | Path, path: str | os.PathLike[str]) -> None:
    """Hold every member of a zip archive to its checksum, which torch's own reader does not look at.

    path: what the archive is called in messages.

    Raises:
        LoadError: the archive is truncated, a member is damaged, or its members are too large together.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            budget.check_unpacked(archive, path)
            damaged = archive.testzip()
    except LoadError:
        raise
    except _DAMAGE as error:
        raise LoadError(f"{path} is truncated or damaged ({error}); copy it again") from error
    if damaged:
        raise LoadError(f"{path} is damaged in its member {damaged}; copy it again")
