"""Recurrent layers over sequences of any length, and what their files are held to."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import roast_export as R
from roast_export.bounds import output_bounds
from roast_export.errors import ExportError
from roast_export.modes import checked_lengths
from roast_export.trace import trace


class Layer(nn.Module):
    """A recurrent layer that gives its outputs and its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, last = self.layer(x)
        return (y, *last) if isinstance(last, tuple) else (y, last)


def compressed(kind: type[nn.RNNBase], **options) -> Layer:
    torch.manual_seed(0)
    return R.compress(Layer(kind(24, 32, **options)), 2, min_params=64).eval()


LAYERS = {
    "relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True, "batch_first": True}),
    "tanh": (nn.RNN, {"nonlinearity": "tanh", "bias": False}),
    "lstm": (nn.LSTM, {"bidirectional": True, "batch_first": True}),
    "gru": (nn.GRU, {"num_layers": 2}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_takes_sequences_of_any_length(name, tmp_path):
    kind, options = LAYERS[name]
    model = compressed(kind, **options)
    R.save(model, tmp_path / "m.pt", (torch.randn(3, 7, 24),))
    R.export(R.load(tmp_path / "m.pt"), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for shape in ((3, 7, 24), (2, 11, 24), (5, 2, 24)):
        x = torch.randn(shape)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for expected, actual in zip(model(x), found, strict=True):
            np.testing.assert_allclose(actual, expected.detach().numpy(), atol=2e-6)
            # Control: the outputs for other values are refused.
            other = model(x + 0.01)[0].detach().numpy()
            assert not np.allclose(found[0], other, atol=2e-6)


def test_after_an_export_torch_unrolls_recurrent_layers_as_before():
    before = dict(torch._decomp.decomposition_table)
    kernels = dict(torch.ops.aten.gru.input.py_kernels)
    trace(compressed(nn.GRU), (torch.randn(3, 7, 24),))
    assert before == dict(torch._decomp.decomposition_table)
    assert kernels == dict(torch.ops.aten.gru.input.py_kernels)


def test_an_lstm_with_a_projection_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"proj_size.*--to pt2"):
        R.export(
            compressed(nn.LSTM, proj_size=8), tmp_path / "m.onnx", example_inputs=(torch.randn(3, 7, 24),)
        )
    assert not list(tmp_path.iterdir())


def test_the_bound_of_an_lstm_sees_the_rounding_within_it():
    model = compressed(nn.LSTM)
    x = torch.randn(3, 7, 24)
    bound = output_bounds(model, trace(model, (x,)), {"x": np.ones((3, 7, 24), np.float32)})
    assert np.median(bound[0]) > 1e-7


class Columns(nn.Module):
    """An LSTM over the columns of an image: its height is part of the features, which the weights fix."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.rnn = nn.AvgPool2d((4, 1)), nn.LSTM(3 * 4, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.rnn(self.pool(images).permute(3, 0, 1, 2).flatten(2))[0]


def test_an_lstm_is_not_run_at_widths_that_its_weights_do_not_have(tmp_path):
    model = R.compress(Columns().eval(), 2, min_params=64)
    x = torch.randn(2, 3, 16, 5)
    R.save(model, tmp_path / "m.pt", (x,))
    loaded = R.load(tmp_path / "m.pt")
    assert R.export(loaded, tmp_path / "m.onnx").passed
    # A control: oneDNN's kernel takes twice the height, and computes something of it.
    wide = torch.randn(2, 3, 32, 5)
    with pytest.raises(RuntimeError):
        model(wide)
    assert loaded(wide).shape == (5, 2, 16)
    with checked_lengths(loaded.program), pytest.raises(RuntimeError):
        loaded(wide)
