"""An exported TorchScript file, or one for the lite interpreter, as the proof sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roast_export import localise, probe, torch_zip
from roast_export.arrays import array_of, tensor_of
from roast_export.artifact import Artifact, Tell, each_weight
from roast_export.cases import Case
from roast_export.compare import compare_bits, failed, first_line
from roast_export.errors import RoastError
from roast_export.gate import dense_check, same_names
from roast_export.note import Note, read_note
from roast_export.program import VirtualLayer, quiet
from roast_export.report import Check
from roast_export.runtimes import Runtime
from roast_export.subject import Subject
from roast_export.to_torchscript import WEIGHT_METHOD
from roast_export.torch_runtimes import lite_runtimes, script_runtimes

READ_BY_ROWS = 1 << 26
"""Elements of a table above which it is read in pieces."""


@dataclass
class ScriptFile(Artifact):
    """See Artifact."""

    note: Note | None = None

    @cached_property
    def module(self) -> Any:
        """The file in torch's full interpreter; the lite form carries its source for that."""
        try:
            with quiet():
                return torch.jit.load(str(self.path), map_location="cpu")
        except Exception as error:
            raise self._damaged(error) from error

    @property
    def tensor_bytes(self) -> int:
        return torch_zip.tensor_bytes(self.path)

    def runtimes(self) -> list[Runtime]:
        return (lite_runtimes if self.target == "lite" else script_runtimes)(self.portable, self.outputs)

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        assert self.note is not None
        yield self.note.check(subject.layers)
        try:
            arguments = [argument.name for argument in self.module.forward.schema.arguments][1:]
            # Where the source itself is scripted, forward may have arguments that the example leaves out.
            yield same_names("arguments of forward", list(self.inputs), arguments[: len(self.inputs)])
        except Exception as error:
            yield failed("file", "structure", "arguments of forward", "", error)
        yield dense_check(subject.layers, self.parameters(), "file")
        for name, module in self.module.named_modules():
            if getattr(module, "training", False):
                reason = RoastError(
                    "it is in training mode, and whoever loads the file runs it so; export it again"
                )
                yield failed("file", "structure", "evaluation mode", name or "the model", reason)
        if self.target == "lite":
            return
        for where, optimise in _OPTIMISERS.items():
            try:
                with quiet():
                    frozen = optimise(self.module)
                yield dense_check(subject.layers, _constants(frozen), where)
            except Exception as error:
                yield failed(where, "structure", "no dense weight", "", error)

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        assert self.note is not None
        arrays = {f"{weight.place}.memory": weight.array for weight in self.note.weights}
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            yield arrays.get(name, name), array_of(tensor)

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        assert self.note is not None
        weights, method = self.note.weights, self._method()

        def check(runtime: Runtime, k: int, layer: VirtualLayer) -> Iterator[Check]:
            return self._weight(runtime, method, k, weights[k].place, layer)

        yield from each_weight([weight.name for weight in weights], subject, usable, tell, check)

    def first_difference(self, subject: Subject, runtime: Runtime, case: Case) -> list[Check]:
        with quiet():
            graph = self.module.forward.graph.copy()
        # to_torchscript.py calls the value of a node v_<node>; torch adds a number.
        held = [value for node in graph.nodes() for value in node.outputs()]
        named = {v.debugName().rpartition(".")[0].removeprefix("v_"): v for v in held if _is_value(v)}

        def compute(expected: localise.Values) -> localise.Values:
            for _ in list(graph.outputs()):
                graph.eraseOutput(0)
            together = graph.create("prim::ListConstruct", [named[name] for name in expected], 1)
            graph.appendNode(together)
            together.output().setType(torch._C.ListType(torch._C.TensorType.get()))
            graph.registerOutput(together.output())
            run = torch._C._create_function_from_graph("values", graph)
            feeds = [tensor_of(case.feeds[name]).clone() for name in self.inputs]
            with torch.no_grad():
                return localise.as_arrays(list(expected), run(self.module._c, *feeds))

        return localise.first_difference(subject, runtime.name, case, set(named), compute)

    def measured(self, usable: list[Runtime]) -> list[tuple[str, dict[str, Any]]]:
        return [
            (runtime.name, {"kind": self.target, "native": not self.portable})
            for runtime in usable
            if self.portable or runtime.native
        ]

    def _damaged(self, error: Exception) -> RoastError:
        return RoastError(f"{self.path} cannot be opened: {first_line(error)}; export it again")

    def _method(self) -> Callable[..., Tensor]:
        if self.target == "lite":
            from torch.jit.mobile import _load_for_lite_interpreter

            try:
                lite = _load_for_lite_interpreter(str(self.path), map_location="cpu")
            except Exception as error:
                raise self._damaged(error) from error
            return lambda k, like: lite.run_method(WEIGHT_METHOD, k, like)
        found: Callable[..., Tensor] = getattr(self.module, WEIGHT_METHOD)
        return found

    def _weight(
        self, runtime: Runtime, method: Callable[..., Tensor], k: int, place: str, layer: VirtualLayer
    ) -> Iterator[Check]:
        like = torch.zeros(1)
        by_rows = layer.kind == "embedding" and layer.mapping.numel > READ_BY_ROWS
        if by_rows and self.target != "lite":
            table = _at(self.module, place)
            yield probe.check_rows(
                layer, layer.name, runtime.name, lambda ids: table.rows(torch.tensor(ids)).numpy()
            )
            return
        expected = probe.expected_weight(layer)
        with torch.no_grad():
            actual = method(k, like).numpy()
        yield compare_bits(runtime.name, layer.name, "all elements", expected, actual)
        finite = bool(np.isfinite(expected).all())
        if runtime.native and self.target != "lite" and layer.kind == "linear" and finite:
            linear = _at(self.module, place).linear

            def product(x: NDArray[np.float32]) -> Any:
                with torch.no_grad():
                    return linear(torch.tensor(x), None).numpy()

            yield probe.check_product(expected, layer.name, runtime, product)


def open_script_file(path: Path, target: str) -> ScriptFile:
    """The file at `path`. Raises RoastError if it is not one of ours."""
    note = read_note(path)
    return ScriptFile(
        path=path,
        target=target,
        layers=[weight.layer() for weight in note.weights],
        inputs=note.inputs,
        ranges=note.ranges,
        outputs=note.outputs,
        array_bytes=note.array_bytes,
        portable=note.portable,
        note=note,
    )


def _is_value(value: Any) -> bool:
    return value.debugName().startswith("v_") and isinstance(value.type(), torch._C.TensorType)


def _freeze(module: Any) -> Any:
    return torch.jit.freeze(module)


def _optimise(module: Any) -> Any:
    return torch.jit.optimize_for_inference(module)


_OPTIMISERS = {"torch.jit.freeze": _freeze, "optimize_for_inference": _optimise}


def _at(module: Any, place: str) -> Any:
    for part in place.split("."):
        module = getattr(module, part)
    return module


def _constants(module: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tensors that a module holds, in its attributes and in its graph."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        yield name, array_of(tensor)
    for node in module.graph.findAllNodes("prim::Constant"):
        value = node.output().toIValue() if node.hasAttribute("value") else None
        if isinstance(value, Tensor) and value.layout is torch.strided:
            yield node.output().debugName(), array_of(value)
