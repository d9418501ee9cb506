"""The shapes of recurrent layers for a trace, so that a sequence may have any length.

torch finds the shapes of aten.lstm, aten.gru and aten.rnn by unrolling them over the example's sequence, and
so takes its length for a constant. The shapes do not need that: see torch.nn.LSTM, "Outputs".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
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


_KERNELS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)
"""Where torch keeps the unrolled forms for tensors that have symbols for lengths."""


@contextmanager
def any_length() -> Iterator[None]:
    """Within it torch's fake tensors take the shapes of recurrent layers from here."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(decomposition_table, _SHAPES))
        for operator, shapes in _SHAPES.items():
            stack.callback(operator._dispatch_cache.clear)
            stack.enter_context(_replaced(operator.py_kernels, dict.fromkeys(_KERNELS, shapes)))
            operator._dispatch_cache.clear()
        yield


@contextmanager
def _replaced(table: dict[Any, Any], entries: dict[Any, Any]) -> Iterator[None]:
    before = {key: table[key] for key in entries if key in table}
    table.update(entries)
    try:
        yield
    finally:
        for key in entries:
            del table[key]
        table.update(before)
