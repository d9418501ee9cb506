"""Outputs of every kind: the right file passes, and one that is off in one output alone is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import roast_export
from roast_export.compare import compare_measured, compare_within
from roast_export.errors import ExportError
from tests.mutants.judge import verdicts_only


class Net(nn.Module):
    """Two compressed layers, and functions of what they give."""

    def __init__(self, outputs, between=torch.relu):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 48)
        self.outputs, self.between = outputs, between

    def forward(self, x):
        return self.outputs(self.second(self.between(self.first(x))))


def spectra(y):
    spectrum = torch.fft.rfft(y)
    return torch.fft.fft(y), spectrum.abs(), torch.angle(spectrum), torch.fft.irfft(spectrum * 2, n=48)


def masked(y):
    """Scores with places, and with a whole row, that no weight may fall on."""
    hard = y.masked_fill(y < 0, -torch.inf)
    nothing = torch.cat([hard[1:], torch.full_like(hard[:1], -torch.inf)])
    return hard.softmax(-1), hard.log_softmax(-1), nothing.softmax(-1), (y - 1e9 * (y < 0)).softmax(-1)


def chosen(y):
    values, places = torch.topk(y, 5)
    return values, places, y.argmax(-1), y > 0, torch.sort(y).values, torch.round(y * 8)


def sized(y):
    return y.mean(), y.sum(), y * 1e6, y * 1e-6, y * torch.logspace(-8, 8, 48), y[:, 5:5], y.double() * 2


def narrow(y):
    return y.half(), y.bfloat16(), y.half().float() * 3


KINDS = {
    "spectra": (spectra, torch.relu), "masked": (masked, torch.relu), "chosen": (chosen, torch.relu),
    "sized": (sized, torch.relu), "narrow": (narrow, lambda x: torch.relu(x.half()).float()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_every_kind_are_compared(tmp_path, kind):
    model = roast_export.compress(Net(*KINDS[kind]).eval(), 4, min_params=512)
    inputs, path = (torch.randn(3, 32, generator=torch.Generator().manual_seed(1)),), tmp_path / "m.onnx"
    roast_export.export(model, path, example_inputs=inputs, verify=False)

    def proved(proto):
        onnx.save(proto, path)
        return roast_export.verify(model, path, example_inputs=inputs, runtimes=["onnxruntime portable"])

    with verdicts_only():
        right = onnx.load(path)
        report = proved(right)
        assert report.passed, report.failures
        for place, output in enumerate(right.graph.output):
            if 0 in [d.dim_value for d in output.type.tensor_type.shape.dim if d.HasField("dim_value")]:
                continue
            failures = proved(off_by_little(right, place)).failures
            assert {check.name for check in failures} == {output.name}, output.name


def off_by_little(right, place):
    """The file with one output off: a number by five hundredths, a whole number by one."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(right)
    name, kind = wrong.graph.output[place].name, wrong.graph.output[place].type.tensor_type.elem_type
    for node in wrong.graph.node:
        node.output[:] = [f"{name}_right" if value == name else value for value in node.output]
        node.input[:] = [f"{name}_right" if value == name else value for value in node.input]
    if kind == TensorProto.BOOL:
        wrong.graph.node.append(helper.make_node("Not", [f"{name}_right"], [name]))
        return wrong
    whole = kind == TensorProto.INT64
    wrong.graph.initializer.append(helper.make_tensor("by", TensorProto.FLOAT, [], [1.0 if whole else 1.05]))
    wrong.graph.node.extend(
        [
            helper.make_node("Cast", [f"{name}_right"], [f"{name}_wide"], to=TensorProto.FLOAT),
            helper.make_node("Add" if whole else "Mul", [f"{name}_wide", "by"], [f"{name}_moved"]),
            helper.make_node("Cast", [f"{name}_moved"], [name], to=kind),
        ]
    )
    return wrong


def test_complex_outputs_of_a_file_are_pairs(tmp_path):
    model = roast_export.compress(Net(torch.fft.fft).eval(), 4, min_params=512)
    path = tmp_path / "m.onnx"
    with verdicts_only():
        report = roast_export.export(model, path, example_inputs=(torch.randn(3, 32),))
    assert any("'output' is complex" in text and "last axis of 2" in text for text in report.warnings)


def test_a_complex_input_is_refused_by_name(tmp_path):
    model = roast_export.compress(Net(torch.tanh, lambda x: x).eval(), 4, min_params=512)
    whole = nn.Sequential(OfParts(), model)
    inputs = (torch.randn(3, 32, dtype=torch.complex64),)
    with pytest.raises(ExportError, match=r"'input' is complex.*two inputs.*--to pt2"):
        roast_export.export(whole, tmp_path / "m.onnx", example_inputs=inputs)
    assert list(tmp_path.iterdir()) == []


class OfParts(nn.Module):
    def forward(self, z):
        return z.real + z.imag


def test_many_small_differences_are_refused_together():
    """Each is within its bound; rounding would move one this way and the next another."""
    expected = np.linspace(1, 1.5, 1200, dtype=np.float32).reshape(40, 30)
    bound = np.full((40, 30), 1e-4)
    noise = np.random.default_rng(0).normal(size=expected.shape).astype(np.float32)

    def verdict(actual, compare=compare_measured):
        return compare("r", "y", "c", expected, actual.astype(np.float32), bound)

    assert verdict(expected + 1e-5 * noise).passed
    moved = expected + 5e-5
    assert verdict(moved, compare_within).passed
    assert "together they are 0.71 of their bounds" in verdict(moved).note
    channel = expected.copy()
    channel[:, 7] += 5e-5
    assert verdict(channel, compare_within).passed
    assert not verdict(channel).passed
    alone = expected.copy()
    alone[3, 7] += 6e-5
    assert verdict(alone).passed


def test_a_proof_accepts_less_than_the_bound():
    """What it lets through on its own inputs must be within the bound on others."""
    expected, bound = np.ones(4, np.float32), np.full(4, 1e-4)
    wrong = expected + np.float32([0, 0, 9e-5, 0])
    assert compare_within("r", "y", "c", expected, wrong, bound).passed
    check = compare_measured("r", "y", "c", expected, wrong, bound)
    assert not check.passed
    assert check.bound == pytest.approx(7e-5)


def test_rows_that_are_alike_are_one_row():
    """One rounding in sixty-four equal rows is no sixty-four roundings; in rows that differ it is."""
    row, bound = np.linspace(1, 1.5, 4, dtype=np.float32), 1e-5
    shift = np.float32(0.5e-5) * np.array([1, 0, 0, 0], np.float32)
    alike = np.tile(row, (64, 1))
    bounds = np.full(alike.shape, bound)
    assert compare_measured("r", "y", "c", alike, alike + shift, bounds).passed
    other = alike + np.linspace(0, 0.4, 64, dtype=np.float32)[:, None]
    check = compare_measured("r", "y", "c", other, other + 1.2 * shift, bounds)
    assert not check.passed
    assert "together" in check.note
