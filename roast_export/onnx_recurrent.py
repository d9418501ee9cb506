"""torch.nn.RNN in ONNX: the operator RNN, so that a sequence may have any length.

torch.onnx has no translation for it, and would unroll it over the example's sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from roast_export.errors import ExportError


def recurrent(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file.

    The operator takes the length first, and has an axis for the direction; source: the ONNX operator RNN.
    """

    def layer(
        x: Any, hidden: Any, weights: Sequence[Sequence[Any]], size: int, activation: str
    ) -> tuple[Any, Any]:
        """One layer. weights: of each direction, W_ih, W_hh and, with biases, b_ih and b_hh."""

        def stacked(k: int) -> Any:
            each = [standard.Unsqueeze(direction[k], _numbers(standard, 0)) for direction in weights]
            return each[0] if len(each) == 1 else standard.Concat(*each, axis=0)

        biases = standard.Concat(stacked(2), stacked(3), axis=1) if len(weights[0]) == 4 else None
        y, last = standard.RNN(
            x,
            stacked(0),
            stacked(1),
            biases,
            None,
            hidden,
            activations=[activation] * len(weights),
            direction="forward" if len(weights) == 1 else "bidirectional",
            hidden_size=size,
        )
        # float[length, directions, batch, size] to float[length, batch, directions * size]
        y = standard.Transpose(y, perm=[0, 2, 1, 3])
        return standard.Reshape(y, standard.Constant(value_ints=[0, 0, -1])), last

    def rnn(activation: str) -> Callable[..., Any]:
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
        ) -> tuple[Any, Any]:
            directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
            weights = [params[k : k + each] for k in range(0, len(params), each)]
            x = standard.Transpose(input, perm=[1, 0, 2]) if batch_first else input
            last = []
            size = int(hx.shape[2])
            for k in range(0, num_layers * directions, directions):
                hidden = standard.Slice(
                    hx, _numbers(standard, k), _numbers(standard, k + directions), _numbers(standard, 0)
                )
                x, state = layer(x, hidden, weights[k : k + directions], size, activation)
                last.append(state)
            x = standard.Transpose(x, perm=[1, 0, 2]) if batch_first else x
            return x, last[0] if len(last) == 1 else standard.Concat(*last, axis=0)

        return translate

    aten = torch.ops.aten
    return {aten.rnn_tanh.input: rnn("Tanh"), aten.rnn_relu.input: rnn("Relu")}


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
