"""Values to try for the inputs of a model: random ones, the edges of their ranges, and masks with padding.

Floats are made up, and ids are drawn from the rows of the tables that they look up. Other integers and
booleans have meanings that a trace shows in part only:

| in the example | tried |
|---|---|
| nothing but 0 and 1 (a mask) | rows with padding at the end, at the start, and all through |
| other integers (offsets, lengths, positions) | values up to the example's largest, in another order |

At other lengths they keep the example's values, repeated or cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from roast_export.program import ROAST_TARGETS, Program

SEED = 20260

LARGE = 8.0
"""Deviation of large values, over the example's size or 1: what saturates or is cut off shows only there."""

EMPTY_ROW = "masks with an empty row"
"""The probe in which a mask leaves nothing of one row."""

OTHER_INTEGERS = "other integers"

MAY_BE_EMPTY = (EMPTY_ROW, OTHER_INTEGERS)
"""Probes in which a mask, or a length of 0, may leave nothing of a row."""

Tensors = dict[str, Tensor]


class Values:
    """The values of one example, and others of the same kinds."""

    def __init__(self, program: Program, example: Tensors, seed: int = SEED) -> None:
        self.example = {name: value for name, value in example.items() if isinstance(value, Tensor)}
        self._others = {name: value for name, value in example.items() if name not in self.example}
        tables = {name: _rows_indexed(program, name) for name in self.example}
        self._rows = {name: min(found) if found else None for name, found in tables.items()}
        self._masks = {name for name, value in self.example.items() if self._is_mask(name, value)}
        self._numbers = {
            name
            for name, value in self.example.items()
            if not _is_float(value) and name not in self._masks and self._rows[name] is None and value.numel()
        }
        self._generator = torch.Generator().manual_seed(seed)

    def random(self, shapes: dict[str, list[int]] | None = None) -> Tensors:
        """Random floats and ids in these shapes; by default in the example's."""
        shapes = shapes or {name: list(value.shape) for name, value in self.example.items()}
        found = {name: self._random(name, value, shapes[name]) for name, value in self.example.items()}
        return {**self._others, **found}

    def others(self) -> Iterator[tuple[str, Tensors]]:
        """Names and values of everything else to try at the example's lengths."""
        yield "edge: zeros, first ids", self._edge(False)
        yield "edge: ones, last ids", self._edge(True)
        if any(_is_float(value) and name not in self._masks for name, value in self.example.items()):
            yield "large values", self._large()
        if self._masks:
            yield "masks with padding at the end", self._padded("end")
            yield "masks with padding at the start", self._padded("start")
            yield EMPTY_ROW, self._padded("all")
        if self._numbers:
            yield OTHER_INTEGERS, self._renumbered()

    def _is_mask(self, name: str, value: Tensor) -> bool:
        if not value.numel() or self._rows[name] is not None or not value.dim():
            return False
        if _is_float(value) and not value.any():
            return False
        return value.dtype is torch.bool or bool(((value == 0) | (value == 1)).all())

    def _random(self, name: str, value: Tensor, shape: list[int]) -> Tensor:
        rows = self._rows[name]
        if _is_float(value):
            return torch.randn(shape, generator=self._generator).to(value.dtype)
        if rows is not None:
            return torch.randint(0, rows, shape, generator=self._generator).to(value.dtype)
        for axis, length in enumerate(shape):
            value = value.index_select(axis, torch.arange(length) % max(1, value.shape[axis]))
        return value

    def _edge(self, last: bool) -> Tensors:
        found = {}
        for name, value in self.example.items():
            rows = self._rows[name]
            if _is_float(value):
                found[name] = torch.full_like(value, 1.0 if last else 0.0)
            else:
                found[name] = value if rows is None else torch.full_like(value, rows - 1 if last else 0)
        return {**self._others, **found}

    def _large(self) -> Tensors:
        found = self.random()
        for name, value in self.example.items():
            if _is_float(value) and name not in self._masks and value.numel():
                size = value.abs().double().square().mean().sqrt().nan_to_num(1.0, 1.0, 1.0)
                found[name] = (found[name] * LARGE * max(1.0, float(size))).to(value.dtype)
        return found

    def _padded(self, side: str) -> Tensors:
        """Random values under masks that leave a part of each row, and ids 0 where the masks have padding."""
        found = self.random()
        for name, value in self.example.items():
            if name in self._masks:
                kept = _kept(value, side)
                # What most of the example is, is what counts: True in one convention, False in another.
                counts = bool(value.to(torch.float64).mean() >= 0.5)
                found[name] = torch.where(kept, counts, not counts).to(value.dtype)
            elif self._rows[name] is not None and value.dim() >= 2:
                found[name] = torch.where(_kept(value, side), found[name], torch.zeros_like(value))
        return found

    def _renumbered(self) -> Tensors:
        found = self.random()
        for name in self._numbers:
            value = self.example[name]
            least, most = int(value.min()), int(value.max())
            found[name] = torch.randint(
                min(least, 0), most + 1, list(value.shape), generator=self._generator
            ).to(value.dtype)
        return found


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _kept(value: Tensor, side: str) -> Tensor:
    """Where the last axis is not padding: a part that is another one in each row."""
    length = value.shape[-1]
    rows = torch.arange(max(1, value.numel() // max(1, length))).reshape([*value.shape[:-1], 1])
    if side == "all":
        return (rows != rows.max()).expand(value.shape)
    taken = 1 + (rows + length // 2) % max(1, length)
    places = torch.arange(length)
    return (places < taken if side == "end" else places >= length - taken).expand(value.shape)


_PASSES_ON = {
    "view", "reshape", "_to_copy", "to", "slice", "select", "unsqueeze", "squeeze", "expand", "contiguous",
    "clone", "transpose", "permute", "flatten", "split", "chunk", "unbind", "getitem", "alias",
}  # fmt: skip
"""Operators whose output holds the same ids as their input."""


def _rows_indexed(program: Program, name: str) -> list[int]:
    """Numbers of rows of the embedding tables that look up an input's values, where a graph shows it."""
    if not isinstance(program, ExportedProgram):
        return []
    start = next(node for node in program.graph.nodes if node.name == name)
    rows: list[int] = []
    pending, seen = [start], {start}
    while pending:
        node = pending.pop()
        for user in node.users:
            short = str(getattr(user.target, "__name__", user.target)).partition(".")[0]
            args: Any = user.args
            if ROAST_TARGETS.get(user.target) == "embedding" and args[1] is node:
                rows.append(int(args[2][-2]))
            elif short == "embedding" and len(args) > 1 and args[1] is node:
                rows.append(int(args[0].meta["val"].shape[0]))
            elif short in _PASSES_ON and user not in seen:
                seen.add(user)
                pending.append(user)
    return rows
