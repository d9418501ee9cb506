"""What every importer takes and gives: the layer's surroundings in, one replacement or refusal out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.errors import LoadError
from roast_export.facts import LayerFacts
from roast_export.import_report import ImportedLayer
from roast_export.mapping import Element, Mapping, Sign
from roast_export.report_text import bytes_text


@dataclass
class SharedArrays:
    """One Parameter for each array of the model, however many copies of it the checkpoint holds.

    Tensors over one storage are one array. Copies that are equal bit by bit become one as well, if
    their layers say (or do not deny) that the array is global.
    """

    parameters: dict[int, nn.Parameter] = field(default_factory=dict)
    mergeable: list[nn.Parameter] = field(default_factory=list)
    merged: int = 0
    unequal: int = 0

    def of(self, tensor: Tensor, *, is_global: bool = True) -> nn.Parameter:
        key = tensor.untyped_storage().data_ptr()
        if key not in self.parameters:
            other = self._copy_of(tensor, is_global)
            self.parameters[key] = _as_parameter(tensor) if other is None else other
        return self.parameters[key]

    def holds(self, tensor: Tensor) -> bool:
        """Whether this is one of the arrays, or an equal copy of one."""
        if tensor.untyped_storage().data_ptr() in self.parameters:
            return True
        return any(p.shape == tensor.shape and torch.equal(p, tensor) for p in self.parameters.values())

    def notes(self) -> list[str]:
        """What the report says of copies."""
        lines = []
        if self.merged:
            lines.append(f"{self.merged} copies of an array, equal bit by bit, became one")
        if self.unequal:
            lines.append(
                "layers that share one array in the research code hold arrays that differ: each keeps its own"
            )
        return lines

    def _copy_of(self, tensor: Tensor, is_global: bool) -> nn.Parameter | None:
        if not is_global:
            return None
        for other in self.mergeable:
            if other.shape == tensor.shape and torch.equal(other, tensor):
                self.merged += 1
                return other
            self.unequal += other.shape == tensor.shape
        self.mergeable.append(_as_parameter(tensor))
        return self.mergeable[-1]


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


@dataclass
class Surroundings:
    """What an importer may know of the model around a layer."""

    name: str
    facts: LayerFacts
    arrays: SharedArrays
    offsets: tuple[int, ...] = (0,)
    """Likely numbers of weights compressed before this one."""
    total: int = 0
    seeds: list[int] = field(default_factory=list)
    """Seeds that were found in other layers; importers add theirs."""
    keep_dense: bool = False

    def refuse(self, reason: str) -> LoadError:
        """The error of a layer that lacks something; importers.py adds the layer's name."""
        return LoadError(reason)


@dataclass(frozen=True)
class Converted:
    """A row of the report and the module that takes the layer's place; None if it was refused."""

    layer: ImportedLayer
    module: nn.Module | None


def row(
    around: Surroundings,
    source: nn.Module,
    mapping: Mapping,
    kind: str,
    how: str,
    *,
    proved: int = 0,
    table_bytes: int = 0,
) -> ImportedLayer:
    """The report's row of a layer that became virtual."""
    streamed = mapping.sign is Sign.MT19937
    return ImportedLayer(
        name=around.name,
        source=type(source).__name__,
        shape=mapping.shape,
        kind=kind,
        how=how,
        proved=proved,
        table_bytes=table_bytes,
        packed_signs=-(-mapping.numel // 8) if streamed else 0,
        drawn=mapping.element is not Element.HASH,
    )


def refusal(
    around: Surroundings, source: nn.Module, shape: tuple[int, ...], reason: str, table_bytes: int = 0
) -> Converted:
    """A layer that stays as it is, and why."""
    layer = ImportedLayer(
        around.name, type(source).__name__, shape, "", reason, table_bytes=table_bytes, refused=True
    )
    return Converted(layer, None)


def alternatives(shape: tuple[int, ...], n_memory: int, *, signs: bool) -> str:
    """What an exact weight costs without a formula, and which of it can be had."""
    n = math.prod(shape)
    bits = max(1, (n_memory - 1).bit_length()) + signs
    return (
        f"exact without a formula: dense {bytes_text(4 * n)} (accept it with --keep-dense), a packed index "
        f"table {bytes_text(-(-n * bits // 8))} (no target stores one)"
    )


def float32(around: Surroundings, tensor: Any, what: str, dims: int) -> Tensor:
    """The tensor, if it is float32 with this many dimensions."""
    if not isinstance(tensor, Tensor):
        raise around.refuse(f"{what} is missing; the checkpoint is not complete")
    if tensor.dtype != torch.float32:
        raise around.refuse(
            f"{what} is {str(tensor.dtype).removeprefix('torch.')}, research modules compute in float32; "
            "save the checkpoint after model.float()"
        )
    if tensor.dim() != dims:
        raise around.refuse(f"{what} has {tensor.dim()} dimensions, not {dims}; it is another kind of layer")
    return tensor


def bias_of(around: Surroundings, bias: Any, size: int) -> nn.Parameter | None:
    """The layer's bias as a Parameter float32[size]; None if it has none."""
    if not isinstance(bias, Tensor):
        return None
    found = float32(around, bias, "bias", 1)
    if found.numel() != size:
        raise around.refuse(f"its bias has {found.numel()} elements, not {size}; the checkpoint is damaged")
    return found if isinstance(found, nn.Parameter) else nn.Parameter(found.detach())
