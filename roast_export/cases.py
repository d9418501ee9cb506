"""Inputs for a proof: the example, other lengths of every dynamic dimension, and edge values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.errors import InputError
from roast_export.program import ROAST_TARGETS, Inputs, call, flat_inputs

SHAPES = 3
"""Lengths tried for dynamic dimensions beside the example's."""

LENGTHS = (1, 3, 2, 5, 8, 16)
SEED = 20260


@dataclass(frozen=True)
class Case:
    """One set of inputs and what PyTorch makes of it, by ONNX name and in output order."""

    name: str
    feeds: dict[str, NDArray[Any]]
    expected: list[NDArray[Any]]


def cases_for(
    model: nn.Module, program: ExportedProgram, inputs: Inputs, proto: onnx.ModelProto
) -> Iterator[Case]:
    """The example; random values at SHAPES other lengths, as far as the model runs there; edge values.

    Raises:
        InputError: the model does not run on its own example.
    """
    example = flat_inputs(program, inputs)
    ranges = {name: _id_range(program, name, value) for name, value in example.items()}
    generator = torch.Generator().manual_seed(SEED)
    yield _case(model, program, "example", example)
    for name, values in _resized(example, proto, ranges, generator, model, program):
        yield _case(model, program, name, values)
    for name, fill in _EDGES.items():
        edge = {key: fill(value, *ranges[key]) for key, value in example.items()}
        try:
            yield _case(model, program, name, edge)
        except InputError:
            continue


def _resized(
    example: dict[str, Tensor],
    proto: onnx.ModelProto,
    ranges: dict[str, tuple[int, int]],
    generator: torch.Generator,
    model: nn.Module,
    program: ExportedProgram,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Random inputs at other lengths of the dynamic dimensions, past those that the model refuses."""
    symbols = {
        value.name: [d.dim_param for d in value.type.tensor_type.shape.dim] for value in proto.graph.input
    }
    dynamic = sorted({symbol for dims in symbols.values() for symbol in dims if symbol})
    if not dynamic:
        yield "random", {key: _random(v.shape, v.dtype, ranges[key], generator) for key, v in example.items()}
        return
    found = 0
    for length in LENGTHS:
        lengths = {symbol: length + k for k, symbol in enumerate(dynamic)}
        values = {}
        for key, value in example.items():
            shape = [lengths.get(s, n) for s, n in zip(symbols.get(key, []), value.shape, strict=False)]
            values[key] = _random(shape or value.shape, value.dtype, ranges[key], generator)
        try:
            call(model, program, values)
        except InputError:
            continue
        yield "random " + ", ".join(f"{s}={n}" for s, n in lengths.items()), values
        found += 1
        if found == SHAPES:
            return


def _case(model: nn.Module, program: ExportedProgram, name: str, values: dict[str, Tensor]) -> Case:
    outputs = [leaf for leaf in pytree.tree_leaves(call(model, program, values)) if leaf is not None]
    return Case(
        name,
        {key: value.detach().cpu().numpy() for key, value in values.items()},
        [torch.as_tensor(output).detach().cpu().numpy() for output in outputs],
    )


def _random(shape: Any, dtype: torch.dtype, limits: tuple[int, int], generator: torch.Generator) -> Tensor:
    if dtype == torch.bool:
        return torch.randint(0, 2, tuple(shape), generator=generator).bool()
    if not dtype.is_floating_point:
        return torch.randint(limits[0], limits[1] + 1, tuple(shape), generator=generator).to(dtype)
    return torch.randn(tuple(shape), generator=generator).to(dtype)


def _lowest(value: Tensor, low: int, high: int) -> Tensor:
    return torch.full_like(value, low if value.dtype != torch.bool and not value.is_floating_point() else 0)


def _highest(value: Tensor, low: int, high: int) -> Tensor:
    return torch.full_like(value, high if value.dtype != torch.bool and not value.is_floating_point() else 1)


_EDGES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "edge: zeros, first ids": _lowest,
    "edge: ones, last ids": _highest,
}

_PASSES_ON = {
    "view", "reshape", "_to_copy", "to", "slice", "select", "unsqueeze", "squeeze", "expand", "contiguous",
    "clone", "transpose", "permute", "flatten", "split", "chunk", "unbind", "getitem", "alias",
}  # fmt: skip
"""Operators whose output holds the same ids as their input."""


def _id_range(program: ExportedProgram, name: str, value: Tensor) -> tuple[int, int]:
    """Integers that an input may hold: rows of the tables it indexes, else what the example holds."""
    if value.dtype == torch.bool or value.is_floating_point() or value.numel() == 0:
        return 0, 1
    rows = _rows_indexed(program, name)
    return (0, min(rows) - 1) if rows else (int(value.min()), int(value.max()))


def _rows_indexed(program: ExportedProgram, name: str) -> list[int]:
    """Numbers of rows of the embedding tables that look up an input's values."""
    start = next(node for node in program.graph.nodes if node.name == name)
    rows, pending, seen = [], [start], {start}
    while pending:
        node = pending.pop()
        for user in node.users:
            short = str(getattr(user.target, "__name__", user.target)).partition(".")[0]
            if ROAST_TARGETS.get(user.target) == "embedding" and user.args[1] is node:
                rows.append(int(user.args[2][-2]))
            elif short == "embedding" and len(user.args) > 1 and user.args[1] is node:
                rows.append(int(user.args[0].meta["val"].shape[0]))
            elif short in _PASSES_ON and user not in seen:
                seen.add(user)
                pending.append(user)
    return rows
