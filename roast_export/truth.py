"""The module against its own trace: every target is written from the trace, and the module is the truth.

Both run in torch on inputs other than the example's. They do the same arithmetic, so they agree to a few
roundings, or the trace has frozen something: a branch, a random number, a length, the state of a call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.cases import EXAMPLE, Unvaried, arithmetic, explore, own_probes
from roast_export.errors import ExportError, InputError
from roast_export.program import (
    Inputs,
    LoadedProgram,
    Program,
    call,
    flat_inputs,
    output_names,
)
from roast_export.state import Snapshot, written_buffers
from roast_export.stateful import StatefulModel, calls_in_a_row, state_of

ROUNDINGS = 64
"""Roundings of an output's largest value by which module and trace may differ: fused operators add in
other orders. Measured: at most 9, over nn.TransformerEncoder's fused path."""

Outputs = list[Any]

USE_STATE = (
    "--state inputs (state='inputs') makes each an input and an output, which the caller hands from one call "
    "to the next"
)


@dataclass
class Truth:
    """What the module makes of inputs, and what a report must say of it."""

    probes: list[tuple[str, dict[str, Tensor], list[Tensor]]] = field(default_factory=list)
    """Name, inputs and outputs of each probe on which the module ran, the example first."""
    unvaried: Unvaried = field(default_factory=dict)
    """Dynamic dimensions of the trace that no probe varied."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """Where an output of the module and of its trace differ most."""

    output: str
    probe: str
    amount: float
    scale: float
    ran: bool = True
    """Whether the trace ran at all."""

    def __str__(self) -> str:
        return f"output {self.output!r} differs by {self.amount:.3g} (largest value {self.scale:.3g})"


def hold_to_module(model: nn.Module, program: Program, inputs: Inputs) -> Truth:
    """Compare a live module with its trace on other inputs; what the module gave is in the answer.

    Raises:
        ExportError: they differ; the message names the output, by how much, the cause and the next step.
    """
    truth = Truth()
    if isinstance(model, LoadedProgram) or not isinstance(program, ExportedProgram):
        return truth
    run = _Runs(model, program)
    example = flat_inputs(program, inputs)
    expected = run.module(example)
    _refuse_state(run, example)
    _refuse_changes(run, example, expected)
    _hold_row(run, example)

    def attempt(name: str, values: dict[str, Tensor]) -> bool:
        try:
            found = run.module(values)
        except InputError:
            if name == EXAMPLE:
                raise
            return False
        difference = run.difference(name, found, values)
        if difference is not None and not difference.ran and _other_lengths(values, example):
            # A file that refuses a length is no wrong file: which lengths it takes is what is tried here.
            return False
        if difference is not None:
            raise ExportError(_message(run, difference, values))
        truth.probes.append((name, values, found))
        return True

    truth.unvaried, truth.warnings = explore(
        program, inputs, None, attempt, own_probes(model, program, inputs)
    )
    return truth


def _hold_row(run: _Runs, example: dict[str, Tensor]) -> None:
    """Compare calls of the module in a row, which keeps its state itself, with the trace's.

    Raises:
        ExportError: they differ, so that what the module keeps is not all among the inputs.
    """
    if not isinstance(run.model, StatefulModel):
        return
    try:
        for name, values in calls_in_a_row(run.graph, run.program, example):
            with arithmetic(run.program), torch.no_grad():
                own = list(run.model.step([values[n] for n in run.model.names]).values())
            difference = run.difference(name, own, values)
            if difference is not None:
                raise ExportError(
                    f"the module's {name} differs from its trace, which gets {_listed('state', run.state)} "
                    f"as input: {difference}; forward keeps something else between calls, or writes into one "
                    "tensor through another: make it a buffer with memory of its own"
                )
    finally:
        run.restore()


def _other_lengths(values: dict[str, Tensor], example: dict[str, Tensor]) -> bool:
    """Whether a probe has other lengths than the example."""
    return any(
        getattr(values[name], "shape", None) != getattr(v, "shape", None) for name, v in example.items()
    )


class _Runs:
    """A module and its trace, both run from the same state and left in it."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.model, self.program = model, program
        self.graph = program.module(check_guards=False)
        self._model_state, self._graph_state = Snapshot(model), Snapshot(self.graph)
        self.names = output_names(program)
        self.state = list(state_of(program))

    def module(self, values: dict[str, Tensor], *, restore: bool = True) -> Outputs:
        """The module's outputs. Raises InputError if it does not run on the values."""
        try:
            return _outputs(self.model, self.program, values)
        finally:
            if restore:
                self.restore()

    def restore(self) -> None:
        self._model_state.restore()

    def changed(self) -> list[str]:
        return self._model_state.changed()

    def difference(self, probe: str, found: Outputs, values: dict[str, Tensor]) -> Difference | None:
        """Where the trace differs from what the module gave, or None."""
        try:
            traced = _outputs(self.graph, self.program, values)
        except InputError:
            return Difference("all", probe, float("inf"), 0.0, ran=False)
        finally:
            self._graph_state.restore()
        return _difference(self.names, probe, found, traced)


def _outputs(model: nn.Module, program: Program, values: dict[str, Tensor]) -> Outputs:
    copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
    with arithmetic(program):
        leaves = pytree.tree_leaves(call(model, program, copies))
    return [
        leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves if leaf is not None
    ]


def _difference(names: list[str], probe: str, expected: Outputs, found: Outputs) -> Difference | None:
    if len(expected) != len(found):
        return Difference("all", probe, float("inf"), 0.0)
    worst: Difference | None = None
    for place, (a, b) in enumerate(zip(expected, found, strict=True)):
        name = names[place] if place < len(names) else f"output_{place}"
        amount, scale = _amount(a, b)
        if amount > 0 and (worst is None or amount > worst.amount):
            worst = Difference(name, probe, amount, scale)
    return worst


def _amount(a: Any, b: Any) -> tuple[float, float]:
    """By how much two values differ beyond rounding, 0 if not, and the largest value."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        same = a == b if not (isinstance(a, Tensor) or isinstance(b, Tensor)) else float(a) == float(b)
        return (0.0 if same else float("inf")), 0.0
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf"), 0.0
    if a.numel() == 0:
        return 0.0, 0.0
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.to(wide), b.to(wide)
    same = (x == y) | (torch.isnan(x) & torch.isnan(y))
    gap = torch.where(same, torch.zeros_like(x), x - y).abs().nan_to_num(nan=float("inf"))
    finite = x[torch.isfinite(x)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    floats = a.is_floating_point() or a.is_complex()
    bound = ROUNDINGS * torch.finfo(a.dtype).eps * scale if floats else 0.0
    amount = float(gap.max())
    return (amount if amount > bound else 0.0), scale


def _refuse_state(run: _Runs, example: dict[str, Tensor]) -> None:
    """Refuse by name the buffers that are written in forward and read by a later call."""
    run.module(example, restore=False)
    written = written_buffers(run.model, run.changed(), run.program)
    run.restore()
    if written:
        raise ExportError(
            f"the model writes into {_listed('buffer', written)} in forward, and an output depends on it; "
            f"an exported file keeps nothing between calls: {USE_STATE}"
        )


def _refuse_changes(run: _Runs, example: dict[str, Tensor], expected: Outputs) -> None:
    """Refuse a model whose outputs change while its inputs do not, with the reason."""
    again = run.module(example, restore=False)
    with _later():
        third = run.module(example, restore=False)
    changed = run.changed()
    run.restore()
    difference = _same_inputs(run, expected, again) or _same_inputs(run, again, third)
    if difference is None:
        return
    first, second = (_seeded(lambda: run.module(example)) for _ in range(2))
    if _same_inputs(run, first, second) is None and _same_inputs(run, first, run.module(example)) is not None:
        cause = (
            "forward draws random numbers (dropout that is left on, torch.rand), and a file can only hold "
            "one draw; call model.eval(), pass training=self.training to functional dropout, or make the "
            "random tensor an input"
        )
    elif changed:
        unfit = run.model.unfit if isinstance(run.model, StatefulModel) else {}
        reasons = [unfit[name] for name in changed if name in unfit]
        cause = f"forward keeps {_listed('attribute', changed)} from one call for the next; " + (
            reasons[0]
            if reasons
            else "make it an argument and an output of forward, or a buffer (register_buffer), which "
            "--state inputs (state='inputs') makes an input and an output of the file"
        )
    else:
        cause = "forward reads a clock or another source outside; pass what it reads as an input"
    raise ExportError(f"two calls of the model on the same inputs differ: {difference}; {cause}")


@contextmanager
def _later() -> Iterator[None]:
    """All clocks of the module `time` are eleven days further."""
    names = ("time", "monotonic", "perf_counter", "process_time")
    clocks = {name + unit: getattr(time, name + unit) for name in names for unit in ("", "_ns")}
    for name, clock in clocks.items():
        ahead = 10**15 if name.endswith("_ns") else 1e6
        setattr(time, name, lambda clock=clock, ahead=ahead: clock() + ahead)
    try:
        yield
    finally:
        for name, clock in clocks.items():
            setattr(time, name, clock)


def _same_inputs(run: _Runs, a: Outputs, b: Outputs) -> Difference | None:
    return _difference(run.names, "example", a, b)


def _seeded(run: Callable[[], Outputs]) -> Outputs:
    """Run with fixed seeds of every generator of the process, and leave those as they were."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            return run()
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def _message(run: _Runs, difference: Difference, values: dict[str, Tensor]) -> str:
    return (
        f"the module and its trace differ on the inputs {difference.probe!r}: {difference}; "
        f"{_cause(run, difference, values)}"
    )


@contextmanager
def _slow_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _exporting() -> Iterator[None]:
    """torch.compiler answers as it does during an export."""
    questions = ("is_exporting", "is_compiling", "is_dynamo_compiling")
    answers = {name: getattr(torch.compiler, name) for name in questions}
    for name in questions:
        setattr(torch.compiler, name, lambda: True)
    try:
        yield
    finally:
        for name, answer in answers.items():
            setattr(torch.compiler, name, answer)


_CAUSES = (
    (
        _slow_attention,
        "the fused path of nn.TransformerEncoder and nn.MultiheadAttention treats padded rows in another way "
        "than the operators that can be exported; build the encoder with enable_nested_tensor=False, or call "
        "torch.backends.mha.set_fastpath_enabled(False) so that PyTorch too computes what the file will",
    ),
    (
        _exporting,
        "forward asks whether it is being exported or compiled (torch.compiler.is_exporting, is_compiling) "
        "and computes something else then; remove that branch",
    ),
)
"""Conditions under which the module agrees with its trace, and what that says."""


def _cause(run: _Runs, difference: Difference, values: dict[str, Tensor]) -> str:
    """The likely cause, found by running the module under other conditions."""
    for condition, cause in _CAUSES:
        try:
            with condition():
                again = run.module(values)
        except InputError:
            continue
        if run.difference(difference.probe, again, values) is None:
            return cause
    return (
        "forward branches on values or lengths, or reads what the trace has frozen; make the branch "
        "a tensor operation (torch.where, torch.cond), or give an example that takes the branch you need"
    )


def _listed(kind: str, names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"the {kind}{'s' if len(names) > 1 else ''} {shown}"
