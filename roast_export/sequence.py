"""Calls of a file in a row, each with the state that the file itself gave before, against the module's own.

Each call alone is compared with the state that the module had (cases.py). Here what is off in one call goes
into the next, so the bound is measured over all calls together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from roast_export.bounds import measured_bounds, proves
from roast_export.cases import Case
from roast_export.compare import Array, compare_within, failed
from roast_export.program import call, output_names
from roast_export.report import Check
from roast_export.runtimes import Run
from roast_export.stateful import CALLS, ROW, state_of
from roast_export.subject import Subject


def row_of(subject: Subject, cases: list[Case]) -> list[Case]:
    """The calls in a row among the cases, with bounds for a row; empty where the model has no state.

    Calls that the module itself made when it was saved go before those of its trace.
    """
    state = state_of(subject.program)
    named = {case.name: case for case in cases}
    for prefix in ("golden ", ""):
        names = [f"{prefix}{ROW.format(k)}" for k in range(1, CALLS + 1)]
        row = [named[name] for name in names if name in named]
        if state and len(row) > 1:
            return _bounded(subject, row, state)
    return []


def row_checks(subject: Subject, runtime: str, run: Run, row: list[Case]) -> Iterator[Check]:
    """Every output of every call."""
    state, names = state_of(subject.program), output_names(subject.program)
    held: dict[str, Array] = {}
    for case in row:
        where = f"{case.name}, with the file's own state"
        try:
            outputs = run(subject.file.feeds({**case.feeds, **held}))
        except Exception as error:
            yield failed(runtime, "output", "all outputs", where, error)
            return
        for name, expected, actual, bound in zip(names, case.expected, outputs, case.bounds, strict=True):
            if bound is not None:
                yield compare_within(runtime, name, where, expected, actual, bound)
        held = {name: outputs[names.index(output)] for name, output in state.items()}


def _bounded(subject: Subject, row: list[Case], state: dict[str, str]) -> list[Case]:
    if subject.limits is not None:
        return row
    names = output_names(subject.program)

    def in_a_row(values: dict[str, Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        held: dict[str, Tensor] = {}
        for k, case in enumerate(row):
            feeds = {name: values[f"{k} {name}"] for name in case.feeds} | held
            outputs = [
                x for x in pytree.tree_leaves(call(subject.model, subject.program, feeds)) if x is not None
            ]
            found += outputs
            held = {name: outputs[names.index(output)] for name, output in state.items()}
        return found

    feeds = {f"{k} {name}": value for k, case in enumerate(row) for name, value in case.feeds.items()}
    measured = measured_bounds(subject.model, feeds, in_a_row)
    found = []
    for k, case in enumerate(row):
        bounds = measured[k * len(names) : (k + 1) * len(names)]
        useful = [
            np.maximum(alone, bound)
            if alone is not None and y.size and bound.shape == y.shape and proves(bound, y)
            else None
            for alone, bound, y in zip(case.bounds, bounds, case.expected, strict=True)
        ]
        found.append(replace(case, bounds=useful))
    return found
