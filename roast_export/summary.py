"""What in a model is virtual, what is not, and why."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from collections.abc import Mapping as Named
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roast_export.fit import advice, relative_errors
from roast_export.modules import virtual_weights
from roast_export.printable import one_line
from roast_export.report_text import bytes_text, count, shape_text, table
from roast_export.wrappers import bare


@dataclass(frozen=True)
class Row:
    """One parameter of the model, virtual or not."""

    name: str
    shape: tuple[int, ...]
    compressed: bool
    detail: str
    """Tile, scale and array of a virtual parameter; the reason for any other."""
    bytes: int
    """What the parameter itself stores: 0 if it is virtual or the same as an earlier one."""
    tied: bool = False
    """Whether it is the same parameter as an earlier row."""
    error: float | None = None
    """|W - dense W| / |dense W|, where compress() approximated a dense weight and no training followed."""
    element_bytes: int = 4
    """Of a virtual parameter as the layer computes with it."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Array:
    """One array that virtual parameters read from."""

    slots: int
    dtype: str
    bytes: int
    readers: int
    """How many different virtual parameters share it."""


@dataclass(frozen=True)
class Summary:
    """The parameters of a model, its arrays, and its buffers' bytes. `str()` is a table."""

    rows: list[Row]
    arrays: list[Array]
    buffer_bytes: int

    @property
    def array_bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def kept_bytes(self) -> int:
        """Parameters that are not virtual, and buffers."""
        return sum(row.bytes for row in self.rows) + self.buffer_bytes

    @property
    def virtual_elements(self) -> int:
        return sum(row.elements for row in self.rows if row.compressed and not row.tied)

    @property
    def dense_bytes(self) -> int:
        """What the model would hold with every virtual parameter stored in the dtype it is computed with.

        An archive does not say the dtype: there it is float32.
        """
        virtual = (row for row in self.rows if row.compressed and not row.tied)
        return sum(row.elements * row.element_bytes for row in virtual) + self.kept_bytes

    def __str__(self) -> str:
        columns = ["parameter", "shape", ">elements", "virtual", "how, or why not", ">bytes"]
        rows = [
            [
                row.name,
                shape_text(row.shape),
                f"{row.elements:,}",
                "yes" if row.compressed else "no",
                row.detail,
                f"{row.bytes:,}",
            ]
            for row in self.rows
        ]
        if any(row.error is not None for row in self.rows):
            columns.insert(4, ">error")
            for text, row in zip(rows, self.rows, strict=True):
                text.insert(4, "" if row.error is None else f"{row.error:.2g}")
        virtual = [row for row in self.rows if row.compressed and not row.tied]
        lines = [
            f"{count(len(virtual), 'virtual parameter')}, {count(self.virtual_elements, 'element')}",
            *(
                f"array of {array.slots:,} {array.dtype} slots, {bytes_text(array.bytes)}, "
                f"read by {count(array.readers, 'parameter')}"
                for array in self.arrays
            ),
            f"buffers {bytes_text(self.buffer_bytes)}",
            f"total {bytes_text(self.array_bytes + self.kept_bytes)}, dense {bytes_text(self.dense_bytes)}, "
            f"{self.dense_bytes / max(1, self.array_bytes + self.kept_bytes):.4g}x smaller",
        ]
        errors = {row.name: row.error for row in self.rows if row.error is not None and not row.tied}
        next_step = advice(errors)
        if next_step is not None:
            lines.append(one_line(next_step))
        return table(f"Parameters: {len(self.rows):,}", columns, rows) + "\n" + "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """Every parameter of a model, compressed by this package or not.

    A tied parameter has a row under each name and counts once.
    """
    with bare(model) as inner:
        return _summary(inner)


def _summary(model: nn.Module) -> Summary:
    layers, errors = _layers(model), relative_errors(model)
    arrays = {_storage(layer.memory): layer.memory for layer in layers.values()}
    readers: dict[int, set[Hashable]] = {key: set() for key in arrays}
    rows: list[Row] = []
    seen: dict[Hashable, str] = {}
    for name, layer in layers.items():
        key = _storage(layer.memory)
        weight = (key, layer.mapping, layer.scale)
        readers[key].add(weight)
        first = seen.setdefault(weight, name)
        detail = f"same as {first}" if first != name else _how(layer)
        narrow = getattr(layer, "dtype", None)
        size = narrow.itemsize if narrow is not None else 4
        rows.append(
            Row(name, tuple(layer.mapping.shape), True, detail, 0, first != name, errors.get(name), size)
        )
    kept: dict[str, str] = model.__dict__.get("_roast_kept", {})
    for name, parameter in _parameters(model):
        if _storage(parameter) in arrays:
            continue
        first = seen.setdefault(_storage(parameter), name)
        tied = first != name
        reason = f"same as {first}" if tied else kept.get(name) or _why_not(parameter)
        rows.append(Row(name, tuple(parameter.shape), False, reason, 0 if tied else parameter.nbytes, tied))
    buffers = {_storage(b): b.nbytes for b in model.buffers() if _storage(b) not in arrays}
    found = [
        Array(memory.numel(), str(memory.dtype).removeprefix("torch."), memory.nbytes, len(readers[key]))
        for key, memory in arrays.items()
    ]
    return Summary(rows, found, sum(buffers.values()))


def _storage(tensor: torch.Tensor) -> int:
    """What tensors over the same memory have in common; a traced program gives new objects each time."""
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by every name; those of a loaded archive by the names that they had in the model."""
    prefix = "graph." if hasattr(model, "roast_layers") else ""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name.removeprefix(prefix), parameter


def _layers(model: nn.Module) -> Named[str, Any]:
    """Virtual weights by name: of a loaded archive, which says so itself, or of compressed modules."""
    stored: Named[str, Any] | None = getattr(model, "roast_layers", None)
    return virtual_weights(model) if stored is None else stored


def _how(layer: Any) -> str:
    mapping = layer.mapping
    return f"{shape_text(mapping.tile)} tiles, scale {layer.scale:.4g}, {mapping.n_memory} slots"


def _why_not(parameter: nn.Parameter) -> str:
    """The reason where compress() left none."""
    if not parameter.is_floating_point():
        return "not floating point"
    if parameter.dim() < 2:
        return "one dimension (bias or norm)"
    return "not compressed"
