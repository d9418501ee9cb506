"""Where two runs part: the first layer whose value differs between PyTorch and an ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from roast_export import torch_ops
from roast_export.cases import Case
from roast_export.compare import compare_values, failed
from roast_export.report import Check
from roast_export.runtimes import Runtime
from roast_export.subject import Subject


class _Recorder(Interpreter):
    """Runs a traced graph and keeps the tensors that also have a name in the ONNX graph."""

    def __init__(self, graph: torch.fx.GraphModule, names: set[str]) -> None:
        super().__init__(graph)
        self.names = names
        self.found: dict[str, tuple[np.ndarray[Any, Any], str]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, torch.Tensor):
            stack = list((n.meta.get("nn_module_stack") or {}).values())
            path = str(stack[-1][0]).replace(".virtual.", ".") if stack else ""
            self.found[n.name] = (value.detach().cpu().numpy(), path)
        return value


def first_difference(subject: Subject, proto: onnx.ModelProto, runtime: Runtime, case: Case) -> list[Check]:
    """One failed check that names the first layer, in the graph's order, beyond the bound."""
    try:
        return _search(subject, proto, runtime, case)
    except Exception as error:
        return [failed(runtime.name, "output", "first differing layer", case.name, error)]


def _search(subject: Subject, proto: onnx.ModelProto, runtime: Runtime, case: Case) -> list[Check]:
    if not isinstance(subject.program, ExportedProgram):
        return []
    named = {output for node in proto.graph.node for output in node.output}
    feeds = [torch.from_numpy(case.feeds[name]) for name in case.feeds]
    recorder = _Recorder(subject.program.module(check_guards=False), named)
    with torch.no_grad(), torch_ops.without_library():
        recorder.run(*feeds)
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    del model.graph.output[:]
    for name, (value, _) in recorder.found.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    wanted = {value.name: case.feeds[value.name] for value in model.graph.input}
    actual = runtime.open(model.SerializeToString())(wanted)
    for (name, (expected, path)), value in zip(recorder.found.items(), actual, strict=True):
        result = compare_values(
            runtime.name, path or name, case.name, expected, value, subject.atol, subject.rtol
        )
        if not result.passed:
            note = f"first differing layer: {path or 'top level'} (value {name})"
            return [Check(**{**result.__dict__, "note": note})]
    return []
