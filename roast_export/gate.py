"""What must hold of the file itself, in every format: its size, and no dense weight in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roast_export import size, torch_ops
from roast_export.arrays import array_of
from roast_export.compare import compare_bits
from roast_export.fit import advice, relative_errors
from roast_export.mapping import Sign
from roast_export.prepare_program import unused_layers
from roast_export.program import VirtualLayer, kept_bytes, output_names, signature
from roast_export.report import Check, Layer, Report
from roast_export.subject import Subject
from roast_export.to_onnx import array_names

NamedTensors = Iterable[tuple[str, NDArray[Any]]]


def describe(subject: Subject) -> Report:
    """The facts of the file, before anything is compared."""
    file = subject.file
    report = Report(model=type(subject.model).__name__, path=str(file.path), target=file.target)
    report.layers = file.layers
    report.materialized = file.materialized
    report.file_bytes = file.file_bytes
    report.array_bytes = file.array_bytes
    report.kept_bytes = kept_bytes(subject.program)
    # What the file says of itself can only lower its own limit.
    arrays = {layer.array: layer.memory.nbytes for layer in subject.layers}
    array_bytes = min(report.array_bytes, sum(arrays.values()))
    n_layers = min(len(report.layers), len(subject.layers))
    signs = packed_sign_bytes(subject.layers) if file.portable else 0
    stored = array_bytes + report.kept_bytes + signs
    report.tensor_bytes = file.tensor_bytes
    nodes = 0 if report.tensor_bytes is None else size.nodes_of_program(subject.program)
    limits = size.limits(stored, n_layers, nodes, file.code_limit)
    report.tensor_limit_bytes, report.limit_bytes = limits.tensors, limits.tensors + limits.graph
    report.inputs = {
        file.spelled.get(name, name): f"{dtype}[{', '.join(map(str, dims))}]"
        for name, (dtype, dims) in file.inputs.items()
    }
    report.warnings = file.warnings + [
        f"the array {layer.array} has {int((~torch.isfinite(layer.memory)).sum())} NaN or infinite elements"
        for layer in {layer.array: layer for layer in subject.layers}.values()
        if not bool(torch.isfinite(layer.memory).all())
    ]
    distance = advice(relative_errors(subject.model))
    if distance is not None:
        report.warnings.append(distance)
    unused = unused_layers(subject.program)
    if unused:
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
        report.warnings.append(f"no output of the model depends on {shown}: the file has no such layer")
    if signs:
        report.warnings.append(f"packed signs from MT19937 take {signs:,} bytes; a native file has none")
    return report


def packed_sign_bytes(layers: list[VirtualLayer]) -> int:
    """What the signs of these layers take where they are stored: a bit for each weight, once."""
    mappings = {layer.mapping for layer in layers if layer.mapping.sign is Sign.MT19937}
    return sum(-(-mapping.numel // 8) for mapping in mappings)


def stated(layer: VirtualLayer) -> Layer:
    """A layer of the model as a file would state it."""
    m = layer.mapping
    fields = tuple(m.to_list())
    return Layer(layer.name, layer.kind, m.shape, m.n_memory, m.tile, layer.scale, layer.array, fields)


def size_check(report: Report) -> Check:
    limits = size.Limits(report.tensor_limit_bytes, report.limit_bytes - report.tensor_limit_bytes)
    complaint = limits.complaint(report.file_bytes, report.tensor_bytes)
    return Check(
        "file", "size", "size gate", size.RULE, 1, not complaint, bound=report.limit_bytes,
        expected=report.limit_bytes, actual=report.file_bytes,
        note=f"the file {complaint}" if complaint else "",
    )  # fmt: skip


def name_checks(subject: Subject) -> Iterator[Check]:
    """The file's inputs and outputs have the model's names, in the model's order; inputs, its dtypes too."""
    inputs = [f"{name} ({kind})" for name, (kind, _) in signature(subject.program).items()]
    stated = [f"{name} ({kind})" for name, (kind, _) in subject.file.inputs.items()]
    yield same_names("input names", inputs, stated)
    yield same_names("output names", output_names(subject.program), subject.file.outputs)


def same_names(rule: str, expected: Sequence[str], actual: Sequence[str]) -> Check:
    """A structure check of names in order."""
    passed = list(expected) == list(actual)
    note = "" if passed else f"the file has {', '.join(actual)}; the model has {', '.join(expected)}"
    return Check("file", "structure", rule, "names in order", len(expected), passed, note=note)


def dense_check(layers: list[VirtualLayer], tensors: NamedTensors, where: str) -> Check:
    """No tensor holds a virtual weight's values, nor one index for each of its elements."""
    by_size: dict[int, list[VirtualLayer]] = {}
    for layer in layers:
        by_size.setdefault(layer.mapping.numel, []).append(layer)
    count = 0
    for name, values in tensors:
        count += 1
        for layer in by_size.get(values.size, ()):
            large = values.size > layer.mapping.n_memory // 8 and values.size >= 64
            if large and not _is_array(values, layer) and _expands(values, layer):
                return Check(
                    where, "structure", "no dense weight", layer.name, count, False,
                    note=f"{name or 'a constant'} {list(values.shape)} holds {layer.name}, expanded",
                )  # fmt: skip
    return Check(where, "structure", "no dense weight", "all tensors", count, True)


def parameter_checks(subject: Subject) -> Iterator[Check]:
    """Arrays, kept parameters and buffers that the file stores under their own name: equal bits."""
    names = {new: old for old, new in array_names(subject.layers).items()}
    # Buffers that a state dict leaves out are among the constants of a trace.
    known = {**getattr(subject.program, "constants", {}), **subject.program.state_dict}
    for name, actual in subject.file.parameters():
        stored = known.get(names.get(name, name))
        if isinstance(stored, Tensor):
            expected = array_of(stored)
            yield compare_bits("file", name, "stored values", expected, actual)


def _is_array(values: NDArray[Any], layer: VirtualLayer) -> bool:
    """At a ratio and a scale of 1 an array holds the values of its weight, in another order."""
    memory = layer.memory.detach().cpu().numpy()
    return values.ndim == 1 and bool(np.array_equal(values, memory))


def _expands(values: NDArray[Any], layer: VirtualLayer) -> bool:
    if values.dtype.kind in "iu":
        return True
    with torch_ops.without_library():
        weight = torch_ops.gather(layer.memory, layer.mapping.to_list(), layer.scale)
    return bool(np.array_equal(np.sort(values, axis=None), np.sort(weight.numpy(), axis=None)))
