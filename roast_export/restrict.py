"""Lengths that an export fixes or bounds: in the example of a live model, and in the program of an archive.

dimensions.py says how a user writes them. A dimension that an input shares with others goes with them.
"""

from __future__ import annotations

from collections.abc import Mapping as Lookup
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.calls import Axis, PlainModel, run
from roast_export.dimensions import EVERY_OTHER, Dynamic, wishes
from roast_export.errors import InputError
from roast_export.program import (
    DimNames,
    Inputs,
    LoadedProgram,
    Program,
    flat_inputs,
    input_names,
    lengths_of,
    signature,
)
from roast_export.ranges import Range, named_ranges, ranges_of
from roast_export.state import unchanged
from roast_export.trace import retrace

Ranges = dict[Any, Range]
"""Least and most length of each symbol."""

Exprs = dict[str, list[Any]]
"""Lengths of each input: numbers, symbols, and expressions of symbols."""


def fitted(model: PlainModel, example: dict[str, Tensor], shapes: Lookup[str, Any]) -> dict[str, Tensor]:
    """The example with the lengths that `shapes` asks for: rows are repeated, or cut.

    Raises:
        InputError: the model does not run at these lengths.
    """
    wanted: dict[Axis, int] = {}
    for (name, axis), wish in wishes({name: v.dim() for name, v in example.items()}, shapes).items():
        length = example[name].shape[axis]
        bounded = isinstance(wish, Dynamic) and _within(length, wish.least, wish.most)
        wanted[name, axis] = wish if isinstance(wish, int) else bounded or length
    wanted = {(name, axis): n for (name, axis), n in wanted.items() if n != example[name].shape[axis]}
    if not wanted:
        return example
    made = resized(example, wanted)
    reason = _refusal(model, made)
    if reason is None:
        return made
    # Inputs that share a dimension have one length in the example.
    former = {example[name].shape[axis]: length for (name, axis), length in wanted.items()}
    rest = {
        (name, axis): former[length]
        for name, value in example.items()
        for axis, length in enumerate(value.shape)
        if length in former and (name, axis) not in wanted
    }
    made = resized(example, {**wanted, **rest})
    if _refusal(model, made) is None:
        return made
    said = ", ".join(f"axis {axis} of {name!r} at {length}" for (name, axis), length in wanted.items())
    raise InputError(f"the model does not run with {said}: {reason}")


def restricted(
    loaded: LoadedProgram, inputs: Inputs | None, shapes: Any
) -> tuple[ExportedProgram, Inputs | None]:
    """An archive's program with some dimensions fixed or bounded, and the example at its lengths.

    Where one is named dynamic, those that nobody names are fixed at the example's lengths.

    inputs: None for the archive's own example.

    Raises:
        InputError: a dimension asked for is not there or fixed in the archive at another length, or two
            wishes meet in one dimension.
    """
    program = loaded.program
    if not shapes:
        return program, inputs
    if not isinstance(shapes, Lookup):
        raise InputError('of an archive, dynamic_shapes is {"input": {axis: "name", axis: length}}')
    example = flat_inputs(program, _own_example(program) if inputs is None else inputs)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    exprs = {name: lengths_of(nodes[name].meta["val"]) for name in example}
    for name, value in example.items():
        if value.dim() != len(exprs[name]):
            taken = len(exprs[name])
            raise InputError(
                f"input {name!r} has {value.dim()} dimensions, and the archive takes {taken}; give one "
                "of that shape"
            )
    asked = _by_symbol(exprs, example, shapes)
    before = ranges_of(program)
    now = _lengths_now(exprs, example)
    fixed = {symbol: wish for symbol, wish in asked.items() if isinstance(wish, int)}
    if EVERY_OTHER in shapes or any(isinstance(wish, Dynamic) for wish in asked.values()):
        fixed |= {symbol: length for symbol, length in now.items() if symbol not in asked}
    ranges: Ranges = {}
    for symbol in now:
        wish, known = asked.get(symbol), Dynamic("", *before.get(symbol, (None, None)))
        if symbol in fixed:
            _check_range(symbol, exprs, fixed[symbol], known)
        else:
            met = wish.met(known) if isinstance(wish, Dynamic) else known
            ranges[symbol] = (met.least, met.most)
    lengths = {symbol: _within(now[symbol], *bounds) for symbol, bounds in ranges.items()} | fixed
    example = resized(
        example,
        {
            (name, axis): _evaluated(expr, lengths)
            for name, axes in exprs.items()
            for axis, expr in enumerate(axes)
            if isinstance(expr, sympy.Expr)
        },
    )
    if not fixed and all(ranges[symbol] == before.get(symbol, (None, None)) for symbol in ranges):
        return program, (None if inputs is None else example)
    return _retraced(loaded, example, exprs, fixed, ranges), example


def resized(example: dict[str, Tensor], lengths: Lookup[Axis, int]) -> dict[str, Tensor]:
    """The tensors with other lengths: what is there, repeated or cut."""
    made = dict(example)
    for (name, axis), length in lengths.items():
        n = made[name].shape[axis]
        if n == 0 and length > 0:
            raise InputError(
                f"input {name!r} has no element along axis {axis}; give an example that has some"
            )
        if n != length:
            made[name] = made[name].index_select(axis, torch.arange(length) % max(1, n))
    return made


def check_bounded(program: ExportedProgram, dim_names: DimNames | None) -> None:
    """Raises InputError where a dimension has no upper bound: ExecuTorch plans memory for the longest."""
    bounds = named_ranges(program, dim_names)
    for name, (_, lengths) in signature(program, dim_names).items():
        for axis, label in enumerate(lengths):
            if isinstance(label, str) and bounds.get(label, (None, None))[1] is None:
                raise InputError(
                    f"ExecuTorch plans memory for the longest input, and axis {axis} of {name!r} has no "
                    f"upper bound; give one, such as --dynamic {name}:{axis}={label}[1..8]"
                )


def fixed_of(model: nn.Module, program: Program) -> list[str]:
    """What a report tells of dimensions that an archive has dynamic, and a file of it fixed."""
    if not isinstance(model, LoadedProgram) or not isinstance(program, ExportedProgram):
        return []
    before, after = (signature(each) for each in (model.program, program))
    return [
        f"Axis {axis} of {name} is fixed at {length}: ExecuTorch plans memory for the longest input. "
        f"--dynamic {name}:{axis}=NAME[1..MOST] keeps it dynamic."
        for name, (_, lengths) in after.items()
        for axis, length in enumerate(lengths)
        if isinstance(length, int) and isinstance(before[name][1][axis], str)
    ]


def _own_example(program: ExportedProgram) -> Inputs:
    leaves = pytree.tree_leaves(program.example_inputs)
    return dict(zip(input_names(program), leaves, strict=True))


def _retraced(
    loaded: LoadedProgram,
    example: dict[str, Tensor],
    exprs: Exprs,
    fixed: Lookup[Any, int],
    ranges: Ranges,
) -> ExportedProgram:
    names = input_names(loaded.program)
    hints: dict[str, Any] = {}
    for name in names:
        found: dict[int, Any] = {}
        for axis, expr in enumerate(exprs[name]):
            if expr in ranges:
                least, most = ranges[expr]
                found[axis] = Dim.DYNAMIC(min=least, max=most)
            elif isinstance(expr, sympy.Expr) and not expr.free_symbols <= set(fixed):
                found[axis] = Dim.AUTO
        hints[name] = found or None
    ties: list[tuple[Axis, Axis]] = []
    for symbol in ranges:
        same = [(name, axis) for name in names for axis, expr in enumerate(exprs[name]) if expr == symbol]
        ties += [(same[0], other) for other in same[1:]]
    return retrace(loaded, example, hints, ties)


def _by_symbol(
    exprs: Exprs, example: dict[str, Tensor], shapes: Lookup[str, Any]
) -> dict[Any, Dynamic | int]:
    """What is asked of each symbol: a length, or a name with bounds."""
    found: dict[Any, Dynamic | int] = {}
    behind: dict[Any, Dynamic] = {}
    for (name, axis), asked in wishes({n: len(axes) for n, axes in exprs.items()}, shapes).items():
        expr, place = exprs[name][axis], f"input {name!r}, axis {axis}"
        wish = example[name].shape[axis] if asked is None else asked
        if isinstance(expr, int):
            if wish != expr:
                at = f" at {expr}" if isinstance(wish, int) else ""
                raise InputError(f"{place} is fixed by the model{at}; dynamic are: {_dynamic(exprs)}")
            continue
        if not expr.is_Symbol and isinstance(wish, Dynamic):
            if (wish.least, wish.most) != (None, None):
                raise InputError(f"{place} follows from other lengths; bound those: {_dynamic(exprs)}")
            behind |= dict.fromkeys(expr.free_symbols, wish)
            continue
        if not expr.is_Symbol and isinstance(wish, int):
            expr, wish = _solved(place, expr, wish)
        other = found.setdefault(expr, wish)
        if isinstance(wish, Dynamic) and isinstance(other, Dynamic):
            found[expr] = other.met(wish)
        elif other != wish:
            raise InputError(
                f"{place}: the model has one dimension for {_places(exprs, expr)}, and it cannot be both "
                f"{_said(other)} and {_said(wish)}; leave one out"
            )
    return behind | found


def _lengths_now(exprs: Exprs, example: dict[str, Tensor]) -> dict[Any, int]:
    """The length of each symbol in the example."""
    found: dict[Any, int] = {}
    pairs = [(e, example[n].shape[k]) for n, axes in exprs.items() for k, e in enumerate(axes)]
    for expr, length in sorted(
        ((e, length) for e, length in pairs if isinstance(e, sympy.Expr)),
        key=lambda p: len(p[0].free_symbols),
    ):
        free = [symbol for symbol in expr.free_symbols if symbol not in found]
        if len(free) == 1:
            solved = sympy.solve(expr.subs(found) - length, free[0])
            if len(solved) == 1 and solved[0].is_Integer:
                found[free[0]] = int(solved[0])
    return found


def _solved(place: str, expr: Any, length: int) -> tuple[Any, int]:
    """The symbol behind an expression, and its length where the expression has this one."""
    symbols = list(expr.free_symbols)
    solved = sympy.solve(expr - length, symbols[0]) if len(symbols) == 1 else []
    if len(solved) != 1 or not solved[0].is_Integer or solved[0] < 1:
        raise InputError(
            f"{place} is {expr} in the model, and cannot be fixed at {length}; fix what it is made of"
        )
    return symbols[0], int(solved[0])


def _check_range(symbol: Any, exprs: Exprs, length: int, known: Dynamic) -> None:
    if _within(length, known.least, known.most) != length:
        raise InputError(
            f"{_places(exprs, symbol)} cannot be {length}: the model takes lengths from {known.least or 1} "
            f"to {known.most or 'any'}"
        )


def _within(length: int, least: int | None, most: int | None) -> int:
    return max(least or 1, length if most is None else min(length, most))


def _evaluated(expr: Any, lengths: Lookup[Any, int]) -> int:
    return int(expr.subs(dict(lengths)))


def _places(exprs: Exprs, symbol: Any) -> str:
    return ", ".join(f"{n}:{k}" for n, axes in exprs.items() for k, e in enumerate(axes) if e == symbol)


def _dynamic(exprs: Exprs) -> str:
    free = [
        f"{n}:{k}" for n, axes in exprs.items() for k, e in enumerate(axes) if getattr(e, "is_Symbol", False)
    ]
    return ", ".join(free) or "none"


def _said(wish: Dynamic | int) -> str:
    return str(wish) if isinstance(wish, int) else repr(wish.label)


def _refusal(model: PlainModel, example: dict[str, Tensor]) -> str | None:
    """Why the model does not run on an example, or None."""
    try:
        with unchanged(model):
            run(model, tuple(example.values()), {})
    except InputError as error:
        return str(error).partition(": ")[2]
    return None
