"""How far outputs may be from PyTorch's in another runtime: as far as rounding takes them, measured.

A model runs a few times more under Rounding. The bound of an element is what these runs differ by, there or
in its neighbourhood, and a few units in the last place of the output's own type; one of those where no
element of an output differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.arrays import array_of, tensor_of
from roast_export.cases import has_control_flow
from roast_export.compare import Array, Bound
from roast_export.program import Program, call
from roast_export.rounding import ROUNDINGS, Rounding

SEEDS = (1, 2)
"""Each gives two runs, in opposite directions."""

FACTOR = 4.0
"""Bound over measured difference."""

DEGENERATE = 0.1
"""A bound above this share of an output's RMS proves nothing about the element."""


FEWEST = 8
"""Elements of a row or a channel below which they say too little about it."""


def output_bounds(model: nn.Module, program: Program, feeds: dict[str, Array]) -> list[Bound]:
    """The bound of each output of the model on these inputs, by name.

    Raises:
        InputError: the model does not run on them.
    """

    if isinstance(program, ExportedProgram) and has_control_flow(program):
        # A live module compiles its branches, which a dispatch mode does not let it.
        model = program.module(check_guards=False)

    def run(values: dict[str, Tensor]) -> list[Tensor | Array]:
        return [leaf for leaf in pytree.tree_leaves(call(model, program, values)) if leaf is not None]

    return measured_bounds(model, feeds, run)


def measured_bounds(
    model: nn.Module,
    feeds: dict[str, Array],
    run: Callable[[dict[str, Tensor]], Sequence[Tensor | Array]],
) -> list[Bound]:
    """The bound of each value that `run` gives for these inputs. Buffers of `model` are left as they are."""

    def moved(mode: Rounding) -> list[Array]:
        values = {name: mode.moved(tensor_of(value)) for name, value in feeds.items()}
        with mode:
            found = run(values)
        return [array_of(mode.as_output(value)) if isinstance(value, Tensor) else value for value in found]

    def moved_within(seed: int, sign: int) -> list[Array]:
        mode = Rounding(seed, sign)
        found = moved(mode)
        if not mode.opaque:
            return found
        with warnings.catch_warnings():
            # flags sets all settings of oneDNN, also those that this machine does not have.
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False):
                return moved(Rounding(seed, sign))

    with _kept_state(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        # Rounding may only add to a value, say to the size of one that is 0: the run without it is one, too.
        still = run({name: tensor_of(value).clone() for name, value in feeds.items()})
        runs = [[array_of(value) if isinstance(value, Tensor) else value for value in still]]
        runs += [moved_within(seed, sign) for seed in SEEDS for sign in (1, -1)]
    return [bound_of(list(found)) for found in zip(*runs, strict=True)]


def bound_of(runs: list[Array]) -> Bound:
    """The bound of one output from what several runs gave for it; all of one shape and type."""
    if any(run.shape != runs[0].shape for run in runs):
        # The shape follows from values that rounding decides.
        return np.full(runs[0].shape, np.inf)
    if runs[0].dtype.kind in "biu":
        return np.where(np.any([run != runs[0] for run in runs], axis=0), np.inf, 0.0)
    wide = np.stack([run.astype(np.complex128 if run.dtype.kind == "c" else np.float64) for run in runs])
    with np.errstate(all="ignore"):
        spread = np.max([np.abs(one - other) for one in wide for other in wide], axis=0)
    spread = np.where(np.any(wide != wide[0], axis=0), spread, 0.0)
    alike = np.all(np.isnan(wide), axis=0)
    spread = np.where(alike, 0.0, np.where(np.isnan(spread), np.inf, spread))
    size = np.max(np.abs(np.where(np.isfinite(wide), wide, 0.0)), axis=0)
    eps, least = _places(runs[0])
    # Four runs may agree on an element, and its row and channel be of other scales.
    rounded = (spread > 0) | (spread.any() & (size != np.round(size)))
    last_places = np.where(rounded & (runs[0].dtype.itemsize > 2), ROUNDINGS / 2, 1.0)
    last_place = last_places * eps * size + least
    # What crosses a threshold says nothing of its neighbours.
    usual = np.where(spread <= DEGENERATE * size_of(runs[0]), spread, 0.0)
    return np.asarray(FACTOR * np.maximum(spread, neighbourhood(usual)) + last_place, np.float64)


def neighbourhood(spread: Bound) -> Bound:
    """What is usual at each element's place along every axis: the product of the axes' profiles.

    A few runs may agree at an element by chance. Its row, its channel and its position tell how much they
    differ around it, and unlike the mean of everything they keep apart what is of different scales.
    Elements that are exact, as behind a ReLU, tell nothing of the others.
    """
    squares = np.where(np.isfinite(spread), spread, 0.0) ** 2
    differs = squares > 0
    return np.where(differs, _profiles(squares, differs), _profiles(squares, np.ones_like(differs)))


def _profiles(squares: Bound, counted: NDArray[np.bool_]) -> Bound:
    """The root of the product of means of `squares` along each axis, over the elements that are counted."""
    total = squares.sum() / max(1, counted.sum())
    found = np.full(squares.shape, total)
    if total == 0.0:
        return found
    for axis in range(squares.ndim):
        others = tuple(k for k in range(squares.ndim) if k != axis)
        n = counted.sum(axis=others, keepdims=True)
        here = squares.sum(axis=others, keepdims=True) / np.maximum(n, 1)
        found = found * np.where(n >= FEWEST, here / total, 1.0)
    return np.asarray(np.sqrt(found), np.float64)


def usual_share(bound: Bound, values: Array) -> float | None:
    """The median of the bound over what is usual at each element's place; None if no element tells."""
    if values.dtype.kind in "biu" or bound.shape != values.shape:
        return None
    size = neighbourhood(np.abs(values).astype(np.float64))
    tells = np.isfinite(bound) & (size > 0)
    return float(np.median(bound[tells] / size[tells])) if tells.any() else None


def at_least(bound: Bound, values: Array, share: float) -> Bound:
    """The bound, and nowhere less than a share of what is usual at each element's place.

    A few runs may agree by chance in all elements around one, say where all rows of an input are the same.
    """
    return np.asarray(np.maximum(bound, share * neighbourhood(np.abs(values).astype(np.float64))), np.float64)


def proves(bound: Bound, expected: Array) -> bool:
    """Whether a comparison within the bound tells right from wrong for at least half of the elements.

    It does not where the model amplifies rounding without limit, say by the normalisation of a constant.
    """
    if expected.dtype.kind in "biu":
        return float(np.mean(np.isinf(bound))) < 0.5
    least = 2 * _places(expected)[1]
    return float(np.mean(bound > max(DEGENERATE * size_of(expected), least))) < 0.5


def largest(bound: Bound) -> float:
    """The largest finite bound of any element."""
    return float(np.max(bound, where=np.isfinite(bound), initial=0.0))


def size_of(values: Array) -> float:
    """The root mean square of what is finite."""
    size = np.abs(values.astype(np.complex128 if values.dtype.kind == "c" else np.float64))
    return float(np.sqrt(np.mean(np.where(np.isfinite(size), size, 0.0) ** 2))) if size.size else 0.0


def _places(values: Array) -> tuple[float, float]:
    """Of an array's type: the distance from 1 to the next number, and the smallest of full precision."""
    if values.dtype.kind == "c":
        values = values.real
    kind = ml_dtypes.finfo(values.dtype)  # type: ignore[no-untyped-call]
    return float(kind.eps), float(kind.smallest_normal)


@contextmanager
def _kept_state(model: nn.Module) -> Iterator[None]:
    """Buffers that forward writes to are as before afterwards."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
