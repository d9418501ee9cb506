"""torch's archives with their text deflated, and without the paths of the machine that wrote them.

torch stores graphs and bytecode as plain text, which can be larger than a compressed model's tensors.
Every reader of the format inflates; tensors stay as they are, at multiples of 64 bytes, because
readers map them into memory.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEXT = ("pkl", ".py", ".json")
SOURCE_RANGES = ".debug_pkl"
"""Members that map TorchScript to lines of Python, with paths of the machine; readers do without."""

LINE = 64
LOCAL_HEADER_BYTES = 30
PADDING_TAG = b"FB"
"""The extra field that torch itself pads with."""


@contextmanager
def deflated(path: Path) -> Iterator[io.BytesIO]:
    """A buffer to write an archive to; on success `path` is the same archive, smaller.

    torch writes to memory, because its writer of files ends the process where the disk is full.
    """
    large = io.BytesIO()
    yield large
    with zipfile.ZipFile(large) as source, path.open("wb") as file, zipfile.ZipFile(file, "w") as target:
        for member in source.infolist():
            if member.filename.endswith(SOURCE_RANGES):
                continue
            copy = _header(member.filename, file.tell())
            target.writestr(copy, source.read(member))


def tensor_bytes(path: Path) -> int:
    """Bytes of the members of an archive that are no text: its tensors."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.filename.endswith(TEXT)]
    return sum(member.file_size for member in members)


def _header(name: str, place: int) -> zipfile.ZipInfo:
    """A member that starts at `place`; the date is fixed, so that equal models make equal files."""
    member = zipfile.ZipInfo(name)
    if name.endswith(TEXT):
        member.compress_type = zipfile.ZIP_DEFLATED
        return member
    begin = place + LOCAL_HEADER_BYTES + len(name.encode()) + len(PADDING_TAG) + 2
    member.extra = PADDING_TAG + struct.pack("<H", -begin % LINE) + bytes(-begin % LINE)
    return member
