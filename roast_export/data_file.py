"""Tensors of several ONNX files in one data file beside them: what two files read is stored once.

A file is written as the proof then sees it, and later ones add to the data file what it lacks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from roast_export.errors import LoadError
from roast_export.onnx_ops import graphs_of, nodes_of
from roast_export.reading import copy_into, opened

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
    places = {}
    for tensor in tensors_of(onnx.load(path, load_external_data=False)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            places[entry.get("location"), entry.get("offset", "0")] = int(entry.get("length", 0))
    return sum(places.values())


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a model stores: initializers and attributes, in inner graphs and functions too."""
    for graph in graphs_of(proto.graph):
        yield from graph.initializer
    inner = (node for function in proto.functions for node in function.node)
    for node in [*nodes_of(proto.graph), *inner]:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def copy_data_files(copy: Path, path: Path) -> None:
    """Copy the data files that the ONNX file `copy` names from beside `path`, of which it is a copy.

    A file that onnx would refuse to read for the place it lies at is refused: outside the model's folder, or
    reached by a link of either kind. One that is not there is left to onnx to complain of.

    Raises:
        LoadError: a data file is refused, or cannot be copied.
    """
    try:
        proto = onnx.load(copy, load_external_data=False)
    except (DecodeError, ValueError, OSError):
        return  # Whoever opens it next says what it is.
    named = {
        item.value
        for tensor in tensors_of(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for item in tensor.external_data
        if item.key == "location"
    }
    for name in sorted(named):
        place = Path(name)
        if not name or "\0" in name or place.is_absolute() or ".." in place.parts:
            raise LoadError(f"{path} names data outside of its folder ({name[:80]!r}); export it again")
        source = path.parent / place
        if os.path.lexists(source):
            _copy_data(source, copy.parent / place, path)


def _copy_data(source: Path, target: Path, path: Path) -> None:
    folder = path.parent.resolve()
    if source.is_symlink() or not source.resolve().is_relative_to(folder):
        raise LoadError(f"{path} names {source}, which is a link; put the data itself beside the model")
    with opened(source, wanted=f"put the data that {path.name} names there") as file:
        if os.fstat(file.fileno()).st_nlink > 1:
            raise LoadError(f"{path} names {source}, which has several links; put a copy beside the model")
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_into(file, target, source)
