"""What a file may ask of the machine: the limits in one place, by the size of the file.

A file that someone else wrote states sizes of its own: shapes, counts of loops, what its archive unpacks to.
Nothing that it states is believed before it is held to a limit here. Each limit is far above what real models
take, and an environment variable raises it for the model that takes more (SECURITY.md).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any

from roast_export.errors import LoadError

GIB = 1 << 30

MEMORY = "ROAST_LIMIT_MEMORY"
"""Variable: GiB of memory that running a file may take."""
SECONDS = "ROAST_LIMIT_SECONDS"
"""Variable: seconds that opening a file, or one run of it, may take."""


def memory(file_bytes: int) -> int:
    """Bytes that opening and running a file of `file_bytes` bytes may take beside what the process has."""
    return int(_override(MEMORY, GIB) or 8 * GIB + 16 * file_bytes)


def seconds(file_bytes: int) -> float:
    """Seconds that opening a file of `file_bytes` bytes, or one run of it, may take."""
    return _override(SECONDS, 1) or 600 + file_bytes / 1e6


def unpacked(file_bytes: int) -> int:
    """Bytes that the members of a zip archive of `file_bytes` bytes may have together.

    Tensors are stored as they are, and text shrinks to a twentieth; deflate can shrink to a thousandth.
    """
    return int(_override(MEMORY, GIB) or GIB // 4 + 8 * file_bytes)


def check_unpacked(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> None:
    """Hold an archive to `unpacked` before a member of it is read. path: what messages call it.

    Raises:
        LoadError: its members have more bytes.
    """
    assert archive.fp is not None
    packed = archive.fp.seek(0, os.SEEK_END)
    stated, most = sum(member.file_size for member in archive.infolist()), unpacked(packed)
    if stated > most:
        raise LoadError(
            f"{path} has {packed:,} bytes and unpacks to {stated:,}, more than the {most:,} allowed; "
            f"if you trust it, set the variable {MEMORY} to more GiB"
        )


VALUES = 4_000_000
"""Values in a pickle, each as often as it is reached: nested pairs of one another double at each level."""
DEPTH = 200
ELEMENTS = 1 << 28
"""Elements of a tensor beyond those that its storage holds: a stride of 0 repeats an element without end."""


def check_values(content: Any) -> None:
    """Hold what a pickle was read as to VALUES, DEPTH and ELEMENTS, before anything walks through it.

    Raises:
        LoadError: it is larger.
    """
    count, waiting = 0, [(content, 0)]
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if count > VALUES or depth > DEPTH:
            what = f"more than {VALUES:,} values" if count > VALUES else f"values nested over {DEPTH} deep"
            raise LoadError(f"it holds {what}, which no model does")
        if isinstance(item, Mapping):
            waiting += [(value, depth + 1) for value in item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += [(value, depth + 1) for value in item]
        elif hasattr(item, "untyped_storage") and item.numel() > ELEMENTS:
            held = item.untyped_storage().nbytes() // item.element_size()
            if item.numel() > max(held, ELEMENTS):
                raise LoadError(f"it holds a tensor of {item.numel():,} elements in a storage of {held:,}")


def check_storages(content: Any, file_bytes: int) -> None:
    """Hold the storages of the tensors in `content` to what a file of `file_bytes` bytes can hold.

    Raises:
        LoadError: together they are larger; the file states a length and does not hold the values.
    """
    held, waiting = {}, [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
        elif hasattr(item, "untyped_storage") and item.device.type == "cpu" and _is_strided(item):
            storage = item.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    most = unpacked(file_bytes)
    if sum(held.values()) > most:
        raise LoadError(f"its tensors take {sum(held.values()):,} bytes, and the file has {file_bytes:,}")


def _is_strided(tensor: Any) -> bool:
    return str(tensor.layout) == "torch.strided" and not tensor.is_nested


def _override(variable: str, unit: int) -> float | None:
    """What the user allows; None where the variable is not set, or is no positive number."""
    try:
        number = float(os.environ.get(variable, ""))
    except ValueError:
        return None
    return number * unit if number > 0 else None
