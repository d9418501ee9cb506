"""Changes of an ONNX graph in one place each: another operator, input, attribute, constant or weight."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

ACTIVATIONS = (
    "Relu", "Tanh", "Sigmoid", "Erf", "Gelu", "LeakyRelu", "Elu", "HardSwish", "HardSigmoid", "Softplus",
    "Exp", "Sqrt", "Abs", "Sin", "Cos", "Log", "Mish", "Swish",
)  # fmt: skip
INSTEAD = ("Neg", "Cos", "Tanh", "Sigmoid", "Abs", "Relu", "Identity")
"""What an activation becomes."""

SWAPPED = {
    "Add": "Sub", "Sub": "Add", "Mul": "Add", "Div": "Mul", "Max": "Min", "Min": "Max", "And": "Or",
    "Or": "And", "Greater": "Less", "Less": "LessOrEqual", "LessOrEqual": "Less",
    "GreaterOrEqual": "Greater", "Equal": "GreaterOrEqual", "ReduceMean": "ReduceSum",
    "ReduceSum": "ReduceMean", "ReduceMax": "ReduceMin", "MaxPool": "AveragePool", "AveragePool": "MaxPool",
    "GlobalAveragePool": "GlobalMaxPool", "GlobalMaxPool": "GlobalAveragePool", "Softmax": "LogSoftmax",
    "LogSoftmax": "Softmax", "ArgMax": "ArgMin", "Floor": "Ceil", "Ceil": "Floor",
}  # fmt: skip

ORDERED = {"Sub", "Div", "Pow", "MatMul", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Concat", "Mod"}
"""Operators whose first two inputs are not alike."""

FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}


@dataclass(frozen=True)
class Mutant:
    """A changed file. kind: of the change; what: where, in words."""

    kind: str
    what: str
    model: ModelProto


Change = Callable[[ModelProto], None]
"""Changes a copy of the model in place."""


def mutants(model: ModelProto, seed: int) -> Iterator[Mutant]:
    """All mutants, those of different kinds in turn, in an order that the seed decides. Some do not run."""
    chance = random.Random(seed)
    kinds = [[(kind, *found) for found in changes(model, chance)] for kind, changes in KINDS.items()]
    for found in kinds:
        chance.shuffle(found)
    for row in zip_longest(*kinds):
        for entry in row:
            if entry is not None:
                kind, what, change = entry
                copy = ModelProto()
                copy.CopyFrom(model)
                change(copy)
                yield Mutant(kind, what, copy)


Found = Iterator[tuple[str, Change]]


def _activations(model: ModelProto, chance: random.Random) -> Found:
    for place, node in _nodes(model, *ACTIVATIONS):
        other = chance.choice([name for name in INSTEAD if name != node.op_type])
        yield f"{node.op_type} -> {other}", _as_operator(place, other)


def _operators(model: ModelProto, chance: random.Random) -> Found:
    for place, node in _nodes(model, *SWAPPED):
        if not _whole(model, node):
            yield (
                f"{node.op_type} -> {SWAPPED[node.op_type]}",
                _as_operator(place, SWAPPED[node.op_type], keep=True),
            )


def _bypassed(model: ModelProto, chance: random.Random) -> Found:
    for place, node in enumerate(model.graph.node):
        for source in [name for name in node.input if name not in _stored(model)][:1]:
            yield f"{node.op_type} dropped", _as_identity(place, source)


def _inputs(model: ModelProto, chance: random.Random) -> Found:
    for place, node in _nodes(model, *ORDERED):
        if len(node.input) > 1:
            yield f"inputs of {node.op_type} swapped", _with_swapped(place, 0, 1)


def _branches(model: ModelProto, chance: random.Random) -> Found:
    for place, _ in _nodes(model, "Where"):
        yield "branches of Where swapped", _with_swapped(place, 1, 2)


def _attributes(model: ModelProto, chance: random.Random) -> Found:
    for place, node in enumerate(model.graph.node):
        for number, attribute in enumerate(node.attribute):
            if attribute.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT):
                changed = _changed_attribute(place, number, chance.randrange(8), chance.choice((-1, 1)))
                yield f"{attribute.name} of {node.op_type}", changed


def _weights(model: ModelProto, chance: random.Random) -> Found:
    """One element of each stored tensor; of the array several."""
    for place, tensor in enumerate(model.graph.initializer):
        if tensor.data_type in FLOATS:
            for _ in range(8 if tensor.name == "roast_memory" else 1):
                yield f"one element of {tensor.name}", _changed_tensor(place, chance.random())


def _whole_numbers(model: ModelProto, chance: random.Random) -> Found:
    for place, tensor in enumerate(model.graph.initializer):
        if tensor.data_type in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
            yield (
                f"one element of {tensor.name}",
                _changed_tensor(place, chance.random(), chance.choice((-1, 1))),
            )


def _constants(model: ModelProto, chance: random.Random) -> Found:
    for place, node in _nodes(model, "Constant"):
        if any(attribute.name == "value" for attribute in node.attribute):
            yield "a constant", _changed_constant(place, chance.random(), chance.choice((-1, 1)))


KINDS: dict[str, Callable[[ModelProto, random.Random], Found]] = {
    "activation": _activations,
    "operator": _operators,
    "bypass": _bypassed,
    "inputs": _inputs,
    "branches": _branches,
    "attribute": _attributes,
    "weight": _weights,
    "whole number": _whole_numbers,
    "constant": _constants,
}


def _nodes(model: ModelProto, *operators: str) -> Iterator[tuple[int, NodeProto]]:
    for place, node in enumerate(model.graph.node):
        if node.domain == "" and node.op_type in operators:
            yield place, node


def _stored(model: ModelProto) -> set[str]:
    constants = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    return {tensor.name for tensor in model.graph.initializer} | constants


def _whole(model: ModelProto, node: NodeProto) -> bool:
    """Whether a node computes lengths: another length hardly ever gives a valid graph."""
    known = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    return known.get(node.output[0]) in (TensorProto.INT64, TensorProto.INT32) and "Arg" not in node.op_type


def _as_operator(place: int, operator: str, *, keep: bool = False) -> Change:
    def change(model: ModelProto) -> None:
        node = model.graph.node[place]
        node.op_type = operator
        if not keep:
            del node.attribute[:]

    return change


def _as_identity(place: int, source: str) -> Change:
    def change(model: ModelProto) -> None:
        node = model.graph.node[place]
        node.CopyFrom(onnx.helper.make_node("Identity", [source], node.output[:1], name=node.name))

    return change


def _with_swapped(place: int, a: int, b: int) -> Change:
    def change(model: ModelProto) -> None:
        inputs = model.graph.node[place].input
        inputs[a], inputs[b] = inputs[b], inputs[a]

    return change


def _changed_attribute(place: int, number: int, element: int, step: int) -> Change:
    def change(model: ModelProto) -> None:
        attribute = model.graph.node[place].attribute[number]
        if attribute.type == AttributeProto.FLOAT:
            attribute.f = attribute.f * 1.5 + (1.0 if attribute.f == 0 else 0.0)
        elif attribute.type == AttributeProto.INT:
            attribute.i += step
        elif attribute.ints:
            attribute.ints[element % len(attribute.ints)] += step

    return change


def _changed_tensor(place: int, where: float, step: int = 1) -> Change:
    def change(model: ModelProto) -> None:
        _change(model.graph.initializer[place], where, step)

    return change


def _changed_constant(place: int, where: float, step: int) -> Change:
    def change(model: ModelProto) -> None:
        _change(next(a for a in model.graph.node[place].attribute if a.name == "value").t, where, step)

    return change


def _change(tensor: TensorProto, where: float, step: int) -> None:
    """One element: a float moves by the tensor's spread or its size, a whole number by a step."""
    values = numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1)
    if not flat.size:
        return
    element = int(where * flat.size)
    if values.dtype == np.bool_:
        flat[element] = not flat[element]
    elif values.dtype.kind in "iu":
        with np.errstate(over="ignore"):
            flat[element] += step
    else:
        finite = flat[np.isfinite(flat)].astype(np.float64)
        spread = float(finite.std()) if finite.size > 1 else 0.0
        flat[element] += spread or 0.1 * abs(float(flat[element])) or 1.0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
