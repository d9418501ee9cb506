"""Activations and promotions that torch.onnx loses digits or its way in."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

import roast_export


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 16)

    def forward(self, ids: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        # The mask is of integers: each of these numbers makes floats of it.
        return (
            self.table(ids),
            functional.logsigmoid(x),
            1.0 - mask,
            2.5**mask,
            torch.remainder(5.5, mask + 2),
        )


def test_log_sigmoid_keeps_its_digits_and_numbers_meet_integers(tmp_path):
    model = roast_export.compress(Mixed().eval(), 2, min_params=64)
    inputs = torch.arange(6), torch.tensor([-100.0, -9.0, -1.0, 0.0, 3.0, 20.0]), torch.tensor([0, 1, 1])
    file = tmp_path / "model.onnx"
    roast_export.export(model, file, example_inputs=inputs, verify=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = dict(zip((v.name for v in session.get_inputs()), (x.numpy() for x in inputs), strict=True))
    actual = session.run(None, feeds)
    for right, found in zip(model(*inputs), actual, strict=True):
        np.testing.assert_allclose(found, right.detach().numpy(), rtol=1e-6, atol=1e-7)
    # A control: what torch.onnx would write.
    with np.errstate(divide="ignore"):
        other = np.log(1 / (1 + np.exp(-feeds["x"].astype(np.float32))))
    assert not np.allclose(other, actual[1], rtol=1e-6, atol=1e-7)
