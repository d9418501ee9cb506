"""What torch.onnx would write wrongly or not at all, and we write right."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import roast_export


class SmallConstants(nn.Module):
    """Divides by a variance that is 0 for some inputs; each number is one that an optimiser may round off."""

    def __init__(self, eps: float, factor: float) -> None:
        super().__init__()
        self.first, self.eps, self.factor = nn.Linear(48, 64, bias=False), eps, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        variance = y.pow(2).mean(-1, keepdim=True)
        return y * self.factor / torch.sqrt(variance + self.eps)


@pytest.mark.parametrize(("eps", "factor"), [(1e-8, 1.0), (1e-12, 1.000005), (1e-9, 0.999995)])
def test_small_constants_stay(tmp_path, eps, factor):
    torch.manual_seed(0)
    model = roast_export.compress(SmallConstants(eps, factor).eval(), 4, min_params=1024)
    x = torch.randn(2, 48) * 1e-3
    report = roast_export.export(model, tmp_path / "m.onnx", example_inputs=(x,))
    assert report.passed
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for value in (x, torch.zeros(2, 48)):
        expected = model(value).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"x": value.numpy()})[0], expected, rtol=2e-6, atol=1e-9)


def test_control_a_number_that_float32_takes_for_1_is_left_out(tmp_path):
    model = roast_export.compress(SmallConstants(1e-6, 1.0 + 1e-9).eval(), 4, min_params=1024)
    roast_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 48),), verify=False)
    assert "Mul" not in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module, places: int) -> None:
        super().__init__()
        rank = 1 if isinstance(pool, nn.AdaptiveAvgPool1d) else 2
        self.conv = (nn.Conv1d if rank == 1 else nn.Conv2d)(3, 32, 3, padding=1)
        self.pool, self.last = pool, nn.Linear(32 * places, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.pool(self.conv(x)).flatten(1))


@pytest.mark.parametrize(
    ("pool", "places", "shapes"),
    [
        (nn.AdaptiveAvgPool2d(2), 4, [(2, 3, 8, 8), (3, 3, 7, 11), (1, 3, 5, 4)]),
        (nn.AdaptiveAvgPool2d((3, None)), 24, [(2, 3, 9, 8), (3, 3, 10, 8)]),
        (nn.AdaptiveAvgPool2d(1), 1, [(2, 3, 8, 8), (3, 3, 5, 6)]),
        (nn.AdaptiveAvgPool1d(3), 3, [(2, 3, 9), (3, 3, 13), (1, 3, 4)]),
    ],
    ids=["2x2", "3xNone", "1x1", "3"],
)
def test_adaptive_pooling_takes_any_length(tmp_path, pool, places, shapes):
    torch.manual_seed(0)
    model = roast_export.compress(Pooled(pool, places).eval(), 4, min_params=512)
    roast_export.save(model, tmp_path / "m.pt", (torch.randn(shapes[0]),))
    assert roast_export.export(roast_export.load(tmp_path / "m.pt"), tmp_path / "m.onnx").passed
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for shape in shapes:
        x = torch.randn(shape)
        expected = model(x).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


class Applied(nn.Module):
    """A function of a compressed layer, and of the input as it is."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(16, 64), function

    def forward(self, x):
        return self.function(self.layer(x)), self.function(x)


def applied(path, function, x):
    """What onnxruntime makes of a compressed model with the function, and what PyTorch does."""
    torch.manual_seed(0)
    model = roast_export.compress(Applied(function).eval(), 4, min_params=512)
    assert roast_export.export(model, path, example_inputs=(x,)).passed
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[1], function(x).numpy()


@pytest.mark.parametrize("function", [torch.log1p, torch.expm1], ids=["log1p", "expm1"])
def test_logarithms_near_1_keep_their_digits(tmp_path, function):
    sizes = torch.logspace(-30, 1.5, 64)
    x = torch.cat([sizes, -sizes.clamp(max=0.99), torch.zeros(16)]).reshape(-1, 16)
    found, expected = applied(tmp_path / "m.onnx", function, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)
    ends = np.full((9, 16), np.inf, np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert (session.run(None, {"x": ends})[1] == np.inf).all()
    lowest = -1.0 if function is torch.log1p else -np.inf
    ends = np.full((9, 16), lowest, np.float32)
    assert (session.run(None, {"x": ends})[1] == function(torch.from_numpy(ends)).numpy()).all()


def test_control_the_plain_logarithm_loses_them():
    x = np.float32(1e-5)
    assert abs(np.log(np.float32(1) + x) / np.log1p(x) - 1) > 1e-4


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0, float("inf")])
def test_distances_of_a_few_rows(tmp_path, p):
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    found, expected = applied(tmp_path / "m.onnx", lambda y: torch.cdist(y, y[:3], p=p), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_constants_of_many_elements_are_computed_by_the_file(tmp_path):
    """A table of sines for a fixed number of places is no weight: the file stays as small as its arrays."""

    def placed(y):
        rates = torch.exp(torch.arange(0, 64) * -0.1)
        return y[:, None] * torch.sin(torch.arange(0, 512)[:, None] * rates)[None, :, : y.shape[-1]]

    applied(tmp_path / "m.onnx", placed, torch.randn(2, 16))
    assert (tmp_path / "m.onnx").stat().st_size < 40_000
