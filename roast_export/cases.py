"""Inputs for a proof: the example, other lengths of every dynamic dimension, masks and edge values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.arrays import array_of
from roast_export.compare import Bound
from roast_export.errors import InputError
from roast_export.golden import Golden
from roast_export.lengths import WANTED, Dimensions, Shapes
from roast_export.modes import checked_lengths
from roast_export.program import Dims, Inputs, LoadedProgram, Program, call, flat_inputs, input_names
from roast_export.ranges import within
from roast_export.stateful import calls_in_a_row, state_of
from roast_export.torch_ops import without_library
from roast_export.values import SEED, Values

Unvaried = dict[str, list[tuple[str, int]]]
"""Dynamic dimensions that had one length wherever the model ran: the inputs and axes that have each."""

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


@dataclass
class Cases:
    """What a file is compared on, and which of its dynamic dimensions no case varies."""

    cases: list[Case] = field(default_factory=list)
    unvaried: Unvaried = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def cases_for(model: nn.Module, program: Program, inputs: Inputs, dims: dict[str, Dims]) -> Cases:
    """The example; random values at other lengths, as far as the model runs there; masks and edge values.

    dims: the lengths of each input, names for dynamic ones. What is expected comes from aten operators.

    Raises:
        InputError: the model does not run on its own example, or on inputs that it asks for.
    """
    found, own = Cases(), own_probes(model, program, inputs)
    must_run = {EXAMPLE, *(name for name, _ in own)}

    def attempt(name: str, values: dict[str, Tensor]) -> bool:
        try:
            found.cases.append(_case(model, program, name, values))
        except InputError:
            if name in must_run:
                raise
            return False
        return True

    found.unvaried, found.warnings = explore(program, inputs, dims, attempt, own)
    if isinstance(model, LoadedProgram):
        _add_goldens(found, model, dims, program)
    return found


def own_probes(model: nn.Module, program: Program, inputs: Inputs) -> list[tuple[str, Inputs]]:
    """Names and inputs that a model is to be compared on, beside the example.

    They are those of its `roast_probes()`, and calls in a row where its state is an input.
    """
    ask = getattr(model.__dict__.get("original", model), "roast_probes", None)
    found = [] if ask is None else list(ask())
    if state_of(program):
        found += calls_in_a_row(model, program, flat_inputs(program, inputs))
    return found


def spare_cases(model: nn.Module, program: Program, inputs: Inputs) -> Iterator[Case]:
    """At most SPARE more cases of random values at the example's lengths."""
    example = flat_inputs(program, inputs)
    for number in range(1, SPARE + 1):
        try:
            yield _case(model, program, f"spare {number}", Values(program, example, SEED + number).random())
        except InputError:
            continue


def _add_goldens(found: Cases, model: LoadedProgram, dims: dict[str, Dims], program: Program) -> None:
    """What the module itself gave when the archive was saved, at the lengths that the file takes."""
    if not model.goldens:
        found.warnings.append(
            "The archive holds no values of the module itself, so the file was compared with the module's "
            "trace alone; save the module again with roast_export.save."
        )
        return
    usable = [golden for golden in model.goldens if _fits(golden, dims, program)]
    if not usable:
        found.warnings.append("The archive holds no values of the module at the lengths of this file.")
    for golden in usable:
        name = f"golden {golden.name}"
        if set(golden.inputs) != set(input_names(model.program)):
            raise InputError(f"the archive's graph takes other inputs than its {name}; save the model again")
        traced = pytree.tree_leaves(_outputs(model, model.program, golden.inputs))
        expected = golden.over([leaf for leaf in traced if leaf is not None])
        if expected is None:
            raise InputError(f"the archive's graph and its {name} differ in form; save the model again")
        found.cases.append(_as_case(name, golden.inputs, expected))


def _fits(golden: Golden, dims: dict[str, Dims], program: Program) -> bool:
    return all(
        name in golden.inputs
        and golden.inputs[name].dim() == len(lengths)
        and all(isinstance(n, str) or n == m for n, m in zip(lengths, golden.inputs[name].shape, strict=True))
        for name, lengths in dims.items()
    ) and within(program, {name: golden.inputs[name].shape for name in dims})


EXAMPLE = "example"
Attempt = Callable[[str, dict[str, Tensor]], bool]
"""Called with the name of a probe and its values; says whether the model ran on them."""


def explore(
    program: Program,
    inputs: Inputs,
    dims: dict[str, Dims] | None,
    attempt: Attempt,
    own: Sequence[tuple[str, Inputs]] = (),
) -> tuple[Unvaried, list[str]]:
    """Try everything that a model is compared on, the example first.

    dims: the lengths that a file states; by default the program's own.
    own: names and inputs that the model asks for.

    Returns the dynamic dimensions that could not be varied, and what a report must say, in full sentences.
    """
    example = flat_inputs(program, inputs)
    values, dimensions = Values(program, example), Dimensions(program, example, dims)
    ran: list[Shapes] = []
    attempt(EXAMPLE, example)

    def at_lengths(name: str, shapes: Shapes) -> bool:
        with checked_lengths(program):
            done = attempt(name, values.random(shapes))
        if done:
            ran.append(shapes)
        return done

    if dimensions.symbols:
        dimensions.vary(at_lengths)
        dimensions.lengthen(at_lengths)
    attempt("random", values.random())
    for name, others in values.others():
        attempt(name, others)
    for name, asked in own:
        tensors = flat_inputs(program, asked)
        if attempt(name, tensors):
            ran.append({key: list(v.shape) for key, v in tensors.items() if isinstance(v, Tensor)})
    unvaried = dimensions.unvaried(ran)
    few = dimensions.few(ran)
    warnings = [f"The model ran at fewer than {WANTED} other lengths of {', '.join(few)}."] if few else []
    return unvaried, warnings


def unproved(unvaried: Unvaried) -> str:
    """What is to be said of dimensions that no case has varied."""
    one = len(unvaried) == 1
    return (
        f"the dimension{'' if one else 's'} {', '.join(unvaried)} {'is' if one else 'are'} called dynamic, "
        "and the model runs at no other length than the example's; make it fixed (leave it out of --dynamic "
        "and dynamic_shapes), give an example of another length, or accept it with --allow-unproved "
        "(allow_unproved=True)"
    )


def arithmetic(program: Program) -> AbstractContextManager[None]:
    """The context in which a model gives what a proof compares with: aten operators alone.

    torch.cond and its like cannot run under a dispatch mode: a model that has them uses what is installed.
    """
    return nullcontext() if has_control_flow(program) else without_library()


def has_control_flow(program: Program) -> bool:
    """Whether a traced graph branches or loops (torch.cond and its like)."""
    nodes = program.graph.nodes if isinstance(program, ExportedProgram) else ()
    return any(str(node.target) in _CONTROL for node in nodes)


_CONTROL = ("cond", "while_loop", "map_impl", "scan", "associative_scan")


def _case(model: nn.Module, program: Program, name: str, values: dict[str, Tensor]) -> Case:
    outputs = _outputs(model, program, values)
    return _as_case(name, values, [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None])


def _outputs(model: nn.Module, program: Program, values: dict[str, Tensor]) -> Any:
    # A forward may write into its inputs.
    copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
    with arithmetic(program):
        return call(model, program, copies)


def _as_case(name: str, values: dict[str, Tensor], outputs: list[Any]) -> Case:
    return Case(
        name,
        {key: array_of(value) for key, value in values.items()},
        [array_of(output) for output in outputs],
    )
