"""Tensors of several ONNX files in one data file beside them: what two files read is stored once.

A file is written as the proof then sees it, and later ones add to the data file what it lacks.
"""

from __future__ import annotations

import shutil
from mmap import ACCESS_READ, mmap
from pathlib import Path

import onnx
import onnx_ir as ir

LEAST = 4096
"""Bytes from which a tensor goes to the data file."""

ALIGNMENT = 4096
"""Of offsets; onnxruntime maps a page-aligned tensor into memory, and copies others."""


def move_tensors(model: ir.Model, data: Path, earlier: Path) -> None:
    """Put the large tensors of `model` into `data`, which begins as a copy of the file `earlier`, if any.

    The model's file must be written into the folder of `data`.
    """
    if earlier.is_file():
        shutil.copyfile(earlier, data)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < LEAST or tensor.dtype == ir.DataType.STRING:
            continue
        content = tensor.tobytes()
        place = _find(data, content)
        if place is None:
            place = _append(data, content)
        value.const_value = ir.ExternalTensor(
            data.name,
            place,
            len(content),
            tensor.dtype,
            shape=ir.Shape(int(length) for length in tensor.numpy().shape),
            name=value.name or "",
            base_dir=str(data.parent),
        )


def _find(data: Path, content: bytes) -> int | None:
    """The aligned offset at which a file holds `content`."""
    if not data.is_file() or data.stat().st_size == 0:
        return None
    with data.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
        place = stored.find(content)
        while place >= 0 and place % ALIGNMENT:
            place = stored.find(content, place + 1)
    return place if place >= 0 else None


def _append(data: Path, content: bytes) -> int:
    with data.open("ab") as file:
        place = -(-file.tell() // ALIGNMENT) * ALIGNMENT
        file.write(b"\0" * (place - file.tell()) + content)
    return place


def external_bytes(path: Path) -> int:
    """Bytes of the tensors that an ONNX file keeps in other files, each place once."""
    proto = onnx.load(path, load_external_data=False)
    places = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            places[entry["location"], entry.get("offset", "0")] = int(entry["length"])
    return sum(places.values())
