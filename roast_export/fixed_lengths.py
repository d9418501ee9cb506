"""Lengths that a trace has fixed and the model has not: what a report must tell of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.export import ExportedProgram

from roast_export.calls import Axis
from roast_export.program import LoadedProgram, Program, lengths_of
from roast_export.state import unchanged
from roast_export.trace import runs_longer


def fixed_lengths(model: nn.Module, program: Program, example: dict[str, Tensor]) -> list[str]:
    """A full sentence about the fixed dimensions at which the model runs when they are longer by one.

    Dimensions of one length are tried together first, as the two of a mask and of the ids that it masks.
    """
    if isinstance(model, LoadedProgram) or not isinstance(program, ExportedProgram):
        return []
    found = [axis for axes in _groups(program, example) for axis in _free(model, program, example, axes)]
    if not found:
        return []
    places = ", ".join(f"{name}:{axis} is fixed at {example[name].shape[axis]}" for name, axis in found)
    seen = getattr(model, "fixed_at", {})
    lines = ", ".join(dict.fromkeys(seen[axis] for axis in found if axis in seen))
    at = f" at {lines}" if lines else ""
    return [
        f"{places}: the model takes other lengths, but its code makes a plain number of this one (a loop "
        f"in Python, a window, a branch){at}, and so every file has it. Write that part as a tensor "
        "operation, or save one archive for each length and pad the inputs to it."
    ]


def _groups(program: ExportedProgram, example: dict[str, Tensor]) -> Iterator[list[Axis]]:
    """Fixed dimensions by their length."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    groups: dict[int, list[Axis]] = {}
    for name in example:
        for axis, length in enumerate(lengths_of(nodes[name].meta["val"])):
            if isinstance(length, int) and length > 1:
                groups.setdefault(length, []).append((name, axis))
    yield from groups.values()


def _free(
    model: nn.Module, program: ExportedProgram, example: dict[str, Tensor], axes: list[Axis]
) -> list[Axis]:
    """Those of the dimensions that the model takes longer by one."""
    with unchanged(model):
        if runs_longer(model, program, example, axes):
            return axes
        return [axis for axis in axes if len(axes) > 1 and runs_longer(model, program, example, [axis])]
