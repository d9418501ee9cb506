"""Inputs for a proof: the example, other lengths of every dynamic dimension, and edge values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.arrays import array_of
from roast_export.compare import Bound
from roast_export.errors import InputError
from roast_export.program import ROAST_TARGETS, Dims, Inputs, Program, call, flat_inputs
from roast_export.torch_ops import without_library

LENGTHS = (1, 2, 3, 5)
"""Lengths of the dynamic dimensions; those that the model refuses are passed over."""

SEED = 20260

SPARE = 4
"""Cases at most that take the place of others."""


@dataclass(frozen=True)
class Case:
    """One set of inputs and what PyTorch makes of it, by ONNX name and in output order."""

    name: str
    feeds: dict[str, NDArray[Any]]
    expected: list[NDArray[Any]]
    bounds: list[Bound | None] = field(default_factory=list)
    """How far each output may be off, element by element; None where a comparison would prove nothing."""


def cases_for(model: nn.Module, program: Program, inputs: Inputs, dims: dict[str, Dims]) -> Iterator[Case]:
    """The example; random values at other LENGTHS, as far as the model runs there; edge values.

    dims: the lengths of each input, names for dynamic ones. What is expected comes from aten operators.

    Floats and ids are made up. Other integers and booleans (masks, offsets, lengths) have meanings
    that nobody can guess: they keep the example's values, repeated or cut to the length.

    Raises:
        InputError: the model does not run on its own example.
    """
    for number, (name, values) in enumerate(probes(program, inputs, dims)):
        try:
            yield _case(model, program, name, values)
        except InputError:
            if number == 0:
                raise
    for name, own in own_probes(model):
        yield _case(model, program, name, flat_inputs(program, own))


def own_probes(model: nn.Module) -> list[tuple[str, Inputs]]:
    """Names and inputs that a model asks to be compared on, beside the example: its `roast_probes()`."""
    ask = getattr(model.__dict__.get("original", model), "roast_probes", None)
    return [] if ask is None else list(ask())


def probes(
    program: Program, inputs: Inputs, dims: dict[str, Dims]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Names and values of inputs to try; the model may not run on some. The example is the first."""
    example = flat_inputs(program, inputs)
    tables = {name: _rows_indexed(program, name) for name, _ in _tensors(example)}
    rows = {name: min(found) if found else None for name, found in tables.items()}
    generator = torch.Generator().manual_seed(SEED)
    yield "example", example
    for name, shapes in _shapes(example, dims):
        made = {key: _random(v, shapes[key], rows[key], generator) for key, v in _tensors(example)}
        yield name, {**example, **made}
    for name, last in (("edge: zeros, first ids", False), ("edge: ones, last ids", True)):
        yield name, {**example, **{key: _edge(v, rows[key], last) for key, v in _tensors(example)}}


def _tensors(values: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Without the arguments that are no tensors: those stay as in the example."""
    return [(name, value) for name, value in values.items() if isinstance(value, Tensor)]


def spare_cases(model: nn.Module, program: Program, inputs: Inputs) -> Iterator[Case]:
    """At most SPARE more cases of random values at the example's lengths."""
    example = flat_inputs(program, inputs)
    tables = {name: _rows_indexed(program, name) for name, _ in _tensors(example)}
    for number in range(1, SPARE + 1):
        generator = torch.Generator().manual_seed(SEED + number)
        values = {
            name: _random(value, list(value.shape), min(tables[name], default=None), generator)
            for name, value in _tensors(example)
        }
        try:
            yield _case(model, program, f"spare {number}", {**example, **values})
        except InputError:
            continue


def _shapes(example: dict[str, Tensor], dims: dict[str, Dims]) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Shapes of all inputs with other lengths of the dynamic dimensions; the example's if there are none."""
    symbols = {name: [d if isinstance(d, str) else "" for d in lengths] for name, lengths in dims.items()}
    dynamic = sorted({symbol for dims in symbols.values() for symbol in dims if symbol})
    if not dynamic:
        yield "random", {key: list(value.shape) for key, value in _tensors(example)}
        return
    for length in LENGTHS:
        # Different lengths for different symbols, so that a mixed-up pair shows.
        lengths = {symbol: length + k for k, symbol in enumerate(dynamic)}
        yield (
            "random " + ", ".join(f"{symbol}={n}" for symbol, n in lengths.items()),
            {
                key: [lengths.get(s, n) for s, n in zip(symbols[key], value.shape, strict=True)]
                if key in symbols
                else list(value.shape)
                for key, value in _tensors(example)
            },
        )


def arithmetic(program: Program) -> AbstractContextManager[None]:
    """The context in which a model gives what a proof compares with: aten operators alone.

    torch.cond and its like cannot run under a dispatch mode: a model that has them uses what is installed.
    """
    nodes = program.graph.nodes if isinstance(program, ExportedProgram) else ()
    return nullcontext() if any(str(node.target) in _CONTROL for node in nodes) else without_library()


_CONTROL = ("cond", "while_loop", "map_impl", "scan", "associative_scan")


def _case(model: nn.Module, program: Program, name: str, values: dict[str, Tensor]) -> Case:
    with arithmetic(program):
        outputs = [leaf for leaf in pytree.tree_leaves(call(model, program, values)) if leaf is not None]
    return Case(
        name,
        {key: array_of(value) for key, value in values.items()},
        [array_of(output) for output in outputs],
    )


def _random(value: Tensor, shape: list[int], rows: int | None, generator: torch.Generator) -> Tensor:
    if value.is_floating_point():
        return torch.randn(shape, generator=generator).to(value.dtype)
    if rows is not None:
        return torch.randint(0, rows, shape, generator=generator).to(value.dtype)
    for axis, length in enumerate(shape):
        value = value.index_select(axis, torch.arange(length) % max(1, value.shape[axis]))
    return value


def _edge(value: Tensor, rows: int | None, last: bool) -> Tensor:
    if value.is_floating_point():
        return torch.full_like(value, 1.0 if last else 0.0)
    return value if rows is None else torch.full_like(value, rows - 1 if last else 0)


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
