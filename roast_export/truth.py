"""The module against its own trace: every target is written from the trace, and the module is the truth.

Both run in torch on inputs other than the example's. They do the same arithmetic, so they agree to a few
roundings, or the trace has frozen something: a branch, a random number, a length, the state of a call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.cases import EXAMPLE, Unvaried, arithmetic, explore, own_probes
from roast_export.contexts import refuse_modes, written_inputs
from roast_export.errors import ExportError, InputError
from roast_export.module_runs import Difference, Outputs, Runs, difference_of, listed, outputs_of, seeded
from roast_export.program import (
    Inputs,
    LoadedProgram,
    Program,
    flat_inputs,
    input_names,
)
from roast_export.state import Snapshot, written_buffers
from roast_export.stateful import StatefulModel, calls_in_a_row
from roast_export.values import MAY_BE_EMPTY

USE_STATE = (
    "--state inputs (state='inputs') makes each an input and an output, which the caller hands from one call "
    "to the next"
)

UNDEFINED = (
    "The module gives NaN where a mask or a length leaves nothing of a row, and its trace gives numbers: "
    "nothing proves what an exported file gives there."
)


@dataclass
class Truth:
    """What the module makes of inputs, and what a report must say of it."""

    probes: list[tuple[str, dict[str, Tensor], list[Tensor]]] = field(default_factory=list)
    """Name, inputs and outputs of each probe on which the module ran, the example first."""
    unvaried: Unvaried = field(default_factory=dict)
    """Dynamic dimensions of the trace that no probe varied."""
    warnings: list[str] = field(default_factory=list)


def hold_to_module(model: nn.Module, program: Program, inputs: Inputs) -> Truth:
    """Compare a live module with its trace on other inputs; what the module gave is in the answer.

    Raises:
        ExportError: they differ; the message names the output, by how much, the cause and the next step.
    """
    truth = Truth()
    if isinstance(model, LoadedProgram):
        _refuse_stored_state(model, program, inputs)
        return truth
    if not isinstance(program, ExportedProgram):
        return truth
    run = Runs(model, program)
    example = flat_inputs(program, inputs)
    expected = run.module(example)
    _refuse_state(run, example)
    _refuse_changes(run, example, expected)
    _hold_row(run, example)

    undefined: dict[str, None] = {}

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
        if difference is not None and name in MAY_BE_EMPTY:
            # A row without anything to attend to: some kernels give NaN and others 0.
            difference = run.difference(name, found, values, but_nan=True)
            if difference is None:
                undefined[UNDEFINED] = None
                return False
        if difference is not None:
            raise ExportError(_message(run, difference, values))
        truth.probes.append((name, values, found))
        return True

    truth.unvaried, truth.warnings = explore(
        program, inputs, None, attempt, own_probes(model, program, inputs)
    )
    _refuse_written(run, list(run.written))
    refuse_modes(run, example, expected)
    truth.warnings += written_inputs(run, example) + list(undefined)
    return truth


def _hold_row(run: Runs, example: dict[str, Tensor]) -> None:
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
                    f"the module's {name} differs from its trace, which gets {listed('state', run.state)} "
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


def _refuse_state(run: Runs, example: dict[str, Tensor]) -> None:
    run.module(example, restore=False)
    written = written_buffers(run.model, run.changed(), run.program)
    run.restore()
    _refuse_written(run, written)


def _refuse_stored_state(model: LoadedProgram, program: Program, inputs: Inputs) -> None:
    """Refuse the trace of an archive that somebody else has written if it keeps state between calls.

    inputs: what the caller gave; without them the archive has its own.
    """
    own = pytree.tree_leaves(model.program.example_inputs)
    example = (
        flat_inputs(program, inputs) if inputs else dict(zip(input_names(model.program), own, strict=True))
    )
    snapshot = Snapshot(model.graph)
    outputs_of(model, model.program, example)
    written = written_buffers(model.graph, snapshot.written(), model.program)
    snapshot.restore()
    if written:
        raise ExportError(
            f"the archive's trace writes into {listed('buffer', written)}, and an output depends on it; an "
            "exported file keeps nothing between calls: save the module anew with save(..., state='inputs')"
        )


def _refuse_written(run: Runs, changed: list[str]) -> None:
    """Refuse by name the buffers that are written in forward and read by a later call."""
    written = written_buffers(run.model, changed, run.program)
    if written:
        raise ExportError(
            f"the model writes into {listed('buffer', written)} in forward, and an output depends on it; "
            f"an exported file keeps nothing between calls: {USE_STATE}"
        )


def _refuse_changes(run: Runs, example: dict[str, Tensor], expected: Outputs) -> None:
    """Refuse a model whose outputs change while its inputs do not, with the reason."""
    again = run.module(example, restore=False)
    with _later():
        third = run.module(example, restore=False)
    changed = run.changed()
    run.restore()
    difference = _same_inputs(run, expected, again) or _same_inputs(run, again, third)
    if difference is None:
        return
    first, second = (seeded(lambda: run.module(example)) for _ in range(2))
    if _same_inputs(run, first, second) is None and _same_inputs(run, first, run.module(example)) is not None:
        cause = (
            "forward draws random numbers (dropout that is left on, torch.rand), and a file can only hold "
            "one draw; call model.eval(), pass training=self.training to functional dropout, or make the "
            "random tensor an input"
        )
    elif changed:
        unfit = run.model.unfit if isinstance(run.model, StatefulModel) else {}
        reasons = [unfit[name] for name in changed if name in unfit]
        cause = f"forward keeps {listed('attribute', changed)} from one call for the next; " + (
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


def _same_inputs(run: Runs, a: Outputs, b: Outputs) -> Difference | None:
    return difference_of(run.names, "example", a, b)


def _message(run: Runs, difference: Difference, values: dict[str, Tensor]) -> str:
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
    """torch.compiler answers as it does during an export, under whatever name forward knows its functions."""
    flags = ("_is_exporting_flag", "_is_compiling_flag")
    before = {flag: getattr(torch.compiler, flag) for flag in flags}
    for flag in flags:
        setattr(torch.compiler, flag, True)
    try:
        yield
    finally:
        for flag, value in before.items():
            setattr(torch.compiler, flag, value)


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


def _cause(run: Runs, difference: Difference, values: dict[str, Tensor]) -> str:
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
