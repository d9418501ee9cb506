"""Tensors to and from a program of its own, for runtimes that Python cannot load.

custom_ops/cross/tensor_file.h documents the file, for the programs beside it.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from roast_export.errors import RoastError
from roast_export.runtimes import Array


def run_program(name: str, command: Sequence[Path | str]) -> None:
    """Run it to its end. Raises RoastError, about the runtime `name`, with what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip()[-500:] or f"ended with status {done.returncode}"
        raise RoastError(f"{name} cannot run the model: {reason}")


def encode(tensors: dict[str, Array]) -> bytes:
    """Tensors by name."""
    parts = [struct.pack("<q", len(tensors))]
    for name, tensor in tensors.items():
        text, values = name.encode(), np.ascontiguousarray(tensor)
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(values.dtype))
        parts.append(struct.pack("<4q", len(text), kind, values.ndim, values.nbytes))
        parts += [struct.pack(f"<{values.ndim}q", *values.shape), _padded(text), _padded(values.tobytes())]
    return b"".join(parts)


def decode(data: bytes) -> list[Array]:
    """The tensors of a file that such a program wrote."""
    return _decode(data, 0)[0]


def decode_all(data: bytes) -> list[list[Array]]:
    """The same of a file of several sets, one after the other."""
    place, sets = 0, []
    while place < len(data):
        tensors, place = _decode(data, place)
        sets.append(tensors)
    return sets


def _decode(data: bytes, place: int) -> tuple[list[Array], int]:
    (count,) = struct.unpack_from("<q", data, place)
    place, tensors = place + 8, []
    for _ in range(count):
        name_bytes, kind, rank, size = struct.unpack_from("<4q", data, place)
        shape = struct.unpack_from(f"<{rank}q", data, place + 32)
        place += 32 + 8 * rank + len(_padded(bytes(name_bytes)))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        tensors.append(np.frombuffer(data[place : place + size], dtype).reshape(shape))
        place += size + -size % 8
    return tensors, place


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
