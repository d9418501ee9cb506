"""Where two runs part: the first layer whose value differs between PyTorch and an exported file.

1. The file names its values as the traced graph does (.onnx, TorchScript, lite, native .ort and .pt2): values
   of one name are compared, in the order of the graph. torch.onnx gives some names to other values, so that
   one counts only if nothing that is computed from it is right.
2. It has other names (portable .ort and .pt2): a value of PyTorch's is there if any value of the file is
   equal to it within the bound. The first that is not there, nor anything computed from it, is where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from roast_export import torch_ops
from roast_export.arrays import array_of, tensor_of
from roast_export.bounds import measured_bounds
from roast_export.cases import Case
from roast_export.compare import Bound, compare_within, failed
from roast_export.report import FIRST_DIFFERENCE, Check
from roast_export.subject import Subject

Values = dict[str, NDArray[Any]]
Compute = Callable[[Values], Values]
"""PyTorch's values by name in, to tell names and types; the file's values of these names out."""


class _Recorder(Interpreter):
    """Runs a traced graph and keeps its tensors, with the module path of each."""

    def __init__(self, graph: torch.fx.GraphModule, names: set[str] | None) -> None:
        super().__init__(graph)
        self.names = names
        self.values: Values = {}
        self.bounds: dict[str, Bound] = {}
        self.paths: dict[str, str] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        wanted = n.op == "call_function" and (self.names is None or n.name in self.names)
        if wanted and isinstance(value, torch.Tensor):
            self.values[n.name] = array_of(value)
            self.paths[n.name] = _path(n)
        return value


def first_difference(
    subject: Subject, runtime: str, case: Case, names: set[str], compute: Compute
) -> list[Check]:
    """Case 1: one failed check that names the first layer beyond the bound. names: values of the file."""
    try:
        recorder = _recorded(subject, case, names)
        if recorder is None:
            return []
        actual = compute(recorder.values)
        checks = {
            name: _check(recorder, name, runtime, case, actual[name])
            for name, expected in recorder.values.items()
            if (actual[name].shape, actual[name].dtype) == (expected.shape, expected.dtype)
        }
        there = {name for name, check in checks.items() if check.passed}
        for node in recorder.module.graph.nodes:  # type: ignore[union-attr]
            if node.name in checks and not _later(node) & there:
                return [_named(checks[node.name], recorder, node.name)]
    except Exception as error:
        return [failed(runtime, "output", FIRST_DIFFERENCE, case.name, error)]
    return []


def first_absent(subject: Subject, runtime: str, case: Case, compute: Callable[[], Values]) -> list[Check]:
    """Case 2. compute: all values of the file."""
    try:
        recorder = _recorded(subject, case, None)
        if recorder is None:
            return []
        by_size: dict[int, list[NDArray[Any]]] = {}
        for value in compute().values():
            by_size.setdefault(value.size, []).append(value)
        nearest = {
            name: min(
                (
                    _check(recorder, name, runtime, case, value.reshape(expected.shape))
                    for value in by_size.get(expected.size, [])
                    if value.dtype == expected.dtype
                ),
                key=lambda check: (not check.passed, check.difference),
                default=None,
            )
            for name, expected in recorder.values.items()
        }
        there = {name for name, check in nearest.items() if check is not None and check.passed}
        for node in recorder.module.graph.nodes:  # type: ignore[union-attr]
            check = nearest.get(node.name)
            if check is not None and not _later(node) & there:
                return [_named(check, recorder, node.name)]
    except Exception as error:
        return [failed(runtime, "output", FIRST_DIFFERENCE, case.name, error)]
    return []


def onnx_values(proto: onnx.ModelProto, wanted: Values) -> onnx.ModelProto:
    """The model with these values for outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    del model.graph.output[:]
    for name, value in wanted.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return model


def graph_values(program: ExportedProgram, feeds: list[torch.Tensor], names: set[str] | None) -> Values:
    """Values of a traced graph by name, by the operators that serve here."""
    program._guards_code = []
    recorder = _Recorder(program.module(check_guards=False), names)
    with torch.no_grad():
        recorder.run(*feeds)
    return recorder.values


def _recorded(subject: Subject, case: Case, names: set[str] | None) -> _Recorder | None:
    if not isinstance(subject.program, ExportedProgram):
        return None
    graph = subject.program.module(check_guards=False)
    recorder = _Recorder(graph, names)
    feeds = {str(k): value for k, value in enumerate(case.feeds.values())}
    with torch.no_grad(), torch_ops.without_library():
        recorder.run(*map(tensor_of, feeds.values()))
    if subject.limits is not None:
        recorder.bounds = {name: subject.limits.of(value) for name, value in recorder.values.items()}
        return recorder

    def values(inputs: dict[str, torch.Tensor]) -> list[NDArray[Any]]:
        other = _Recorder(graph, names)
        other.run(*inputs.values())
        return list(other.values.values())

    recorder.bounds = dict(zip(recorder.values, measured_bounds(graph, feeds, values), strict=True))
    return recorder


def _check(recorder: _Recorder, name: str, runtime: str, case: Case, actual: NDArray[Any]) -> Check:
    return compare_within(runtime, "", case.name, recorder.values[name], actual, recorder.bounds[name])


def _named(check: Check, recorder: _Recorder, name: str) -> Check:
    path = recorder.paths[name]
    note = f"{FIRST_DIFFERENCE}: {path or 'top level'} (value {name})"
    return replace(check, name=path or name, passed=False, note=note)


def _path(node: Node) -> str:
    """The module, or for a virtual weight the parameter, that gives a node its value; "" outside of all."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    if node.target is not torch.ops.roast.gather.default and "virtual" in path.split("."):
        # A fused layer is found by its weight; its value is what the whole module gives.
        return path.rpartition("virtual")[0].removesuffix(".")
    return path.replace(".virtual.", ".").removeprefix("virtual.")


def _later(node: Node) -> set[str]:
    """The node and everything that is computed from it."""
    found, pending = {node.name}, [node]
    while pending:
        new = [user for user in pending.pop().users if user.name not in found]
        found |= {user.name for user in new}
        pending += new
    return found


def as_arrays(names: list[str], values: Any) -> Values:
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
