"""Recurrent layers whose weights are virtual: products of the weights themselves, step by step.

The ONNX operators LSTM, GRU and RNN want the whole weight in every run, and expanding it costs more than a
short sequence does. Here the inputs of all steps are multiplied at once, and a Scan goes over the steps:
both products become RoastLinear (fuse.py), and nothing is expanded.

    all steps   X = x W_ih^T + b_ih             float[length, batch, gates * size]
    a step      H = h W_hh^T + b_hh             float[batch, gates * size]
                and the next state out of X and H: see torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.onnx._internal.exporter._torchlib.ops.hop import call_op

from roast_export import onnx_ops
from roast_export.onnx_recurrent import recurrent
from roast_export.placement import SMALL_RECURRENT

TILE_WIDTH = 16
"""Tiles from this width on are multiplied as vectors; narrower ones are expanded once a run instead."""

LEAST_ELEMENTS = SMALL_RECURRENT
"""Elements of W_hh from which a Scan is faster than LSTM, GRU and RNN with expanded weights (measured)."""

Cell = Callable[["Body", ir.Value, list[ir.Value]], list[ir.Value]]
"""Next states out of the body, its scanned input and its states; the first one is the layer's output."""


def steps(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file.

    A layer that is small, or of which some weight is dense or cannot be multiplied, is an operator.
    """
    aten = torch.ops.aten
    cells: dict[Callable[..., Any], Cell] = {
        aten.lstm.input: _lstm,
        aten.gru.input: _gru,
        aten.rnn_tanh.input: _rnn("Tanh"),
        aten.rnn_relu.input: _rnn("Relu"),
    }
    return {
        target: _either(standard, operator, cells[target])
        for target, operator in recurrent(standard, lookups=True).items()
    }


def is_multiplied(weight: Any) -> bool:
    """Whether a value is a virtual weight that RoastLinear multiplies faster than it is expanded."""
    node = weight.producer()
    if node is None or (node.domain, node.op_type) != (onnx_ops.DOMAIN, "RoastGather"):
        return False
    mapping, _ = onnx_ops.mapping_of(ir.to_proto(node))
    return mapping.tile[1] >= TILE_WIDTH


def _either(standard: Any, operator: Callable[..., Any], cell: Cell) -> Callable[..., Any]:
    def translate(
        input: Any,  # noqa: A002 - torch.onnx passes arguments by the operator's names for them
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        each = 4 if has_biases else 2
        weights = [params[k : k + each] for k in range(0, len(params), each)]
        virtual = all(is_multiplied(value) for group in weights for value in group[:2])
        if not virtual or math.prod(params[1].shape) < LEAST_ELEMENTS:
            return operator(
                input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
            )
        states = list(hx) if isinstance(hx, Sequence) else [hx]
        x = standard.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        directions = 2 if bidirectional else 1
        last: list[list[Any]] = [[] for _ in states]
        for first in range(0, num_layers * directions, directions):
            outputs = []
            for k in range(first, first + directions):
                initial = [standard.Gather(state, _number(standard, k), axis=0) for state in states]
                *final, y = _scan(standard, x, initial, weights[k], cell, backward=k > first)
                outputs.append(y)
                for found, value in zip(last, final, strict=True):
                    found.append(standard.Unsqueeze(value, standard.Constant(value_ints=[0])))
            x = _joined(standard, outputs, 2)
        x = standard.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return x, *(_joined(standard, found, 0) for found in last)

    return translate


def _scan(
    standard: Any, x: Any, initial: list[Any], weights: Sequence[Any], cell: Cell, *, backward: bool
) -> Any:
    """One direction of one layer: the last states float[batch, size], and float[length, batch, size]."""
    across = [standard.Transpose(weight, perm=[1, 0]) for weight in weights[:2]]
    gates = standard.MatMul(x, across[0])
    if len(weights) == 4:
        gates = standard.Add(gates, weights[2])
    body = Body(int(weights[1].shape[1]), int(weights[1].shape[0]), len(initial))
    product = body.node("MatMul", body.states[0], across[1])
    if len(weights) == 4:
        product = body.node("Add", product, weights[3])
    # The recorder of torch.onnx takes an operator that has as many outputs as it is given through this alone.
    return call_op(
        "Scan",
        *initial,
        gates,
        _num_outputs=len(initial) + 1,
        body=body.graph(cell(body, product, body.states)),
        num_scan_inputs=1,
        scan_input_directions=[int(backward)],
        scan_output_directions=[int(backward)],
    )


class Body:
    """The graph of one step, while it is written: states float[batch, size] and the step's gates."""

    def __init__(self, size: int, gates: int, n_states: int) -> None:
        self.size = size
        self.states = [_value(f"state_{k}", size) for k in range(n_states)]
        self.scanned = _value("gates", gates)
        self._nodes: list[ir.Node] = []

    def node(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Append an operator of one output."""
        return self.nodes(operator, *inputs, n_outputs=1, **attributes)[0]

    def nodes(
        self, operator: str, *inputs: ir.Value, n_outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append an operator of several outputs."""
        made = ir.node(operator, inputs, attributes, num_outputs=n_outputs)
        for output in made.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        self._nodes.append(made)
        return made.outputs

    def graph(self, states: list[ir.Value]) -> ir.Graph:
        """The finished graph: the next states, and the first of them once more as what is collected."""
        outputs = [*states, self.node("Identity", states[0])]
        for output in outputs:
            output.shape = ir.Shape([None, self.size])
        return ir.Graph([*self.states, self.scanned], outputs, nodes=self._nodes, name="step")


def _lstm(body: Body, product: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
    gates = body.node("Add", body.scanned, product)
    into, forget, new, out = body.nodes("Split", gates, n_outputs=4, axis=-1, num_outputs=4)
    into, forget, out = (body.node("Sigmoid", gate) for gate in (into, forget, out))
    added = body.node("Mul", into, body.node("Tanh", new))
    cell = body.node("Add", body.node("Mul", forget, states[1]), added)
    return [body.node("Mul", out, body.node("Tanh", cell)), cell]


def _gru(body: Body, product: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
    reset_x, keep_x, new_x = body.nodes("Split", body.scanned, n_outputs=3, axis=-1, num_outputs=3)
    reset_h, keep_h, new_h = body.nodes("Split", product, n_outputs=3, axis=-1, num_outputs=3)
    reset = body.node("Sigmoid", body.node("Add", reset_x, reset_h))
    keep = body.node("Sigmoid", body.node("Add", keep_x, keep_h))
    new = body.node("Tanh", body.node("Add", new_x, body.node("Mul", reset, new_h)))
    kept = body.node("Mul", keep, body.node("Sub", states[0], new))
    return [body.node("Add", new, kept)]


def _rnn(activation: str) -> Cell:
    def cell(body: Body, product: ir.Value, states: list[ir.Value]) -> list[ir.Value]:
        return [body.node(activation, body.node("Add", body.scanned, product))]

    return cell


def _value(name: str, size: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, size]))


def _joined(standard: Any, values: list[Any], axis: int) -> Any:
    return values[0] if len(values) == 1 else standard.Concat(*values, axis=axis)


def _number(standard: Any, value: int) -> Any:
    return standard.Constant(value_int=value)
