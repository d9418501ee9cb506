"""Attention in ONNX equals torch's, also for queries that may attend to nothing."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import roast_export

FOUR = ((2, 4, 6, 16), (2, 4, 7, 16), (2, 4, 7, 16))
attend = functional.scaled_dot_product_attention


def some() -> Tensor:
    """A mask whose row 2 keeps nothing: bool[2, 1, 6, 7]."""
    mask = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[:, :, 2] = False
    return mask


def added(nothing: float) -> Tensor:
    return torch.zeros(2, 1, 6, 7).masked_fill(~some(), nothing)


def given(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


CASES = {
    "boolean mask": (attend, (*given(*FOUR), some())),
    "mask of -inf": (attend, (*given(*FOUR), added(-torch.inf))),
    "mask of the least number": (attend, (*given(*FOUR), added(torch.finfo(torch.float32).min))),
    "one mask for all": (attend, (*given(*FOUR), some()[0, 0])),
    "no mask": (partial(attend, scale=0.3), tuple(given(*FOUR))),
    "causal": (partial(attend, is_causal=True), tuple(given(*FOUR))),
    "three axes": (attend, (*given((2, 6, 16), (2, 7, 16), (2, 7, 16)), some()[:, 0])),
    "fewer heads": (partial(attend, enable_gqa=True), (*given(FOUR[0], *[(2, 2, 7, 16)] * 2), some())),
}


class Attend(nn.Module):
    """Every case at once, so that one file is written."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 16)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        left, found = list(inputs), []
        for function, own in CASES.values():
            found.append(self.out(function(*left[: len(own)])))
            del left[: len(own)]
        return tuple(found)


@pytest.mark.parametrize("opset", [18, 23])
def test_attention_is_torchs(tmp_path, opset):
    model = roast_export.compress(Attend().eval(), 2, min_params=64)
    inputs = tuple(x for _, own in CASES.values() for x in own)
    file = tmp_path / "model.onnx"
    roast_export.export(model, file, example_inputs=inputs, opset=opset, verify=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = [y.numpy() for y in model(*inputs)]
    actual = session.run(None, feeds)
    for name, right, found in zip(CASES, expected, actual, strict=True):
        assert np.abs(found - right).max() < 1e-5, name
    # A control: rows with nothing to attend to are what tells this translation from torch.onnx's.
    assert np.abs(actual[0][:, :, 2] - model.out.bias.detach().numpy()).max() < 1e-6
    assert np.abs(actual[2][:, :, 2] - actual[0][:, :, 2]).max() > 1e-2


class Encoder(nn.Module):
    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)[:, 0]


def test_the_encoder_that_the_refusal_advises_is_taken(tmp_path):
    inputs = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    nested, plain = (
        roast_export.compress(Encoder(nested).eval(), 2, min_params=64) for nested in (True, False)
    )
    with pytest.raises(roast_export.ExportError, match="enable_nested_tensor=False"):
        roast_export.save(nested, tmp_path / "model.pt", inputs)
    roast_export.save(plain, tmp_path / "model.pt", inputs)
    # It gives NaN for a row that is padding alone, so there is nothing to hold a file to.
    with torch.no_grad():
        assert plain(inputs[0], torch.ones(2, 5, dtype=torch.bool)).isnan().all()
        assert not plain(*inputs).isnan().any()
