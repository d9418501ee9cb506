"""The bound on outputs follows each output's scale and type, and what the model makes of rounding."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import roast_export
from roast_export.arrays import array_of, tensor_of
from roast_export.bounds import at_least, bound_of, neighbourhood, output_bounds, proves, usual_share
from roast_export.compare import compare_within
from roast_export.rounding import Rounding
from roast_export.trace import trace

pytestmark = pytest.mark.usefixtures("nothing_is_measured")


class Of(nn.Module):
    """A compressed layer, and a function of what it gives."""

    def __init__(self, function, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer or nn.Linear(64, 64)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def made(function, layer=None):
    return roast_export.compress(Of(function, layer).eval(), 4, min_params=512)


def example(*shape):
    return (torch.randn(shape or (3, 64), generator=torch.Generator().manual_seed(1)),)


def proved(model, path, inputs, **options):
    """The proof of a fresh file in one runtime."""
    roast_export.export(model, path, example_inputs=inputs, verify=False)
    return verified(model, path, inputs, **options)


def verified(model, path, inputs, **options):
    runtimes = ["onnxruntime portable"]
    return roast_export.verify(model, path, example_inputs=inputs, runtimes=runtimes, **options)


def bounds_of(model, inputs):
    program = trace(model, inputs)
    with torch.no_grad():
        expected = array_of(model(*inputs))
    return expected, output_bounds(model, program, {"x": inputs[0].numpy()})[0]


def with_operator(path, to, old, new):
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.op_type = new if node.op_type == old else node.op_type
    onnx.save(proto, to)
    return to


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_bound_follows_the_scale(tmp_path, scale):
    model, inputs = made(lambda x: torch.tanh(x) * scale), example()
    report = proved(model, tmp_path / "m.onnx", inputs)
    outputs = [check for check in report.checks if check.kind == "output"]
    assert outputs
    assert all(0 < check.bound < 2e-5 * scale for check in outputs)
    wrong = with_operator(tmp_path / "m.onnx", tmp_path / "w.onnx", "Tanh", "Cos")
    assert report.passed
    assert not verified(model, wrong, inputs).passed


def test_channels_of_different_scales_have_bounds_of_their_own():
    scales = torch.logspace(-6, 6, 64)
    expected, bound = bounds_of(made(lambda x: torch.tanh(x) * scales), example(40, 64))
    relative = np.median(bound, axis=0) / np.abs(expected).max(axis=0)
    assert relative.max() < 2e-5
    assert relative.max() / relative.min() < 10


def test_rows_that_amplify_rounding_leave_the_others_their_bound():
    """The first row is a constant that the normalisation blows up."""
    x = example(16, 64)[0].clone()
    model = made(lambda y: torch.nn.functional.layer_norm(y, (64,), eps=1e-12))
    with torch.no_grad():
        model.layer.bias.fill_(0.3)
    x[0] = 0
    _, bound = bounds_of(model, (x,))
    assert np.median(bound[0]) > 1e3 * np.median(bound[1:])
    assert np.median(bound[1:]) < 1e-4


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_low_precision_outputs_are_compared_within_their_rounding(tmp_path, kind):
    model, inputs = made(lambda x: x.to(kind)), example()
    report = proved(model, tmp_path / "m.onnx", inputs)
    assert report.passed
    expected, bound = bounds_of(model, inputs)
    last_place = torch.finfo(kind).eps * np.abs(expected.astype(np.float64))
    assert (bound >= last_place).all()
    assert np.median(bound / last_place) < 1.5
    wrong = array_of(tensor_of(expected) * (1 + 3 * torch.finfo(kind).eps))
    assert compare_within("r", "y", "c", expected, expected.copy(), bound).passed
    assert not compare_within("r", "y", "c", expected, wrong, bound).passed


def test_an_input_whose_rounding_the_model_amplifies_is_replaced(tmp_path):
    """Edge inputs are constants: a normalisation over time turns their rounding into its output."""
    norm = nn.GroupNorm(32, 32)
    model = made(norm, nn.Conv1d(1, 32, 20, 5, bias=False))
    with torch.no_grad():
        norm.bias.zero_()
    report = proved(model, tmp_path / "m.onnx", example(1, 1, 400))
    assert any("edge: ones" in warning and "proves nothing" in warning for warning in report.warnings)
    cases = {check.case for check in report.checks if check.kind == "output"}
    assert "edge: ones, last ids" not in cases
    assert "spare 1" in cases


def test_a_model_that_only_amplifies_rounding_is_not_proved(tmp_path):
    model = made(lambda x: ((x * 3 - x) - 2 * x) * 1e6)
    report = proved(model, tmp_path / "m.onnx", example())
    assert not report.passed
    assert ["turns rounding into its output" in check.note for check in report.failures] == [True]
    # A bound that the user sets counts, whatever was measured.
    assert verified(model, tmp_path / "m.onnx", example(), atol=10.0).passed


@pytest.mark.parametrize("function", [lambda x: x * 0 + 1, lambda x: x * 1e-9 + 1])
def test_an_output_that_does_not_depend_on_the_input_is_named(tmp_path, function):
    report = proved(made(function), tmp_path / "m.onnx", example())
    assert any("output 'output'" in warning and "all inputs tried" in warning for warning in report.warnings)


def test_control_an_output_that_varies_is_not_named(tmp_path):
    report = proved(made(torch.tanh), tmp_path / "m.onnx", example())
    assert not any("all inputs tried" in warning for warning in report.warnings)


def test_whole_numbers_that_rounding_decides():
    """Two scores that are equal but for rounding, and a choice between them: only that row is left open."""
    model = made(lambda x: torch.stack([x.sum(-1), (x * 3).sum(-1) / 3 + x[:, 0] * 0], -1).argmax(-1))
    _, bound = bounds_of(model, example(64, 64))
    assert np.isinf(bound).mean() > 0.5
    assert not proves(bound, np.zeros(64, np.int64))
    _, sure = bounds_of(made(lambda x: x.argmax(-1)), example(64, 64))
    assert (sure == 0).mean() > 0.9


def test_whole_numbers_beyond_float64_are_told_apart():
    a = np.array([2**60, 1])
    assert compare_within("r", "y", "c", a, a.copy(), np.zeros(2)).passed
    assert not compare_within("r", "y", "c", a, a + np.array([1, 0]), np.zeros(2)).passed


def test_the_bound_of_runs():
    ones = np.ones((8, 8), np.float32)
    assert bound_of([ones, ones]).max() < 2e-7
    moved = ones.copy()
    moved[3, 4] += 1
    assert bound_of([ones, moved])[3, 4] > 1
    nan = np.full((2,), np.nan, np.float32)
    assert np.isfinite(bound_of([nan, nan])).all()
    assert np.isinf(bound_of([nan, np.float32([0, 0])])).all()


def test_rounding_moves_results_and_leaves_what_is_exact():
    x = torch.randn(50)
    with Rounding(0, 1):
        moved, still = x * 1.1, [x[3:].relu(), torch.ones(50) * 2, (x > 0).float() - 1e4]
    relative = (moved / (x * 1.1) - 1).abs()
    assert 1e-7 < float(relative.max()) < 1e-6
    assert torch.equal(still[0], x[3:].relu())
    assert torch.equal(still[1], torch.full((50,), 2.0))
    assert torch.equal(still[2], (x > 0).float() - 1e4)


def test_what_saturates_may_be_just_below_one():
    """Another runtime's sigmoid may stop short of 1, and the logarithm of the rest is far off."""
    x = torch.full((200,), 40.0)
    with Rounding(0, 1):
        found = torch.sigmoid(x)
    assert float(found.max()) == 1.0
    assert 1e-7 < 1 - float(found.min()) < 1e-6
    _, bound = bounds_of(made(lambda x: torch.log(1 - torch.sigmoid(400 * x) + 1e-12)), example(40, 64))
    assert (bound > 1).mean() > 0.1


def test_a_sum_that_cancels_is_off_by_roundings_of_its_terms():
    """Whole inputs, so that nothing but the order of additions differs between runtimes."""
    weight = torch.randn(1, 256, generator=torch.Generator().manual_seed(3))
    weight -= weight.mean()
    with Rounding(0, 1):
        found = torch.stack([torch.ones(1, 256) @ weight.T for _ in range(20)])
        whole = torch.ones(1, 256) @ torch.ones(256, 3)
    terms = torch.finfo(torch.float32).eps * float(weight.norm())
    assert float((found - found[0]).abs().max()) > terms
    assert float((found - found[0]).abs().max()) < 100 * terms
    assert torch.equal(whole, torch.full((1, 3), 256.0))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: nn.functional.interpolate(
            y.reshape(-1, 1, 8, 8), (37, 91), mode="bicubic", align_corners=True
        ),
        lambda y: nn.functional.interpolate(y.reshape(-1, 1, 8, 8), scale_factor=2.3, mode="bilinear"),
        lambda y: torch.cdist(y, y),
        lambda y: torch.cdist(y + 3, y + 3),
    ],
    ids=["bicubic", "bilinear", "distances", "distances far from 0"],
)
def test_what_pytorch_itself_rounds_far_has_a_wide_bound(tmp_path, function):
    """Places between the values of a grid, and distances of a row to itself."""
    assert proved(made(function), tmp_path / "m.onnx", example(32, 64)).passed


def test_control_the_bound_of_an_interpolation_does_not_hide_another_one(tmp_path):
    def grown(mode):
        return lambda y: nn.functional.interpolate(y.reshape(-1, 1, 8, 8), (37, 91), **mode)

    model = made(grown({"mode": "bilinear", "align_corners": True}))
    other = made(grown({"mode": "bilinear", "align_corners": False}))
    roast_export.export(other, tmp_path / "m.onnx", example_inputs=example(32, 64), verify=False)
    assert not verified(model, tmp_path / "m.onnx", example(32, 64)).passed


def test_exact_elements_do_not_narrow_the_bound_of_their_neighbours():
    spread = np.zeros((64, 64))
    spread[::8, ::8] = 1e-7
    found = neighbourhood(spread)
    assert found[spread > 0] == pytest.approx(1e-7)
    assert (found[spread == 0] < 2e-8).all()


def test_buffers_that_forward_writes_are_left_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)
            self.register_buffer("seen", torch.zeros(64))

        def forward(self, x):
            self.seen += self.layer(x).sum(0)
            return self.layer(x) + self.seen

    model = roast_export.compress(Counting().eval(), 4, min_params=512)
    program = trace(model, example())
    before = model.seen.clone()
    output_bounds(model, program, {"x": example()[0].numpy()})
    assert torch.equal(model.seen, before)


def test_runs_that_agree_by_chance_do_not_narrow_the_bound():
    """The few runs of one case may give an element the same value; the other cases tell what is usual."""
    values, usual = np.full((16, 16), 0.5, np.float32), np.full((16, 16), 1e-7)
    chance = np.full((16, 16), 1e-9)
    share = usual_share(usual, values)
    assert share == pytest.approx(2e-7)
    assert (at_least(chance, values, share) >= 0.9e-7).all()
    assert np.array_equal(at_least(usual, values, share / 10), usual)
    quiet = values * np.array([1] * 15 + [1e-6], np.float32)
    assert (at_least(chance, quiet, share)[:, -1] < 1e-8).all()
