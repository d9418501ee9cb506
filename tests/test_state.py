"""What forward keeps between calls: inputs and outputs of a file, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import helper
from torch import nn
from torch.nn import functional as F

from roast_export import cli, compress, create_session, export, load, save, verify
from roast_export.errors import ExportError, InputError, VerificationError

X = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32)
        self.keep()

    def keep(self) -> None:
        """Make what forward writes into."""


class Cache(Layer):
    def keep(self):
        self.register_buffer("k", torch.zeros(1, 6, 32))
        self.register_buffer("v", torch.zeros(1, 6, 32))

    def forward(self, x, pos):
        found = self.a(x)
        self.k.index_copy_(1, pos, found)
        self.v.index_copy_(1, pos, found * 2)
        return torch.softmax(x @ self.k.mT, -1) @ self.v


class Position(Layer):
    """A cache, and a counter of int64 that says where the next key goes."""

    def keep(self):
        self.register_buffer("k", torch.zeros(1, 8, 32))
        self.register_buffer("n", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        self.k.index_copy_(1, self.n, self.a(x))
        self.n += 1
        left = (x @ self.k.mT).masked_fill(torch.arange(8) >= self.n, -1e9)
        return torch.softmax(left, -1) @ self.k, (x.sum(-1),)


class RunningMean(Layer):
    """Batch normalisation that goes on in training mode."""

    def keep(self):
        self.norm = nn.BatchNorm1d(32)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x):
        return self.norm(self.a(x)) + self.norm.running_mean


class Streaming(nn.Module):
    """A convolution over a stream: the last two places of a call stand before the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv1d(32, 32, 3)
        self.register_buffer("past", torch.zeros(1, 32, 2))

    def forward(self, x):
        whole = torch.cat([self.past, x], -1)
        self.past = whole[..., -2:]
        return self.c(whole)


class TwoDtypes(Layer):
    def keep(self):
        self.register_buffer("n", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.full((2, 32), 0.5, dtype=torch.float64))

    def forward(self, x):
        self.n.add_(1)
        self.mean.mul_(0.9).add_(x.double() * 0.1)
        return {"y": self.a(x) + self.mean.float() * self.n}


class Attribute(Layer):
    """A tensor that is no buffer."""

    def keep(self):
        self.h = torch.zeros(2, 32)

    def forward(self, x):
        self.h = torch.tanh(self.a(x) + self.h)
        return self.h


class Shared(nn.Module):
    """One tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Layer(), Layer()
        self.one.register_buffer("k", torch.zeros(2, 32))
        self.two.register_buffer("k", self.one.k)

    def forward(self, x):
        self.one.k.add_(x)
        return self.one.a(x) + self.two.a(self.two.k)


class IntoItsInput(Layer):
    def forward(self, x, cache):
        cache.add_(self.a(x))
        return x @ cache.mT


POSITIONS = torch.tensor([0, 1])
EXAMPLES = {
    Cache: (X[None], POSITIONS),
    Position: (X[None, :1],),
    RunningMean: (X,),
    Streaming: (torch.randn(1, 32, 5),),
    TwoDtypes: (X,),
    Attribute: (X,),
    Shared: (X,),
    IntoItsInput: (X, torch.zeros(2, 32)),
}


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return compress(kind().eval(), 4, min_params=512)


def in_a_row(model, path, example, calls=3):
    """The outputs of a file in plain onnxruntime, call after call, each with the state of the one before."""
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    state, session = json.loads(entries["roast.state"]), create_session(path)
    names = [entry.name for entry in session.get_inputs()]
    buffers = {name.replace(".", "_"): value for name, value in model.named_buffers()}
    held = {name: buffers.get(name, getattr(model, "h", X)).numpy().copy() for name in state}
    for k in range(calls):
        inputs = [x * (k + 1) if x.is_floating_point() else x for x in example]
        given = [name for name in names if name not in state]
        feeds = dict(zip(given, (x.numpy() for x in inputs), strict=True)) | held
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
        held = {name: outputs.pop(output) for name, output in state.items()}
        yield inputs, list(outputs.values())


def check_in_a_row(model, path, example):
    with torch.no_grad():
        for inputs, found in in_a_row(model, path, example):
            leaves = torch.utils._pytree.tree_leaves(model(*inputs))
            for value, other in zip(found, leaves, strict=True):
                np.testing.assert_allclose(value, other.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in EXAMPLES if kind not in (Cache, IntoItsInput)])
def test_state_goes_in_and_comes_out(kind, tmp_path):
    """In plain onnxruntime, against the module's own calls one after the other."""
    model, example = made(kind), EXAMPLES[kind]
    report = export(model, tmp_path / "m.onnx", example_inputs=example, state="inputs", verify=False)
    assert any("each later call the output of the one before" in text for text in report.warnings)
    check_in_a_row(model, tmp_path / "m.onnx", example)


def test_an_archive_takes_its_state_along(tmp_path):
    model, example = made(Cache), EXAMPLES[Cache]
    save(model, tmp_path / "m.pt", example, state="inputs")
    report = export(load(tmp_path / "m.pt"), tmp_path / "m.onnx")
    assert report.passed
    cases = {check.case for check in report.checks}
    assert "golden call 3 in a row, with the file's own state" in cases
    assert any("give the first call a tensor of 0" in text for text in report.warnings)
    check_in_a_row(model, tmp_path / "m.onnx", example)


@pytest.mark.parametrize("to", ["ort", "torchscript", "pt2"])
def test_every_target_takes_state(to, tmp_path):
    path = tmp_path / f"m.{to}"
    report = export(made(Position), path, to=to, example_inputs=EXAMPLES[Position], state="inputs")
    assert report.passed
    assert any("call 3 in a row, with the file's own state" in check.case for check in report.checks)


def test_control_a_wrong_state_output_is_refused(tmp_path):
    """The new counter is the old one: every output of a single first call is right."""
    model, path = made(Position), tmp_path / "m.onnx"
    export(model, path, example_inputs=EXAMPLES[Position], state="inputs", verify=False)
    good = verify(model, path, example_inputs=EXAMPLES[Position])
    assert good.passed
    proto = onnx.load(path)
    last = next(node for node in proto.graph.node if "n_out" in node.output)
    last.CopyFrom(helper.make_node("Identity", ["n"], ["n_out"]))
    onnx.save(proto, path)
    wrong = verify(model, path, example_inputs=EXAMPLES[Position])
    assert not wrong.passed
    assert "n_out" in {check.name for check in wrong.failures}


def test_what_forward_writes_into_an_input_is_told_or_an_output(tmp_path):
    model, example = made(IntoItsInput), EXAMPLES[IntoItsInput]
    report = export(model, tmp_path / "m.onnx", example_inputs=example)
    assert any("writes into the input cache" in text for text in report.warnings)
    report = export(model, tmp_path / "s.onnx", example_inputs=example, state="inputs")
    assert report.passed
    assert any("the output cache_out is what it holds" in text for text in report.warnings)
    assert not example[1].any()


class NoneAtFirst(Layer):
    def keep(self):
        self.register_buffer("k", None)

    def forward(self, x):
        self.k = x if self.k is None else self.k + x
        return self.a(self.k)


class Growing(Layer):
    def keep(self):
        self.register_buffer("k", torch.zeros(1, 32))

    def forward(self, x):
        self.k = torch.cat([self.k, x])
        return self.a(self.k).sum(0)


class InAList(Layer):
    def keep(self):
        self.k = [torch.zeros(2, 32)]

    def forward(self, x):
        self.k[0] = self.k[0] + x
        return self.a(self.k[0])


class Views(Layer):
    def keep(self):
        self.register_buffer("k", torch.zeros(2, 2, 32))
        self.register_buffer("v", self.k[0])

    def forward(self, x):
        self.k.add_(x)
        return self.a(self.v)


class AlsoANumber(Layer):
    def keep(self):
        self.register_buffer("k", torch.zeros(2, 32))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.k.add_(x)
        return self.a(self.k) * self.calls


class Dropout(Layer):
    def forward(self, x):
        return F.dropout(self.a(x), training=self.training)


class FrozenParameter(Layer):
    def keep(self):
        self.w = nn.Parameter(torch.zeros(2, 32), requires_grad=False)

    def forward(self, x):
        self.w.add_(x)
        return self.a(self.w)


class Kept:
    def __init__(self) -> None:
        self.k = torch.zeros(2, 32)


class InAnObject(Layer):
    def keep(self):
        self.cache = Kept()

    def forward(self, x):
        self.cache.k = self.cache.k + x
        return self.a(self.cache.k)


class InNumpy(Layer):
    def keep(self):
        self.n = np.zeros(1)

    def forward(self, x):
        self.n += 1
        return self.a(x) * float(self.n[0])


UNFIT = {
    FrozenParameter: (ExportError, "w is a parameter"),
    InAnObject: (ExportError, "cache.k lies in"),
    InNumpy: (ExportError, "n is a ndarray"),
    NoneAtFirst: (ExportError, "None before the first call"),
    Growing: (ExportError, "float32.5, 32. where it was float32.1, 32."),
    InAList: (ExportError, "k is a list"),
    Views: (ExportError, "share memory"),
    AlsoANumber: (ExportError, "calls is a int"),
    Dropout: (InputError, "writes into no buffer"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_an_input_is_refused_with_a_next_step(kind, tmp_path):
    error, message = UNFIT[kind]
    model = made(kind)
    with pytest.raises(error, match=message):
        export(model, tmp_path / "m.onnx", example_inputs=(X,), state="inputs")
    assert not list(tmp_path.iterdir())
    if kind is FrozenParameter:
        assert not model.w.any()
    elif kind is InAnObject:
        assert not model.cache.k.any()
    elif kind is InNumpy:
        assert model.n == 0


class Overwritten(Layer):
    """Writes what it was given, which in the example is what was there before."""

    def keep(self):
        self.register_buffer("k", torch.zeros(2, 32))

    def forward(self, x):
        found = self.k + self.a(x)
        self.k.copy_(x)
        return found


def test_a_write_that_the_example_does_not_show_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"buffer k in forward.*--state inputs"):
        export(made(Overwritten), tmp_path / "m.onnx", example_inputs=(torch.zeros(2, 32),))


def test_the_running_mean_of_the_caller_is_left_as_it_was(tmp_path):
    """batch_norm writes without telling torch's version counter."""
    model = made(RunningMean)
    save(model, tmp_path / "m.pt", (X,), state="inputs")
    assert not model.norm.running_mean.any()
    assert model.norm.num_batches_tracked == 0


def test_an_archive_of_torch_s_own_with_state_is_refused(tmp_path):
    program = torch.export.export(made(Position), EXAMPLES[Position])
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(ExportError, match="archive's trace writes into the buffers k, n"):
        export(load(tmp_path / "m.pt2"), tmp_path / "m.onnx")


def test_the_command_takes_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(made(Cache), "m.pt")
    np.savez("in.npz", x=X[None].numpy(), pos=POSITIONS.numpy())
    arguments = ["m.pt", "--trust", "--inputs", "in.npz"]
    refused = CliRunner().invoke(cli.export_command, arguments)
    assert refused.exit_code == 1
    assert "--state inputs" in refused.output
    done = CliRunner().invoke(cli.export_command, [*arguments, "--state", "inputs"])
    assert done.exit_code == 0, done.output


def test_control_a_proof_of_state_that_is_off_fails(tmp_path):
    """An archive whose golden values are of another state."""
    save(made(Position), tmp_path / "m.pt", EXAMPLES[Position], state="inputs")
    model = load(tmp_path / "m.pt")
    row = next(golden for golden in model.goldens if golden.name == "call 2 in a row")
    place = [o.dtype for o in row.outputs].index(torch.int64)
    row.outputs[place] += 1
    with pytest.raises(VerificationError):
        export(model, tmp_path / "m.onnx")
