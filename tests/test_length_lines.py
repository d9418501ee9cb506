"""The line of a model that makes a number of a length is named, in the refusal and in the report."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roast_export import compress
from roast_export.errors import InputError
from roast_export.fixed_lengths import fixed_lengths
from roast_export.trace import prepared, trace


class Scan(nn.Module):
    """Each step depends on the one before, as in the fallback of state space models."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, found = torch.zeros(x.shape[0], 64), []
        for t in range(x.shape[1]):
            state = torch.tanh(self.layer(x[:, t]) + state)
            found.append(state)
        return torch.stack(found, 1)


LINE = r"test_length_lines.py:\d+ in forward: for t in range\(x.shape\[1\]\):"


def test_the_line_that_fixes_a_length_is_named():
    live, example = prepared(compress(Scan().eval(), 4), (torch.randn(2, 5, 64),))
    assert example is not None
    with pytest.raises(InputError, match=r"'x', axis 1 is fixed by .* a number of it at.*" + LINE):
        trace(live, example, {"x": {1: "steps"}})
    program = trace(live, example, every_dimension=True)
    (said,) = fixed_lengths(live, program, example)
    assert "x:1 is fixed at 5" in said
    assert "test_length_lines.py:" in said


def test_control_what_an_operator_needs_has_no_line():
    live, example = prepared(compress(Scan().eval(), 4), (torch.randn(2, 5, 64),))
    with pytest.raises(InputError, match="axis 2 is fixed by the model") as refused:
        trace(live, example, {"x": {2: "width"}})
    assert "makes a number" not in str(refused.value)
