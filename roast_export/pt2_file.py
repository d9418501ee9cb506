"""An exported torch.export archive as the proof sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export import localise, probe, torch_ops, torch_zip
from roast_export.archive import runs_code
from roast_export.arrays import array_of, tensor_of
from roast_export.artifact import Artifact, Tell, each_weight
from roast_export.cases import Case
from roast_export.compare import compare_bits, first_line
from roast_export.errors import RoastError
from roast_export.gate import dense_check, same_names
from roast_export.note import Note, Weight, read_note
from roast_export.program import VirtualLayer, input_names, layers_of, quiet
from roast_export.report import Check
from roast_export.runtimes import Runtime
from roast_export.subject import Subject
from roast_export.torch_runtimes import pt2_runtimes


@dataclass
class Pt2File(Artifact):
    """See Artifact."""

    note: Note | None = None

    @cached_property
    def program(self) -> ExportedProgram:
        try:
            with quiet():
                return torch.export.load(self.path)
        except Exception as error:
            raise RoastError(f"{self.path} cannot be opened: {first_line(error)}; export it again") from error

    @property
    def tensor_bytes(self) -> int:
        return torch_zip.tensor_bytes(self.path)

    def runtimes(self) -> list[Runtime]:
        return pt2_runtimes(self.portable, self.outputs)

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        # open_pt2_file has refused what runs code: nothing below may open such a file.
        assert self.note is not None
        yield self.note.check(subject.layers)
        names = input_names(self.program)
        yield same_names("inputs of the graph", list(self.inputs), names)
        _, keywords = pytree.tree_unflatten(names, self.program.call_spec.in_spec)
        yield same_names("keywords of the call", list(keywords.values()), list(keywords))
        yield dense_check(subject.layers, self.parameters(), "file")

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for name, tensor in [*self.program.state_dict.items(), *self.program.constants.items()]:
            if isinstance(tensor, Tensor):
                yield name, array_of(tensor)

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        assert self.note is not None
        weights, stored = self.note.weights, {layer.node: layer for layer in layers_of(self.program)}

        def check(runtime: Runtime, k: int, layer: VirtualLayer) -> Iterator[Check]:
            if self.portable:
                yield self._traced(runtime, weights[k], layer)
            else:
                yield self._stored(runtime, stored[weights[k].place], layer)

        yield from each_weight([weight.name for weight in weights], subject, usable, tell, check)

    def first_difference(self, subject: Subject, runtime: Runtime, case: Case) -> list[Check]:
        def compute(expected: localise.Values | None = None) -> localise.Values:
            feeds = [tensor_of(case.feeds[name]).clone() for name in self.inputs]
            return localise.graph_values(self.program, feeds, None if expected is None else set(expected))

        if self.portable:
            # The arithmetic that stands for our operators has taken names of the traced graph.
            return localise.first_absent(subject, runtime.name, case, compute)
        names = {node.name for node in self.program.graph.nodes}
        return localise.first_difference(subject, runtime.name, case, names, compute)

    def measured(self, usable: list[Runtime]) -> list[tuple[str, dict[str, Any]]]:
        return [
            (runtime.name, {"kind": "pt2", "native": not self.portable})
            for runtime in usable
            if self.portable or runtime.native
        ]

    def _stored(self, runtime: Runtime, stored: VirtualLayer, layer: VirtualLayer) -> Check:
        """The weight of an operator in the graph, by the operators that serve here."""
        fields = stored.mapping.to_list()
        if layer.kind == "embedding":
            return probe.check_rows(
                layer, layer.name, runtime.name,
                lambda ids: torch_ops.embedding(
                    stored.memory, torch.from_numpy(ids), fields, stored.scale
                ).numpy(),
            )  # fmt: skip
        actual = torch_ops.gather(stored.memory, fields, stored.scale).numpy()
        return compare_bits(runtime.name, layer.name, "all elements", probe.expected_weight(layer), actual)

    def _traced(self, runtime: Runtime, weight: Weight, layer: VirtualLayer) -> Check:
        """The weight that the graph itself computes; of a lookup, the rows of every id."""
        nodes = {node.name: node for node in self.program.graph.nodes}
        result, *ids = (nodes[name] for name in weight.place.split())
        if ids:
            return probe.check_rows(
                layer, layer.name, runtime.name, lambda wanted: self._rows(result, ids[0], wanted)
            )
        actual = self._value(result, {}, {}).detach().contiguous().numpy()
        return compare_bits(runtime.name, layer.name, "all elements", probe.expected_weight(layer), actual)

    def _rows(
        self, result: torch.fx.Node, ids: torch.fx.Node, wanted: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Rows by the graph's own lookup, as many at a time as its lengths allow."""
        dims = list(ids.meta["val"].shape)
        free = [axis for axis, length in enumerate(dims) if not isinstance(length, int)]
        fixed = math.prod(length for length in dims if isinstance(length, int))
        blocks = np.resize(wanted, -(-len(wanted) // fixed) * fixed)
        step = blocks.size if free else fixed
        found = []
        for begin in range(0, blocks.size, step):
            shape = [length if isinstance(length, int) else 1 for length in dims]
            if free:
                shape[free[0]] = step // fixed
            lengths = {dims[axis].node.expr: shape[axis] for axis in free}
            values = torch.from_numpy(blocks[begin : begin + step].reshape(shape)).to(ids.meta["val"].dtype)
            rows = self._value(result, {ids: values}, lengths)
            found.append(rows.detach().reshape(step, -1).numpy())
        return np.concatenate(found)[: len(wanted)]

    def _value(self, result: torch.fx.Node, known: dict[torch.fx.Node, Tensor], lengths: Any) -> Tensor:
        """One value of the graph, from what it depends on alone. lengths: {symbol: int}."""
        signature = self.program.graph_signature
        stored = signature.inputs_to_parameters | signature.inputs_to_buffers
        values: dict[torch.fx.Node, Any] = dict(known)

        def value(node: torch.fx.Node) -> Any:
            if node not in values:
                if isinstance(node.meta["val"], torch.SymInt):
                    values[node] = int(node.meta["val"].node.expr.xreplace(lengths))
                elif node.op == "placeholder":
                    values[node] = self.program.state_dict[stored[node.name]].detach()
                else:
                    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
                    values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            return values[node]

        found: Tensor = value(result)
        return found


def open_pt2_file(path: Path) -> Pt2File:
    """The file at `path`. Raises RoastError if it is not one of ours, or opening it would run code."""
    note = read_note(path)
    try:
        reason = runs_code(path)
    except Exception as error:
        raise RoastError(f"{path} is truncated or damaged ({first_line(error)}); export it again") from error
    if reason is not None:
        raise RoastError(
            f"{path} runs code when opened ({reason}), which no file of ours does; export it again"
        )
    return Pt2File(
        path=path,
        target="pt2",
        layers=[weight.layer() for weight in note.weights],
        inputs=note.inputs,
        ranges=note.ranges,
        outputs=note.outputs,
        array_bytes=note.array_bytes,
        portable=note.portable,
        note=note,
    )
