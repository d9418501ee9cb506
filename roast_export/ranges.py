"""Least and most lengths of dynamic dimensions: of a program by symbol, in a file by name.

A trace may have used a bound: what it left out holds within it alone. So a file says its bounds, and a proof
stays inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram

from roast_export.program import DimNames, Program, input_names, lengths_of, signature

RANGES = "roast.ranges"
"""Key of the metadata of an ONNX file that holds them, as JSON."""

Range = tuple[int | None, int | None]
"""Least and most length; None where there is no bound."""


def ranges_of(program: ExportedProgram) -> dict[Any, Range]:
    """Bounds of each symbol. torch.export starts at 2 where it means any length: 1 might broadcast."""
    found: dict[Any, Range] = {}
    for symbol, bounds in program.range_constraints.items():
        least = int(bounds.lower) if bounds.lower.is_Integer and bounds.lower > 2 else None
        most = int(bounds.upper) if bounds.upper.is_Integer and bounds.upper < 1 << 31 else None
        found[symbol] = (least, most)
    return found


def named_ranges(program: Program, dim_names: DimNames | None = None) -> dict[str, Range]:
    """Bounds of the dynamic dimensions of inputs, by the names of `signature`, where there are any."""
    if not isinstance(program, ExportedProgram):
        return {}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    known, labels = ranges_of(program), signature(program, dim_names)
    found: dict[str, Range] = {}
    for name in input_names(program):
        for label, expr in zip(labels[name][1], lengths_of(nodes[name].meta["val"]), strict=True):
            if isinstance(label, str) and known.get(expr, (None, None)) != (None, None):
                found[label] = known[expr]
    return found


def within(program: Program, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the lengths of these inputs lie within the bounds of the program."""
    if not isinstance(program, ExportedProgram):
        return True
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    known = ranges_of(program)
    for name, shape in shapes.items():
        for expr, length in zip(lengths_of(nodes[name].meta["val"]), shape, strict=True):
            least, most = known.get(expr, (None, None))
            if length < (least or 0) or (most is not None and length > most):
                return False
    return True


def read_ranges(content: Any) -> dict[str, Range]:
    """What a file holds of them. Raises ValueError or TypeError for anything else."""
    found = {str(label): (least, most) for label, (least, most) in dict(content).items()}
    for bounds in found.values():
        if not all(n is None or (type(n) is int and 0 < n < 1 << 31) for n in bounds):
            raise ValueError(f"a length from {bounds[0]!r} to {bounds[1]!r}")
    return found
