"""A model that cannot be traced is refused with the cause, the line of its own code, and a next step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from roast_export.errors import ExportError
from roast_export.trace import trace
from roast_export.untraceable import explain


class Calls(nn.Module):
    """A linear layer and an LSTM, with a forward that a test gives."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.lstm, self.function = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True), function

    def forward(self, x):
        return self.function(self, x)


def branch(model, x):
    return model.linear(x) if x.sum() > 0 else x


def length(model, x):
    return torch.zeros(int(x.abs().sum().item()) + 1) + model.linear(x).sum()


def packed(model, x):
    lengths = torch.tensor([3, 2])
    sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    return model.lstm(sequence)[1][0]


def to_numpy(model, x):
    return model.linear(x) * float(np.mean(x.numpy()))


class Strange:
    def __init__(self, value):
        self.value = value


def strange(model, x):
    return Strange(model.linear(x))


def unknown(model, x):
    raise LookupError("nothing of that name")


CASES = [
    (branch, "depends on the values of a tensor", "if x.sum() > 0", "torch.where"),
    (length, "depends on the values of a tensor", ".item()", "torch.cond"),
    (packed, "packed sequence", "model.lstm(sequence)", "padded batch"),
    (to_numpy, "taken out of torch", "x.numpy()", "torch's operators"),
    (strange, "object of Strange", "", "wrap the model"),
]


@pytest.mark.parametrize(("function", "cause", "line", "step"), CASES, ids=lambda case: str(case)[:20])
def test_a_refusal_names_cause_line_and_next_step(function, cause, line, step):
    with pytest.raises(ExportError) as caught:
        trace(Calls(function).eval(), (torch.randn(2, 3, 8),), every_dimension=True)
    message = str(caught.value)
    assert cause in message
    assert line in message
    assert step in message.partition("; ")[2]
    assert len(message.splitlines()) == 1
    assert not line or "test_untraceable.py:" in message


def test_what_is_of_no_known_kind_is_told_in_its_own_words():
    try:
        unknown(None, None)
    except LookupError as error:
        message = explain(error)
    assert "nothing of that name, at " in message
    assert "in unknown: raise LookupError" in message
    assert "; change that line" in message
