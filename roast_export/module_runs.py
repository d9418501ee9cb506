"""A module and its trace run side by side, and where their outputs differ beyond rounding."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.cases import arithmetic
from roast_export.errors import InputError
from roast_export.program import Program, call, output_names
from roast_export.state import Snapshot
from roast_export.stateful import state_of

ROUNDINGS = 64
"""Roundings of an output's largest value by which module and trace may differ: fused operators add in
other orders. Measured: at most 9, over nn.TransformerEncoder's fused path."""

Outputs = list[Any]


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


class Runs:
    """A module and its trace, both run from the same state and left in it."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.model, self.program = model, program
        self.graph = program.module(check_guards=False)
        self._model_state, self._graph_state = Snapshot(model), Snapshot(self.graph)
        self.names = output_names(program)
        self.state = list(state_of(program))
        self.written: dict[str, None] = {}
        """Dotted names of what forward has written into in any call."""

    def module(self, values: dict[str, Tensor], *, restore: bool = True) -> Outputs:
        """The module's outputs. Raises InputError if it does not run on the values."""
        try:
            return outputs_of(self.model, self.program, values)
        finally:
            self.written.update(dict.fromkeys(self.changed()))
            if restore:
                self.restore()

    def restore(self) -> None:
        self._model_state.restore()

    def changed(self) -> list[str]:
        return self._model_state.changed()

    def difference(
        self, probe: str, found: Outputs, values: dict[str, Tensor], *, but_nan: bool = False
    ) -> Difference | None:
        """Where the trace differs from what the module gave, or None.

        but_nan: elements of which the module made NaN are left out.
        """
        try:
            traced = outputs_of(self.graph, self.program, values)
        except InputError:
            return Difference("all", probe, float("inf"), 0.0, ran=False)
        finally:
            self._graph_state.restore()
        if but_nan and len(found) == len(traced):
            found = [_numbers_alone(a, b) for a, b in zip(found, traced, strict=True)]
        return difference_of(self.names, probe, found, traced)


def _numbers_alone(a: Any, b: Any) -> Any:
    """The value, with b's elements where it is NaN."""
    alike = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
    return torch.where(a.isnan(), b, a) if alike else a


def outputs_of(model: nn.Module, program: Program, values: dict[str, Tensor]) -> Outputs:
    copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
    with arithmetic(program):
        leaves = pytree.tree_leaves(call(model, program, copies))
    return [
        leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves if leaf is not None
    ]


def difference_of(names: list[str], probe: str, expected: Outputs, found: Outputs) -> Difference | None:
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


def listed(kind: str, names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"the {kind}{'s' if len(names) > 1 else ''} {shown}"


def seeded(run: Callable[[], Outputs]) -> Outputs:
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
