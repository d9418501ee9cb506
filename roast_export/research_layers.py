"""Layers that only research checkpoints have: FakeRoast's LSTM, and ROBE's table that is also a bag."""

from __future__ import annotations

import copyreg
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.modules import RoastEmbeddingBag, VirtualWeight, _Virtual, _Weights


class RoastLSTM(_Virtual, nn.Module):
    """FakeRoast's one-layer LSTM: gates i, f, g, o of x W + h U + bias; no initial state is taken.

    weights: "WHelper2" is U, float32[hidden, 4 * hidden]; "WHelper1", if there, is W in place of the
    dense float32[input, 4 * hidden]. bias: float32[4 * hidden].
    """

    def __init__(self, weights: dict[str, VirtualWeight], dense: nn.Parameter | None, bias: nn.Parameter):
        super().__init__()
        self.virtual = _Weights(weights)
        self.W = dense
        self.bias = bias
        self.hidden_size = weights["WHelper2"].mapping.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), self.__dict__  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x: float32[batch, length, input]. Gives (all outputs, (last output, last cell state))."""
        inward = self.virtual["WHelper1"]() if self.W is None else self.W
        state = x.new_zeros(1, x.shape[0], self.hidden_size)
        weights = [inward.t(), self.virtual["WHelper2"]().t(), self.bias, torch.zeros_like(self.bias)]
        outputs, hidden, cell = torch.lstm(x, (state, state), weights, True, 1, 0.0, False, False, True)
        return outputs, (hidden.squeeze(0), cell.squeeze(0))


class RobeEmbeddingBag(RoastEmbeddingBag):
    """ROBE's HashedEmbeddingBag: rows of ids of any shape, or sums of bags where offsets are given.

    Rows of padding_idx are zeros.
    """

    def __init__(self, weight: VirtualWeight, padding_idx: int | None = None):
        super().__init__(weight, mode="sum", padding_idx=padding_idx)

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), self.__dict__  # type: ignore[attr-defined]

    def forward(
        self,
        input: Tensor,  # noqa: A002 - torch's name, which users pass
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if offsets is not None:
            return super().forward(input, offsets, per_sample_weights)
        rows = self.virtual["weight"].rows(input)
        if self.padding_idx is None:
            return rows
        return rows.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)
