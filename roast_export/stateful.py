"""State as inputs and outputs: what forward writes into is given to each call, and each call returns it.

A file keeps nothing between calls. Whoever runs it gives the state of the call before, as with the caches
of a decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.calls import PlainModel, free_name, run
from roast_export.errors import ExportError, InputError
from roast_export.program import LoadedProgram, Program, call, leaf_names, output_names
from roast_export.state import Snapshot, same, unchanged

CALLS = 3
"""Calls in a row that a proof runs."""

STATE = "roast.state"
"""Key under which a program keeps the names of its state. torch.export keeps "custom" in an archive."""

ROW = "call {} in a row"
"""What the probe of each of these calls is named."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Slot:
    """A tensor that forward writes into: a buffer, or an attribute that holds a tensor."""

    path: str
    """Dotted name in the model."""
    input: str
    output: str
    places: tuple[tuple[str, nn.Module, str], ...]
    """Every dotted name of it, the module that holds it there, and its name in that module."""

    @property
    def value(self) -> Tensor:
        _, module, name = self.places[0]
        found = getattr(module, name)
        if not isinstance(found, Tensor):
            raise ExportError(f"forward puts {type(found).__name__} in the place of the tensor {self.path}")
        return found

    def put(self, value: Tensor) -> None:
        for _, module, name in self.places:
            held = module._buffers if name in module._buffers else module.__dict__
            held[name] = value


class StatefulModel(PlainModel):
    """A model whose state is among its inputs and outputs. Its outputs are one dict, by name."""

    def __init__(
        self,
        model: PlainModel,
        slots: Sequence[Slot],
        passed: dict[str, str],
        outputs: Sequence[str],
        unfit: dict[str, str],
    ) -> None:
        """passed: inputs that forward writes into, with the output of each that holds what it wrote.

        outputs: names of all outputs: the model's own, those of `passed`, those of `slots`.
        unfit: what else forward writes into, with the reason why it is no input.
        """
        names = [*model.names, *(slot.input for slot in slots)]
        super().__init__(
            model.__dict__["original"],
            model.template,
            names,
            [*model.facts, *map(_told, slots), *(_told_of_input(*pair) for pair in passed.items())],
            model.positional,
        )
        self.slots, self.passed, self.outputs, self.unfit = list(slots), passed, list(outputs), unfit

    @property
    def state(self) -> dict[str, str]:
        """The output that holds the new value of each input."""
        return {**self.passed, **{slot.input: slot.output for slot in self.slots}}

    def call(self, tensors: Sequence[Tensor]) -> Any:
        self.check_ties(tensors)
        n = len(tensors) - len(self.slots)
        with self._holding([tensor.clone() for tensor in tensors[n:]]):
            return self.step(tensors)

    def step(self, tensors: Sequence[Tensor]) -> Tensors:
        """One call of the model as it is, which keeps its state: outputs and the new state by name."""
        n = len(tensors) - len(self.slots)
        given = {
            name: tensor.clone() if name in self.passed else tensor
            for name, tensor in zip(self.names[:n], tensors[:n], strict=True)
        }
        own = pytree.tree_leaves(self.own_outputs(list(given.values())))
        after = [*(given[name] for name in self.passed), *(slot.value for slot in self.slots)]
        return dict(zip(self.outputs, [*own, *(value.clone() for value in after)], strict=True))

    @contextmanager
    def _holding(self, values: Sequence[Tensor]) -> Iterator[None]:
        before = [slot.value for slot in self.slots]
        try:
            for slot, value in zip(self.slots, values, strict=True):
                slot.put(value)
            yield
        finally:
            for slot, value in zip(self.slots, before, strict=True):
                slot.put(value)


def with_state(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """The model whose state is an input and an output, and an example with the state that the model holds.

    A model of an archive that has its state so comes back as it is.

    Raises:
        InputError: forward writes into nothing, or the model does not run twice in a row.
        ExportError: what it writes into cannot be an input and an output.
    """
    if isinstance(model, LoadedProgram) and state_of(model.program):
        return model, inputs
    if not isinstance(model, PlainModel):
        raise InputError(
            "an archive holds a trace, whose state cannot become an input any more; save the module anew "
            "with save(..., state='inputs')"
        )
    with unchanged(model):
        snapshot = Snapshot(model)
        given = {name: value.clone() for name, value in inputs.items()}
        found = run(model, (), given)
        try:
            run(model, (), {name: value.clone() for name, value in inputs.items()})
        except InputError as error:
            raise InputError(
                f"a second call in a row with the same inputs fails ({error}), so that nothing of the state "
                "could be proved; give an example with which the model can be called twice"
            ) from error
        after = {path: _at(model, path) for path in snapshot.written()}
    taken = [*model.names, *leaf_names(found, model.names)]
    slots, unfit = _slots(model, after, taken)
    taken += [name for slot in slots for name in (slot.input, slot.output)]
    passed = {name: free_name(f"{name}_out", taken) for name, v in inputs.items() if not same(v, given[name])}
    if unfit and not slots and not passed:
        raise ExportError(f"the state of the model cannot become an input: {next(iter(unfit.values()))}")
    if not slots and not passed:
        raise InputError(
            "forward writes into no buffer in evaluation mode (eval()), which is what a file computes; leave "
            "--state (state=) out"
        )
    outputs = [*leaf_names(found, model.names), *passed.values(), *(slot.output for slot in slots)]
    made = StatefulModel(model, slots, passed, outputs, unfit)
    return made, {**inputs, **{slot.input: slot.value.detach().clone() for slot in slots}}


def state_of(program: Program) -> dict[str, str]:
    """The output that holds the new value of each input that is state."""
    if not isinstance(program, ExportedProgram):
        return {}
    found = (program.graph_module.meta.get("custom") or {}).get(STATE, {})
    return {str(name): str(output) for name, output in found.items()}


def keep_state(program: ExportedProgram, state: dict[str, str]) -> None:
    """Note in a program which of its inputs and outputs are state."""
    program.graph_module.meta.setdefault("custom", {})[STATE] = state


def calls_in_a_row(model: nn.Module, program: Program, example: Tensors) -> list[tuple[str, Tensors]]:
    """Name and inputs of calls one after the other, each with the state of the one before.

    Raises:
        InputError: the model does not run twice in a row.
    """
    state, found, values = state_of(program), [], dict(example)
    for k in range(1, CALLS + 1):
        try:
            leaves = pytree.tree_leaves(call(model, program, {n: v.clone() for n, v in values.items()}))
        except InputError:
            if k <= 2:
                raise
            break
        found.append((ROW.format(k), values))
        outputs = dict(zip(output_names(program), leaves, strict=True))
        fresh = {name: _other(value, k) for name, value in example.items() if name not in state}
        values = {name: outputs[state[name]] if name in state else fresh[name] for name in example}
    return found


def _other(value: Tensor, k: int) -> Tensor:
    """A float input of a later call. Ids and positions stay, for other values may not be allowed."""
    if not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(k)).to(value.dtype)


def _slots(
    model: PlainModel, after: dict[str, Any], taken: Sequence[str]
) -> tuple[list[Slot], dict[str, str]]:
    """What can be an input and an output, and why the rest cannot, by path. after: values after a call."""
    found: list[Slot] = []
    unfit: dict[str, str] = {}
    names = set(taken)
    for path, now in after.items():
        before = _at(model, path)
        places = tuple(
            (f"{prefix}.{name}".lstrip("."), module, name)
            for prefix, module in model.__dict__["original"].named_modules()
            for name, value in [*module._buffers.items(), *vars(module).items()]
            if value is before and isinstance(value, Tensor)
        )
        reason = _unfit(path, before, now, bool(places))
        if reason is not None:
            unfit[path] = f"{reason}: {_REGISTER}"
            continue
        entry = free_name(path, names)
        out = free_name(f"{entry}_out", names | {entry})
        names |= {entry, out}
        found.append(Slot(path, entry, out, places))
    _check_memory(found)
    return found, unfit


_REGISTER = "register a tensor of its final shape as a buffer, and write into that"


def _unfit(path: str, before: Any, now: Any, placed: bool) -> str | None:
    """Why what forward writes cannot be an input and an output of one kind, or None."""
    if before is None:
        return f"{path} is None before the first call and a {type(now).__name__} after it"
    for value in (before, now):
        if not isinstance(value, Tensor):
            return f"{path} is a {type(value).__name__}, and only tensors can be inputs and outputs"
    if isinstance(before, nn.Parameter):
        return f"{path} is a parameter, and only buffers can be inputs and outputs"
    if not placed:
        return f"{path} lies in a dict, a list or an object that is no module, where nothing can replace it"
    if before.shape != now.shape or before.dtype != now.dtype:
        return f"a call makes {path} {_kind(now)} where it was {_kind(before)}, and an input has one shape"
    return None


def _check_memory(slots: list[Slot]) -> None:
    """Raises ExportError where two tensors lie in one memory: as inputs they would come apart."""
    seen: dict[int, Slot] = {}
    for slot in slots:
        other = seen.setdefault(slot.value.untyped_storage().data_ptr(), slot)
        if other is not slot and slot.value.numel():
            raise ExportError(
                f"{other.path} and {slot.path} share memory, so that forward writes into both at once; give "
                "each a tensor of its own (clone())"
            )


def _at(model: PlainModel, path: str) -> Any:
    """What the model holds under a dotted name: an attribute, or an item of a dict or list."""
    found: Any = model.__dict__["original"]
    for part in path.split("."):
        if isinstance(found, dict):
            found = found.get(part)
        elif hasattr(found, "__dict__"):
            found = getattr(found, part, None)
        else:
            return found
    return found


def _told(slot: Slot) -> str:
    """What a user does with the state, in one sentence."""
    value = slot.value.detach()
    same = value.numel() > 0 and bool((value == value.reshape(-1)[0]).all())
    if same and value.dtype is not torch.bool:
        first = f"a tensor of {value.reshape(-1)[0].item():g}"
    else:
        first = f"what the module holds in {slot.path}"
    return (
        f"The state {slot.path} is the input {slot.input} and the output {slot.output}: give the first call "
        f"{first}, and each later call the output of the one before."
    )


def _told_of_input(name: str, output: str) -> str:
    return f"Forward writes into the input {name}; the output {output} is what it holds after the call."


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
