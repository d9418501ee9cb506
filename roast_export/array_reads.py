"""Where a graph of standard operators reads an array, and what each read makes of it.

A virtual weight that is written out in standard operators has neither a name nor a record. It has a Gather
on the array, whose elements pass through products and reshapes until they are the weight: a chain of values
that carry these elements and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter

import numpy as np
import onnx
from onnx import helper, numpy_helper

_LENGTHS = {"Shape", "Size"}
"""Operators that look at a tensor and take none of its elements."""

_KEEPS_ELEMENTS = {
    "Cast", "Flatten", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators between the elements that a Gather took and the weight."""

SMALL = 64
"""Elements up to which a stored tensor is looked into for the numbers of a record."""


@dataclass(frozen=True)
class Read:
    """One read of an array.

    values: what its elements become, in order; the weight is among them. Empty where no Gather reads.
    ids: the value by which a lookup takes rows; None for a whole weight.
    numbers: constants that take part, of which a mapping's record is a part.
    """

    array: str
    values: tuple[str, ...]
    ids: str | None
    numbers: frozenset[int | float]


class Graph:
    """A graph with its values by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        # Nodes are told apart by identity, which lasts as long as somebody holds them.
        self.nodes = list(model.graph.node)
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {value.name for value in model.graph.input} - self.stored.keys()
        self.outputs = {value.name for value in model.graph.output}
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self._ordered(self.nodes):
            for name in dict.fromkeys(node.input):
                self.users.setdefault(name, []).append(node)
        self.constant = self._constants()
        self.live = self._live()

    def reads(self, arrays: Iterable[str]) -> Iterator[Read]:
        """Every read of `arrays` that an output depends on, in the graph's order for each array."""
        self._carried = self._carry(arrays)
        for array in arrays:
            pending, seen = [array], {array}
            while pending:
                value = pending.pop(0)
                if value in self.outputs:
                    yield Read(array, (), None, frozenset())
                for node in self._takers(value):
                    if node.op_type == "Gather" and node.input[0] == value:
                        yield self._read(array, node)
                    elif not set(node.output) <= self.constant:
                        yield Read(array, (), None, frozenset())
                    else:
                        pending += [name for name in node.output if name not in seen]
                        seen |= set(node.output)

    def piece(self, output: str, ids: str | None = None) -> onnx.ModelProto:
        """The model that computes `output`: of nothing, or of `ids`, int64[n].

        Raises:
            ValueError: it depends on an input of the graph in another way.
        """
        nodes = self._cone([output], ids)
        names = {name for node in nodes for name in node.input} | {output}
        outside = names & self.inputs - {ids}
        if outside:
            raise ValueError(f"{output} depends on the input {sorted(outside)[0]}")
        graph = helper.make_graph(
            nodes,
            "piece",
            [] if ids is None else [helper.make_tensor_value_info(ids, onnx.TensorProto.INT64, [None])],
            [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
            [tensor for name, tensor in self.stored.items() if name in names and name != ids],
        )
        opsets = self.model.opset_import
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.model.ir_version)

    def _read(self, array: str, gather: onnx.NodeProto) -> Read:
        ids = self._ids(gather)
        values = tuple(self._chain(gather.output[0], ids is not None))
        return Read(array, values, ids, self._numbers(self._cone(values[-1:], ids)))

    def _chain(self, value: str, lookup: bool) -> Iterator[str]:
        """Values that carry the same elements, as long as each has one user."""
        while True:
            yield value
            users = self._takers(value)
            if value in self.outputs or len(users) != 1 or len(users[0].output) != 1:
                return
            node, output = users[0], users[0].output[0]
            others = set(node.input) - {value}
            ends = node.op_type not in _KEEPS_ELEMENTS if lookup else output not in self.constant
            if ends or others & self._carried:
                return
            value = output

    def _ids(self, gather: onnx.NodeProto) -> str | None:
        """The value that the check of ids looks at: our lookups compare it with both ends of the table."""
        cone = self._cone([gather.input[1]])
        below, above = (
            {node.input[0] for node in cone if node.op_type == name} for name in ("Less", "GreaterOrEqual")
        )
        found = below & above
        return found.pop() if len(found) == 1 else None

    def _takers(self, value: str) -> list[onnx.NodeProto]:
        """Nodes that take elements of a value, and matter."""
        users = self.users.get(value, [])
        return [node for node in users if node.op_type not in _LENGTHS and self.live & set(node.output)]

    def _carry(self, arrays: Iterable[str]) -> set[str]:
        """Every value that holds elements of the arrays."""
        found, pending = set(arrays), list(arrays)
        while pending:
            for node in self._takers(pending.pop()):
                new = set(node.output) - found
                found |= new
                pending += new
        return found

    def _cone(self, names: Iterable[str], cut: str | None = None) -> list[onnx.NodeProto]:
        """The nodes that `names` depend on, in an order in which they can run; `cut` is given."""
        pending, seen = list(names), {cut}
        nodes: dict[int, onnx.NodeProto] = {}
        while pending:
            name = pending.pop()
            node = self.maker.get(name)
            if name not in seen and node is not None and id(node) not in nodes:
                nodes[id(node)] = node
                pending += node.input
            seen.add(name)
        return self._ordered(nodes.values())

    def _ordered(self, nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """A .ort keeps its nodes in no order that can run."""
        nodes = list(nodes)
        made = {name: k for k, node in enumerate(nodes) for name in node.output if name}
        needs = {k: {made[name] for name in node.input if name in made} for k, node in enumerate(nodes)}
        return [nodes[k] for k in TopologicalSorter(needs).static_order()]

    def _constants(self) -> set[str]:
        found = set(self.stored)
        for node in self._ordered(self.nodes):
            inner = any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute)
            if not inner and {name for name in node.input if name} <= found:
                found |= set(node.output)
        return found

    def _live(self) -> set[str]:
        """Values that an output of the graph depends on; inner graphs may read any value by its name."""
        inner = {
            name
            for node in self.nodes
            for attribute in node.attribute
            for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for name in _names(graph)
        }
        nodes = self._cone([*self.outputs, *inner])
        return self.outputs.union(inner, *(node.input for node in nodes))

    def _numbers(self, nodes: list[onnx.NodeProto]) -> frozenset[int | float]:
        tensors = [self.stored[name] for node in nodes for name in node.input if name in self.stored]
        for node in nodes:
            if node.op_type == "Constant":
                values = [helper.get_attribute_value(attribute) for attribute in node.attribute]
                tensors += [v if isinstance(v, onnx.TensorProto) else _tensor(v) for v in values]
        found: set[int | float] = set()
        for tensor in tensors:
            if np.prod(tensor.dims) <= SMALL and tensor.data_type in _READABLE:
                found.update(numpy_helper.to_array(tensor).reshape(-1).tolist())
        return frozenset(found)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name that the nodes of an inner graph read."""
    found = {name for node in graph.node for name in node.input}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                found |= _names(inner)
    return found


_READABLE = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT)


def _tensor(value: int | float | list[int] | list[float]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.atleast_1d(np.asarray(value)))
