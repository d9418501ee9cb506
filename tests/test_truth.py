"""The module against its trace: what a trace freezes, forgets or shares is refused with its cause."""

from __future__ import annotations

import contextlib
import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.compiler import is_compiling

from roast_export import compress, export, load, save
from roast_export.errors import ExportError


class Layer(nn.Module):
    """A virtual layer, and what the tests keep beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32)
        self.register_buffer("kept", torch.zeros(1, 6, 32))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.plain = torch.zeros(32)
        self.count = 0
        self.seen: list[torch.Tensor] = []


def made(kind: type[nn.Module]) -> nn.Module:
    return compress(kind(), 4, min_params=512).eval()


X = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


class Cache(Layer):
    def forward(self, x, pos):
        self.kept[:, pos] = self.a(x)
        return (x @ self.kept.mT).sum(-1)


class Reassigned(Layer):
    def forward(self, x):
        self.kept = self.kept + x.mean()
        return self.a(x) + self.kept.sum()


class Counter(Layer):
    def forward(self, x):
        self.count += 1
        return self.a(x) + self.count


class Plain(Layer):
    def forward(self, x):
        self.plain.add_(1)
        return self.a(x) + self.plain


class Growing(Layer):
    def forward(self, x):
        self.seen.append(x)
        return self.a(x) + sum(self.seen)


class Dropped(Layer):
    def forward(self, x):
        return nn.functional.dropout(self.a(x), 0.5, training=True)


class Random(Layer):
    def forward(self, x):
        return self.a(x) * random.random()


class NumpyRandom(Layer):
    def forward(self, x):
        return self.a(x) * float(np.random.rand())


class Clock(Layer):
    def forward(self, x):
        return self.a(x) * time.perf_counter()


class Exporting(Layer):
    def forward(self, x):
        return self.a(x) if torch.compiler.is_exporting() else 2 * self.a(x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.a = nn.TransformerEncoder(layer, 1)

    def forward(self, x, padded):
        return self.a(x, src_key_padding_mask=padded)


PADDED = torch.tensor([[False, False, False, False], [False, False, True, True]])
FROZEN = {
    Cache: ((X[None], torch.tensor([0, 1])), "buffer kept in forward"),
    Reassigned: ((X,), "buffer kept in forward"),
    Counter: ((X,), "the attribute count from one call"),
    Plain: ((X,), "the attribute plain from one call"),
    Growing: ((X,), "the attribute seen from one call"),
    Dropped: ((X,), "draws random numbers"),
    Random: ((X,), "draws random numbers"),
    NumpyRandom: ((X,), "draws random numbers"),
    Clock: ((X,), "reads a clock"),
    Exporting: ((X,), "asks whether it is being exported"),
    Encoder: ((torch.randn(2, 4, 32), PADDED), "fused path of nn.TransformerEncoder"),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_what_a_trace_freezes_is_refused_with_its_cause(kind, tmp_path):
    example, message = FROZEN[kind]
    with pytest.raises(ExportError, match=message):
        save(made(kind), tmp_path / "m.pt", example)
    with pytest.raises(ExportError, match=message):
        export(made(kind), tmp_path / "m.onnx", example_inputs=example)
    assert not list(tmp_path.iterdir())


class Careless(Layer):
    """Counts its calls, notes what it saw and draws a number; no output depends on any of it."""

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.seen.append(torch.rand(2))
        self.kept.copy_(x.mean().expand(1, 6, 32))
        return self.a(x) + self.kept[:, 0]


def test_control_what_no_output_depends_on_is_no_ground_of_refusal(tmp_path):
    model = made(Careless)
    save(model, tmp_path / "m.pt", (X,))
    expected = model(X)
    assert torch.allclose(load(tmp_path / "m.pt")(X), expected)


@pytest.mark.parametrize("kind", [Cache, Reassigned, Counter, Plain, Growing, Careless])
def test_the_caller_s_model_is_left_as_it_was(kind, tmp_path):
    model = made(kind).train()
    example = FROZEN.get(kind, ((X,), ""))[0]
    before = {name: value.clone() for name, value in model.named_buffers()}
    with contextlib.suppress(ExportError):
        save(model, tmp_path / "m.pt", example)
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert (model.count, model.seen, model.training) == (0, [], True)
    assert not model.plain.any()


class Two(Layer):
    def forward(self, x, y):
        return self.a(x) - self.kept.sum() + 3 * y


@pytest.mark.parametrize("example", [(X, X), (X.expand(2, 32), X[:]), (X[:1].expand(4, 32),) * 2])
def test_one_tensor_given_for_two_inputs_is_two_inputs(example, tmp_path):
    model, y = made(Two), torch.randn(2, 32)
    save(model, tmp_path / "m.pt", example)
    assert torch.allclose(load(tmp_path / "m.pt")(X, y), model(X, y))
    assert not torch.allclose(load(tmp_path / "m.pt")(X, y), model(X, X))


MARKER = 12345.678


class Views(nn.Module):
    """A parameter, a buffer and a constant that are slices of larger storages."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32)
        hidden = torch.full((50, 32), MARKER)
        hidden[:3] = 1
        self.w = nn.Parameter(hidden[:1])
        self.register_buffer("b", hidden[1])
        self.plain = hidden[2]

    def forward(self, x):
        return self.a(x) * self.w + self.b + self.plain


FORMS = ["onnx", "ort", "torchscript", "lite", "pt2"]


def test_a_file_holds_no_bytes_from_behind_what_was_given(tmp_path):
    marker = np.float32(MARKER).tobytes()
    data = torch.full((100, 32), MARKER)
    data[:2] = X
    model = compress(Views(), 4, min_params=512).eval()
    save(model, tmp_path / "m.pt", (data[:2],))
    files = {"archive": tmp_path / "m.pt"}
    for form in FORMS:
        files[form] = tmp_path / f"m.{form if form == 'ort' else 'of_' + form}"
        export(model, files[form], to=form, example_inputs=(data[:2],), verify=False)
        export(
            load(files["archive"]), files[form].with_name(f"again.{files[form].name}"), to=form, verify=False
        )
    for path in tmp_path.iterdir():
        assert marker not in path.read_bytes(), path.name


def test_control_torch_itself_writes_what_is_behind_a_slice(tmp_path):
    model = compress(Views(), 4, min_params=512).eval()
    torch.export.save(torch.export.export(model, (X,)), tmp_path / "m.pt2")
    assert np.float32(MARKER).tobytes() in (tmp_path / "m.pt2").read_bytes()


def test_an_example_that_needs_a_gradient(tmp_path):
    save(made(Two), tmp_path / "m.pt", (X.clone().requires_grad_(), X))
    samples = load(tmp_path / "m.pt").program.example_inputs
    assert not any(value.requires_grad for value in samples[0])


class Gradients(Layer):
    def forward(self, x):
        return self.a(x) * (2 if torch.is_grad_enabled() else 1)


class RequiresGrad(Layer):
    def forward(self, x):
        found = self.a(x)
        return found * 2 if found.requires_grad else found


class Inference(Layer):
    def forward(self, x):
        return self.a(x) * (2 if torch.is_inference_mode_enabled() else 1)


class Compiling(Layer):
    """Knows the question under a name of its own."""

    def forward(self, x):
        return self.a(x) * (2 if is_compiling() else 1)


MODES = {
    Gradients: "something else with gradients",
    RequiresGrad: "something else with gradients",
    Inference: "something else in torch.inference_mode",
    Compiling: "asks whether it is being exported or compiled",
}


@pytest.mark.parametrize("kind", MODES)
def test_a_branch_on_how_the_module_is_called_is_refused(kind, tmp_path):
    with pytest.raises(ExportError, match=MODES[kind]):
        save(made(kind), tmp_path / "m.pt", (X,))
    with pytest.raises(ExportError, match=MODES[kind]):
        export(made(kind), tmp_path / "m.onnx", example_inputs=(X,))


class Scripting(Layer):
    """Asks what is false for a caller and for the trace alike."""

    def forward(self, x):
        other = torch.jit.is_scripting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
        return self.a(x) * (2 if other else 1)


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_control_what_no_caller_sees_is_no_ground_of_refusal(to, tmp_path):
    assert export(made(Scripting), tmp_path / "m.x", to=to, example_inputs=(X,)).passed


class InTraining(Layer):
    def forward(self, x):
        return self.a(x) * (2 if self.training else 1)


def test_a_module_given_in_training_mode_is_told(tmp_path):
    model = made(InTraining)
    told = "given in training mode"
    report = export(model, tmp_path / "m.onnx", example_inputs=(X,), verify=False)
    assert not any(told in text for text in report.warnings)
    save(model.train(), tmp_path / "m.pt", (X,))
    report = export(load(tmp_path / "m.pt"), tmp_path / "m.onnx", verify=False)
    assert any(told in text for text in report.warnings)
    assert model.training


def test_numbers_in_float64_stay_float64(tmp_path):
    class Doubles(Layer):
        def forward(self, x):
            wide = x.double()
            return self.a(x), wide * 0.1, wide.clamp(-0.1, 0.3), torch.full((2, 1), 0.1).double() + wide

    assert export(made(Doubles), tmp_path / "m.onnx", example_inputs=(X,)).passed
