"""Recurrent layers in ONNX: the operators LSTM, GRU and RNN, so that a sequence may have any length.

torch.onnx has no translation for torch.nn.RNN, and would unroll it over the example's sequence. Its
translations of torch.nn.LSTM and torch.nn.GRU copy each weight twice to order its gates, in every run where
the weight is virtual; here it is copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch
from torch.export import ExportedProgram

from roast_export import onnx_ops
from roast_export.errors import ExportError
from roast_export.onnx_lookup import is_narrow


def recurrent(standard: Any, *, lookups: bool = False) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file.

    lookups: look the rows of a virtual weight up in the order of the operator, where it is a table of rows.
    """
    aten = torch.ops.aten

    def layers(operator: str, order: Sequence[int] = (), **attributes: Any) -> Callable[..., Any]:
        return _layers(standard, operator, order, lookups=lookups, **attributes)

    # torch's gates are input, forget, cell, output, and reset, update, new.
    return {
        aten.lstm.input: layers("LSTM", order=(0, 3, 1, 2)),
        aten.gru.input: layers("GRU", order=(1, 0, 2), linear_before_reset=1),
        aten.rnn_tanh.input: layers("RNN", activation="Tanh"),
        aten.rnn_relu.input: layers("RNN", activation="Relu"),
    }


def _layers(
    standard: Any,
    operator: str,
    order: Sequence[int],
    *,
    lookups: bool,
    activation: str | None = None,
    **attributes: Any,
) -> Callable[..., Any]:
    """order: the gates of torch in the order of the operator."""

    def of_direction(parameter: Any) -> Any:
        """float[1, gates * size, ...], its gates in order."""
        found = _looked_up(standard, parameter, order) if lookups and order else None
        if found is not None:
            return found
        return standard.Unsqueeze(_in_order(standard, parameter, order), _numbers(standard, 0))

    def stacked(weights: Sequence[Sequence[Any]], k: int) -> Any:
        """The k-th parameter of each direction: float[directions, gates * size, ...]."""
        each = [of_direction(group[k]) for group in weights]
        return each[0] if len(each) == 1 else standard.Concat(*each, axis=0)

    def layer(x: Any, initial: Sequence[Any], weights: Sequence[Sequence[Any]], size: int) -> tuple[Any, ...]:
        """One layer. weights: of each direction, W_ih, W_hh and, with biases, b_ih and b_hh."""
        own = dict(attributes)
        if activation is not None:
            own["activations"] = [activation] * len(weights)
        y, *last = getattr(standard, operator)(
            x,
            stacked(weights, 0),
            stacked(weights, 1),
            standard.Concat(stacked(weights, 2), stacked(weights, 3), axis=1)
            if len(weights[0]) == 4
            else None,
            None,
            *initial,
            direction="forward" if len(weights) == 1 else "bidirectional",
            hidden_size=size,
            **own,
        )
        # float[length, directions, batch, size] to float[length, batch, directions * size]
        y = standard.Transpose(y, perm=[0, 2, 1, 3])
        return standard.Reshape(y, standard.Constant(value_ints=[0, 0, -1])), *last

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
    ) -> tuple[Any, ...]:
        directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
        weights = [params[k : k + each] for k in range(0, len(params), each)]
        states = list(hx) if isinstance(hx, Sequence) else [hx]
        x = standard.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        last: list[list[Any]] = [[] for _ in states]
        size = int(states[0].shape[2])
        for k in range(0, num_layers * directions, directions):
            ends = _numbers(standard, k), _numbers(standard, k + directions), _numbers(standard, 0)
            initial = [standard.Slice(state, *ends) for state in states]
            x, *final = layer(x, initial, weights[k : k + directions], size)
            for found, value in zip(last, final, strict=True):
                found.append(value)
        x = standard.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return x, *(found[0] if len(found) == 1 else standard.Concat(*found, axis=0) for found in last)

    return translate


def _looked_up(standard: Any, parameter: Any, order: Sequence[int]) -> Any:
    """A virtual weight float[1, gates * size, inputs] as a lookup of its rows; None where that is slower."""
    node = parameter.producer()
    if node is None or (node.domain, node.op_type) != (onnx_ops.DOMAIN, "RoastGather"):
        return None
    mapping, scale = onnx_ops.mapping_of(ir.to_proto(node))
    if not is_narrow(mapping) or mapping.tile[0] != 1:
        return None
    size = mapping.shape[0] // len(order)
    rows = np.concatenate([np.arange(gate * size, (gate + 1) * size) for gate in order])
    roast = onnxscript.values.Opset(onnx_ops.DOMAIN, onnx_ops.DOMAIN_VERSION)
    ids = standard.Constant(value=onnx.numpy_helper.from_array(rows[None].astype(np.int64)))
    return roast.RoastEmbedding(node.inputs[0], ids, **onnx_ops.attributes(mapping, scale, "RoastEmbedding"))


def _in_order(standard: Any, parameter: Any, order: Sequence[int]) -> Any:
    """A weight float[gates * size, ...] or bias float[gates * size] with its gates in another order."""
    if not order:
        return parameter
    shape = [int(length) for length in parameter.shape]
    gates = standard.Reshape(
        parameter, standard.Constant(value_ints=[len(order), shape[0] // len(order), *shape[1:]])
    )
    ordered = standard.Gather(gates, standard.Constant(value_ints=list(order)), axis=0)
    return standard.Reshape(ordered, standard.Constant(value_ints=shape))


def refuse_projections(program: ExportedProgram) -> None:
    """ExportError for an LSTM with proj_size: ONNX's LSTM has one size for its state and its cell."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.lstm.input:
            state, cell = (part.meta["val"] for part in node.args[1])
            if state.shape[2] != cell.shape[2]:
                raise ExportError(
                    "an nn.LSTM of this model has a proj_size, and the ONNX operator LSTM has none; export "
                    "with --to pt2, or leave proj_size out"
                )


def _numbers(standard: Any, value: int) -> Any:
    return standard.Constant(value_ints=[value])
