"""The shapes of recurrent layers for a trace, so that a sequence may have any length.

torch finds the shapes of aten.lstm, aten.gru and aten.rnn by unrolling them over the example's sequence, and
so takes its length for a constant. The shapes do not need that: see torch.nn.LSTM, "Outputs".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

_aten = torch.ops.aten


def _gru(
    x: Tensor,
    hidden: Tensor,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """x float[length, batch, features], or [batch, length, features]; hidden float[layers, batch, size]."""
    width = hidden.shape[2] * (2 if bidirectional else 1)
    if batch_first:
        # The kernel computes with the length first, and gives a view of that.
        output = x.new_empty((x.shape[1], x.shape[0], width)).transpose(0, 1)
    else:
        output = x.new_empty((x.shape[0], x.shape[1], width))
    return output, torch.empty_like(hidden, memory_format=torch.contiguous_format)


def _lstm(x: Tensor, hidden: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As _gru; hidden: the state float[layers, batch, size] and the cell float[layers, batch, cells]."""
    output, last = _gru(x, hidden[0], *rest)
    return output, last, torch.empty_like(hidden[1], memory_format=torch.contiguous_format)


_SHAPES: dict[Any, Callable[..., Any]] = {
    _aten.lstm.input: _lstm,
    _aten.gru.input: _gru,
    _aten.rnn_tanh.input: _gru,
    _aten.rnn_relu.input: _gru,
}


@contextmanager
def any_length() -> Iterator[None]:
    """Within it torch's fake tensors take the shapes of recurrent layers from here."""
    before = {operator: decomposition_table.get(operator) for operator in _SHAPES}
    decomposition_table.update(_SHAPES)
    try:
        yield
    finally:
        for operator, function in before.items():
            if function is None:
                decomposition_table.pop(operator, None)
            else:
                decomposition_table[operator] = function
