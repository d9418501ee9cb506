"""A live model in, one exported program out: torch.export under the plain signature of calls.py."""

from __future__ import annotations

import io
import re
from collections.abc import Collection
from contextlib import redirect_stderr, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.calls import Axis, Hole, Inputs, PlainModel, by_name, plain, run, split
from roast_export.dimensions import Axes, flat_shapes, named_axes
from roast_export.errors import ExportError, InputError
from roast_export.length_lines import length_lines
from roast_export.modes import checked_lengths, quiet, traceable_experts
from roast_export.modules import virtual_weights
from roast_export.plain_program import legal_names, name_inputs
from roast_export.prepare_program import canonical, forget_replaced, layer_name, set_name, weight_of
from roast_export.program import ROAST_TARGETS, LoadedProgram, call, input_names, lengths_of
from roast_export.recurrent_shapes import any_length
from roast_export.state import unchanged
from roast_export.stateful import StatefulModel, keep_state
from roast_export.storage import own_program
from roast_export.subgraphs import parts_of
from roast_export.untraceable import explain
from roast_export.whole_pooling import WholePooling


def prepared(model: nn.Module, inputs: Inputs | None) -> tuple[nn.Module, dict[str, Tensor] | None]:
    """The model and its example as everything below the border takes them. None: an archive's own example.

    Raises:
        InputError: as calls.plain; or there is no example.
    """
    if not isinstance(model, LoadedProgram):
        if inputs is None:
            raise InputError(
                "a live module needs example_inputs (--input NAME:DTYPE[DIMS] or --inputs FILE.npz)"
            )
        with unchanged(model):
            return plain(model, inputs)
    if inputs is None:
        return model, None
    args, kwargs = split(inputs)
    return model, by_name(input_names(model.program), kwargs, args)


def trace(
    model: nn.Module,
    inputs: Inputs,
    dynamic_shapes: Any = None,
    *,
    every_dimension: bool = False,
    fixed: Collection[tuple[str, int]] = (),
) -> ExportedProgram:
    """torch.export with `every_dimension` as dynamic as it can be, or as `dynamic_shapes` says.

    dynamic_shapes: as torch.export takes it, or {"input": {axis: "name"}}, or "name[min..max]" with bounds.
    fixed: with every_dimension, (input, axis) of the dimensions that stay at the example's lengths.

    Raises:
        InputError: the example inputs do not run, or a dimension asked for cannot be dynamic.
        ExportError: torch.export cannot trace the model.
    """
    if isinstance(model, LoadedProgram):
        return model.program
    made, example = plain(model, inputs)
    _check_names(model)
    if every_dimension:
        state = made.state if isinstance(made, StatefulModel) else {}
        axes = {
            n: [axis for axis in range(v.dim()) if (n, axis) not in fixed and n not in state]
            for n, v in example.items()
        }
        example = _without_ones(made, example, {name: {0} & set(free) for name, free in axes.items()})
        hints = {name: dict.fromkeys(free, Dim.AUTO) or None for name, free in axes.items()}
        return _held_together(made, example, hints)
    shapes = flat_shapes(made, dynamic_shapes)
    asked = named_axes(example, shapes)
    if not asked:
        return _traced(made, example, {name: shapes.get(name) for name in example})
    return _with_tied(made, example, asked)


def _check_names(model: nn.Module) -> None:
    """torch.export writes names of modules into Python source, and does not escape them."""
    names = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
    for name, _ in names:
        if re.search(r"[\"\\\x00-\x1f]", name):
            raise ExportError(
                f"torch.export cannot trace a model with a part called {name!r}, because of the quotation "
                "mark, backslash or control character; rename the part"
            )


def _with_tied(model: PlainModel, example: dict[str, Tensor], asked: Axes) -> ExportedProgram:
    """The program whose dynamic dimensions are those asked for, and those that the model ties to them.

    A dimension of another input that has the length of one that was asked for is left to torch.export: where
    the model needs the two to be equal, they get one symbol. One that only the example has equal stays fixed.
    """
    twins = {
        name: {axis for axis in range(value.dim()) if axis not in asked.get(name, ())}
        for name, value in example.items()
    }
    wide = _without_ones(model, example, {n: {*asked.get(n, ()), *({0} & twins[n])} for n in example})
    if wide is example:
        wide = _without_ones(model, example, {name: set(axes) for name, axes in asked.items()})
    lengths = {wide[name].shape[axis] for name, axes in asked.items() for axis in axes}
    twins = {n: {axis for axis in axes if wide[n].shape[axis] in lengths} for n, axes in twins.items()}
    wide = _fixed_as_given(model, example, wide, asked, twins)
    if any(twins.values()):
        try:
            program = _held_together(model, wide, _hints(wide, asked, twins))
        except (InputError, ExportError):
            twins = {}
        else:
            tied = _tied(program, asked, twins)
            if tied == twins:
                return program
            twins = tied
            wide = _fixed_as_given(model, example, wide, asked, twins)
    return _traced(model, wide, _hints(wide, asked, twins))


def _fixed_as_given(
    model: PlainModel,
    example: dict[str, Tensor],
    wide: dict[str, Tensor],
    asked: Axes,
    twins: dict[str, set[int]],
) -> dict[str, Tensor]:
    """Examples whose dynamic dimensions alone are longer, if the model runs on them, else `wide`.

    A dimension that stays fixed stays at the example's length: a batch of one must not become one of two.
    """
    again = _without_ones(model, example, {n: {*asked.get(n, ()), *twins.get(n, ())} for n in example})
    runs = all(again[name].shape[axis] > 1 for name, axes in asked.items() for axis in axes)
    return again if runs else wide


def _held_together(model: PlainModel, example: dict[str, Tensor], shapes: dict[str, Any]) -> ExportedProgram:
    """The program, with one symbol for dimensions that must have one length.

    A trace leaves apart what broadcasts, such as the batch of a mask and of the ids that it masks. So the
    traced graph is asked: of two dimensions that are one length in the example, where it refuses one longer
    and runs with both longer, they are one. The module is no judge of this: it may pass over a mask that
    masks nothing, whatever its shape.
    """
    program = _traced(model, example, shapes)
    symbols: dict[str, list[Axis]] = {}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, value in example.items():
        for axis, length in enumerate(lengths_of(nodes[name].meta["val"])):
            if not isinstance(length, int) and value.shape[axis] > 1:
                symbols.setdefault(str(length), []).append((name, axis))
    graph = program.module(check_guards=False)
    groups = list(symbols.values())
    refused = [not runs_longer(graph, program, example, axes) for axes in groups]
    found: list[tuple[Axis, Axis]] = []
    for k, second in enumerate(groups):
        for place, first in enumerate(groups[:k]):
            (a, i), (b, j) = first[0], second[0]
            one = example[a].shape[i] == example[b].shape[j] and (refused[k] or refused[place])
            if one and runs_longer(graph, program, example, [*first, *second]):
                found.append(((a, i), (b, j)))
                break
    if not found:
        return program
    model.ties += found
    return _traced(model, example, shapes)


def runs_longer(
    graph: nn.Module, program: ExportedProgram, example: dict[str, Tensor], longer: list[Axis]
) -> bool:
    """Whether a module or its graph runs with these dimensions longer by one."""
    grown = {name: value.clone() for name, value in example.items()}
    for name, axis in longer:
        n = grown[name].shape[axis]
        grown[name] = grown[name].index_select(axis, torch.arange(n + 1) % n)
    try:
        with quiet(), checked_lengths(program):
            call(graph, program, grown)
    except InputError:
        return False
    return True


def _hints(example: dict[str, Tensor], asked: Axes, twins: dict[str, set[int]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in example:
        hints: dict[int, Any] = dict.fromkeys(sorted(twins.get(name, ())), Dim.AUTO)
        for axis, wanted in asked.get(name, {}).items():
            hints[axis] = Dim.DYNAMIC(min=wanted.least, max=wanted.most)
        found[name] = hints or None
    return found


def _tied(program: ExportedProgram, asked: Axes, twins: dict[str, set[int]]) -> dict[str, set[int]]:
    """The dimensions that turned out fixed, or to have the symbol of one that was asked for."""
    shapes = {
        node.name: lengths_of(node.meta["val"]) for node in program.graph.nodes if node.op == "placeholder"
    }
    symbols = {str(shapes[name][axis]) for name, axes in asked.items() for axis in axes}
    return {
        name: {
            axis for axis in axes if isinstance(shapes[name][axis], int) or str(shapes[name][axis]) in symbols
        }
        for name, axes in twins.items()
    }


def _traced(model: PlainModel, example: dict[str, Tensor], shapes: dict[str, Any]) -> ExportedProgram:
    program = _exported(model, example, shapes)
    names = {(tuple(w.fields), w.scale): name for name, w in virtual_weights(model).items()}
    with any_length():
        program = own_program(canonical(program, names))
    if isinstance(model, StatefulModel):
        keep_state(program, model.state)
        forget_replaced(program, {name for slot in model.slots for name, _, _ in slot.places})
    return program


def _exported(model: PlainModel, example: dict[str, Tensor], shapes: dict[str, Any]) -> ExportedProgram:
    lines: dict[Axis, str] = {}
    try:
        # torch.export prints the graph that it could not finish to stderr.
        with (
            unchanged(model),
            quiet(),
            any_length(),
            traceable_experts(model.__dict__["original"]),
            WholePooling(),
            length_lines(lines),
            redirect_stderr(io.StringIO()),
            torch.no_grad(),
        ):
            values = list(example.items())
            args = tuple(value for _, value in values[: model.positional])
            kwargs = dict(values[model.positional :])
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except (
        torch._dynamo.exc.UserError,
        torch.fx.experimental.symbolic_shapes.ConstraintViolationError,
    ) as error:
        raise InputError(_fixed(error, lines or _lines(model, example, shapes))) from error
    except Exception as error:
        raise ExportError(explain(error)) from error
    model.fixed_at |= lines
    legal_names(program)
    name_inputs(program, model.names)
    return program


def _lines(model: PlainModel, example: dict[str, Tensor], shapes: dict[str, Any]) -> dict[Axis, str]:
    """The lines that fix lengths. Only a trace that is free to fix them finds those."""
    free = {name: dict.fromkeys(range(v.dim()), Dim.AUTO) or None for name, v in example.items()}
    if shapes != free:
        with suppress(InputError, ExportError):
            _exported(model, example, free)
    return model.fixed_at


def retrace(
    loaded: LoadedProgram, example: dict[str, Tensor], hints: dict[str, Any], ties: list[tuple[Axis, Axis]]
) -> ExportedProgram:
    """A program traced anew from its own graph, with other lengths dynamic or fixed.

    hints: torch.export's own, for each input. ties: dimensions that have one symbol in the archive.
    """
    program = loaded.program
    names = input_names(program)
    args, kwargs = pytree.tree_unflatten([Hole(k) for k in range(len(names))], program.call_spec.in_spec)
    model = PlainModel(loaded.graph, (list(args), kwargs), names, loaded.facts, len(args))
    model.ties += ties
    found = _exported(model, example, hints)
    before, after = _uses(program), _uses(found)
    weights = {weight_of(node): layer_name(node) for node in before}
    if [weight_of(node) for node in before] == [weight_of(node) for node in after]:
        # A retraced node no longer says which module it came from.
        for old, new in zip(before, after, strict=True):
            set_name(new, layer_name(old))
    else:
        for new in after:
            set_name(new, weights[weight_of(new)])
    custom = program.graph_module.meta.get("custom")
    if custom:
        found.graph_module.meta["custom"] = dict(custom)
    with any_length():
        return own_program(canonical(found, weights))


def _uses(program: ExportedProgram) -> list[torch.fx.Node]:
    nodes = [node for part in parts_of(program) for node in part.module.graph.nodes]
    return [node for node in nodes if node.target in ROAST_TARGETS]


def _without_ones(
    model: nn.Module, example: dict[str, Tensor], wanted: dict[str, set[int]]
) -> dict[str, Tensor]:
    """Examples with no length 1 on the wanted axes, if the model runs on them.

    torch.export takes a length of 1 for a constant (it may broadcast), so a batch of one would
    stay a batch of one.
    """
    wide = dict(example)
    for name, axes in wanted.items():
        for axis in axes:
            if axis < wide[name].dim() and wide[name].shape[axis] == 1:
                wide[name] = torch.cat((wide[name], wide[name]), axis)
    if all(wide[name] is value for name, value in example.items()):
        return example
    try:
        run(model, tuple(wide.values()), {})
    except InputError:
        return example
    return wide


def _fixed(error: BaseException, lines: dict[Axis, str]) -> str:
    """Which dimension torch.export found to be fixed, in one sentence."""
    found = re.search(r"\['(\w+)'\](?:\[\d+\])?\.(?:shape|size\(\))\[(\d+)\]", str(error))
    which = f"input {found[1]!r}, axis {found[2]}" if found else "a dimension asked to be dynamic"
    length = re.search(r"hint of (\d+)", str(error))
    at = f" at {length[1]}" if length else ""
    line = lines.get((found[1], int(found[2]))) if found else None
    by = f", which makes a number of it at {line}" if line else ""
    return f"{which} is fixed by the model{at}{by}; leave it out of dynamic_shapes (--dynamic)"
