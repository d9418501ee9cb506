"""What is in a file: virtual weights, arrays, sizes, and how it would run on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from collections.abc import Mapping as Named
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from roast_export.errors import LoadError, RoastError
from roast_export.facts import Facts
from roast_export.import_report import ImportReport
from roast_export.load import look
from roast_export.onnx_ops import DOMAIN, OPERATORS, array_of, mapping_of
from roast_export.printable import one_line, printable
from roast_export.reading import opened
from roast_export.report import Layer
from roast_export.report_text import MAX_LAYERS, bytes_text, count, shape_text, table
from roast_export.runtimes import native_unavailable
from roast_export.summary import Array, Summary, summary

NEVER_NATIVE = {"RoastGatherFolded"}
"""Operators that no library has a kernel for (docs/operators.md)."""


@dataclass(frozen=True)
class Inspection:
    """One file, opened. `str()` is the text that roast-inspect prints."""

    path: str
    kind: str
    """"ONNX" or "PyTorch"."""
    file_bytes: int
    """With external data files."""
    layers: list[Layer] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    kept_bytes: int = 0
    """Initializers that are no shared array."""
    opset: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    """"native" and "portable": "yes", or why not, on this machine."""
    summary: Summary | None = None
    """The table of parameters, for a PyTorch model."""
    imported: ImportReport | None = None
    """The layers of research code in a PyTorch model, and what an export of them would weigh."""

    @property
    def array_bytes(self) -> int:
        return sum(array.bytes for array in self.arrays.values())

    @property
    def dense_bytes(self) -> int:
        """With every virtual weight stored as float32."""
        return sum(layer.dense_bytes for layer in self.layers) + self.kept_bytes

    @property
    def would_run(self) -> str:
        """The path this machine would take: "native", "portable" or "not at all"."""
        usable = [name for name, answer in self.paths.items() if answer == "yes"]
        return usable[0] if usable else "not at all"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        head = f"{one_line(self.path)}: {self.kind}, {bytes_text(self.file_bytes)}"
        if self.imported is not None:
            return f"{head}\n\n{self.imported}"
        if self.summary is not None:
            return f"{head}\n\n{self.summary}"
        return "\n".join([f"{head}, opset {self.opset}", *_lines(printable(self))])


def inspect(
    path: str | Path,
    *,
    model: str | None = None,
    trust: bool = False,
    facts: Facts | Named[str, Any] | str | Path | None = None,
) -> Inspection:
    """Open an exported .onnx, or anything `roast_export.load` opens (the other arguments are for it).

    The data of a large .onnx stays on disk, and nothing in the file is run. Layers of research code
    are looked at and proved, but stay as they are; a FakeRoast state dict needs no model for that.

    Raises:
        LoadError: the file is missing, is no model, or has a damaged node or layer.
    """
    path = Path(path)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if path.suffix.lower() == ".onnx":
            return _inspect_onnx(path, file)
    found, imported = look(path, model=model, trust=trust, facts=facts)
    if imported is not None:
        return Inspection(str(path), "PyTorch", size, imported=imported)
    return Inspection(str(path), "PyTorch", size, summary=summary(found))


def _inspect_onnx(path: Path, file: BinaryIO) -> Inspection:
    try:
        proto = onnx.load(file, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise LoadError(f"{path} cannot be read as ONNX ({error}); it may be damaged or cut off") from error
    if not proto.graph.node and not proto.graph.initializer:
        raise LoadError(f"{path} holds no ONNX graph; it may be damaged or of another format")
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = list(_roast_nodes(proto.graph))
    # A weight that several nodes read counts once; to_onnx.py calls its later uses name#2, name#3 ...
    layers = list({layer.name: layer for layer in (_layer(path, node) for node in reversed(nodes))}.values())[
        ::-1
    ]
    arrays: dict[str, Array] = {}
    for name in dict.fromkeys(layer.array for layer in layers):
        if name in tensors:
            readers = sum(layer.array == name for layer in layers)
            arrays[name] = _array(path, tensors[name], readers)
    return Inspection(
        path=str(path),
        kind="ONNX",
        file_bytes=os.fstat(file.fileno()).st_size + _external_bytes(path, proto),
        layers=layers,
        arrays=arrays,
        kept_bytes=sum(_tensor_bytes(path, t) for name, t in tensors.items() if name not in arrays),
        opset=max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0),
        inputs={v.name: _signature(v) for v in proto.graph.input if v.name not in tensors},
        outputs={v.name: _signature(v) for v in proto.graph.output},
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        paths=_paths(proto, {node.op_type for node in nodes}),
    )


def _roast_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of our domain, in branches and loop bodies too."""
    for node in graph.node:
        if node.domain == DOMAIN:
            yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _roast_nodes(inner)


def _layer(path: Path, node: onnx.NodeProto) -> Layer:
    name = node.name.partition("#")[0] or (node.output[0] if node.output else "")
    if node.op_type not in OPERATORS:
        raise LoadError(f"{path}: {name!r} has the unknown operator {node.op_type}; upgrade roast-export")
    try:
        mapping, scale = mapping_of(node)
        array = array_of(node)
    except (RoastError, LookupError, TypeError, ValueError) as error:
        raise LoadError(f"{path}: layer {name!r} is damaged: {error}; export it again") from error
    return Layer(
        name,
        node.op_type,
        mapping.shape,
        mapping.n_memory,
        mapping.tile,
        scale,
        array,
        tuple(mapping.to_list()),
    )


def _array(path: Path, tensor: onnx.TensorProto, readers: int) -> Array:
    kind = _type_name(tensor.data_type)
    return Array(math.prod(tensor.dims), kind, _tensor_bytes(path, tensor), readers)


def _tensor_bytes(path: Path, tensor: onnx.TensorProto) -> int:
    if any(dim < 0 for dim in tensor.dims):
        raise LoadError(f"{path}: {tensor.name!r} has a negative dimension; the file is damaged")
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    try:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError) as error:
        raise LoadError(
            f"{path}: {tensor.name!r} has the unknown type {tensor.data_type}; export it again"
        ) from error
    return int(math.prod(tensor.dims) * size)


def _external_bytes(path: Path, proto: onnx.ModelProto) -> int:
    """Sizes of the data files beside the .onnx; places outside its folder do not count."""
    places = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    return sum(_size_inside(folder, place) for place in sorted(places))


def _size_inside(folder: Path, place: str) -> int:
    try:
        file = (folder / place).resolve()
        return file.stat().st_size if file.is_relative_to(folder) and file.is_file() else 0
    except (OSError, ValueError):
        return 0  # A name that no file can have.


def _type_name(kind: int) -> str:
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except (KeyError, ValueError):
        return f"type {kind}"


def _signature(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    return f"{_type_name(tensor.elem_type)}[{', '.join(dims)}]"


def _paths(proto: onnx.ModelProto, used: set[str]) -> dict[str, str]:
    """Whether the native and the portable path are open here."""
    if not used:
        return {}
    written = {f.name for f in proto.functions if f.domain == DOMAIN}
    missing = sorted(used - written)
    portable = "yes" if not missing else f"no: {', '.join(missing)} has no form in standard operators"
    if used & NEVER_NATIVE:
        return {
            "native": f"no: {', '.join(sorted(used & NEVER_NATIVE))} is dense on purpose",
            "portable": portable,
        }
    reason = native_unavailable()
    return {"native": "yes" if reason is None else f"no: {reason}", "portable": portable}


def _lines(found: Inspection) -> list[str]:
    lines = [f"  input {name}: {signature}" for name, signature in found.inputs.items()]
    lines += [f"  output {name}: {signature}" for name, signature in found.outputs.items()]
    lines += [f"  {key}: {value}" for key, value in found.metadata.items()]
    lines.append("")
    if not found.layers:
        return [*lines, "no virtual weights: this is an ordinary ONNX file"]
    shown = found.layers if len(found.layers) <= MAX_LAYERS else found.layers[:MAX_LAYERS]
    rows: list[tuple[str, ...]] = [
        (x.name, x.operator, shape_text(x.shape), shape_text(x.tile), f"{x.scale:.4g}", x.array)
        for x in shown
    ]
    if len(shown) < len(found.layers):
        rows.append((f"... {len(found.layers) - len(shown):,} more ...", *[""] * 5))
    columns = ["name", "operator", "shape", "tile", ">scale", "array"]
    lines.append(table(f"Virtual weights: {len(found.layers):,}", columns, rows))
    arrays = [
        (name, a.dtype, f"{a.slots:,}", f"{a.bytes:,}", f"{a.readers:,}") for name, a in found.arrays.items()
    ]
    lines.append(table("Arrays", ["name", "type", ">slots", ">bytes", ">weights"], arrays))
    stored = found.array_bytes + found.kept_bytes
    lines += [
        f"arrays {bytes_text(found.array_bytes)}, never compressed {bytes_text(found.kept_bytes)}, "
        f"everything else in the file {bytes_text(max(0, found.file_bytes - stored))}",
        f"dense {bytes_text(found.dense_bytes)}: {count(len(found.layers), 'virtual weight')} make the file "
        f"{found.dense_bytes / max(1, found.file_bytes):.4g}x smaller",
        *(f"{name} path: {answer}" for name, answer in found.paths.items()),
        f"this machine would run it: {found.would_run}",
    ]
    return lines
