"""Checkpoints as training loops leave them: which file, which entry, which prefix, which wrapper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import roast_export
from roast_export.cli import compress_command
from roast_export.compress import compress
from roast_export.errors import LoadError

WIDTH = 64


class Net(nn.Module):
    def __init__(self, width: int = WIDTH, depth: int = 1) -> None:
        super().__init__()
        self.enc = nn.Linear(16, width)
        self.more = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.enc(x))
        for layer in self.more:
            x = torch.relu(layer(x))
        return self.out(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, WIDTH)
        self.head = nn.Linear(WIDTH, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))


class Lit(nn.Module):
    """What a LightningModule is to a checkpoint: the net below one name, beside a loss with a weight."""

    def __init__(self, width: int, lr: float = 1e-3) -> None:
        super().__init__()
        self.model = Net(width)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(8))
        self.lr = lr

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def fails() -> nn.Module:
    raise RuntimeError("no such file: vocabulary.txt")


READY = Net()
HERE = __name__
State = dict[str, Any]


def values(model: nn.Module) -> State:
    """Its tensors, each a little off what a factory would draw."""
    return {name: value + 0.125 for name, value in model.state_dict().items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def loaded(path: Path, factory: str = "Net") -> nn.Module:
    return roast_export.load(path, model=f"{HERE}:{factory}")


def assert_holds(model: nn.Module, state: State) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    first = next(iter(state))
    assert not torch.equal(model.state_dict()[first], state[first] + 1)


WRITERS = {
    "bin": lambda path, state: torch.save(state, path),
    "safetensors": lambda path, state: save_file(state, path),
    "lightning": lambda path, state: torch.save(
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": under("model.", state) | {"loss.weight": torch.ones(8)},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
            "hyper_parameters": {"width": WIDTH, "lr": 0.1, "optimizer": "adam"},
        },
        path,
    ),
    "training loop": lambda path, state: torch.save(
        {"step": 7, "ema": None, "generator_weights": state, "optimizer": {"state": {}, "param_groups": []}},
        path,
    ),
    "two models": lambda path, state: torch.save(
        {"state_dict_ema": values(Net()), "state_dict": state}, path
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_checkpoint_opens_with_its_factory(kind, tmp_path, caplog):
    state, path = values(Net()), tmp_path / "model.ckpt"
    WRITERS[kind](path, state)
    assert_holds(loaded(path), state)
    if kind == "lightning":
        assert "entries without 'model.' are left out: loss.weight" in caplog.text
    if kind == "two models":
        assert "'state_dict_ema' left out" in caplog.text


def test_hyper_parameters_are_arguments_of_the_class(tmp_path, caplog):
    lit = Lit(32)
    torch.save(
        {"state_dict": values(lit), "hyper_parameters": {"width": 32, "other": 1}}, tmp_path / "a.ckpt"
    )
    assert_holds(loaded(tmp_path / "a.ckpt", "Lit"), values(lit))
    assert "hyper_parameters: width" in caplog.text
    torch.save({"state_dict": values(lit)}, tmp_path / "b.ckpt")
    with pytest.raises(LoadError, match=r"fails: .*missing 1 required .*'width'; give a function without"):
        loaded(tmp_path / "b.ckpt", "Lit")


@pytest.mark.parametrize("writer", [save_file, torch.save], ids=["safetensors", "bin"])
def test_shards_open_by_their_index(writer, tmp_path):
    state, suffix = values(Net()), "safetensors" if writer is save_file else "bin"
    names = [f"model-{k}.{suffix}" for k in (1, 2)]
    for k, name in enumerate(names):
        writer(dict(list(state.items())[k::2]), tmp_path / name)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {key: names[k % 2] for k, key in enumerate(state)}}))
    assert_holds(loaded(index), state)
    (tmp_path / names[1]).unlink()
    with pytest.raises(LoadError, match=r"names model-2\.\w+, which is not beside it; copy all of its files"):
        loaded(index)


def test_a_tied_tensor_may_be_there_once(tmp_path):
    state = values(Tied())
    save_file({"table.weight": state["table.weight"]}, tmp_path / "model.safetensors")
    model = loaded(tmp_path / "model.safetensors", "Tied")
    assert torch.equal(model.head.weight, state["table.weight"])
    save_file({"other.weight": state["table.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"Missing .*table\.weight"):
        loaded(tmp_path / "model.safetensors", "Tied")


PREFIXES = [
    "module.", "_orig_mod.", "model.", "net.", "ema_model.", "module._orig_mod.", "_orig_mod.module.",
    "model._orig_mod.", "module.model.net.", "ema_model.module.", "backbone.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_left_out_and_told(prefix, tmp_path, caplog):
    state = values(Net())
    torch.save(under(prefix, state), tmp_path / "m.pt")
    assert_holds(loaded(tmp_path / "m.pt"), state)
    assert f"every name in the state dict began with {prefix!r}" in caplog.text


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod."])
def test_a_prefix_that_the_model_has_itself_stays(prefix, tmp_path):
    state = values(Lit(WIDTH))
    torch.save({"state_dict": under(prefix, state), "hyper_parameters": {"width": WIDTH}}, tmp_path / "m.pt")
    assert_holds(loaded(tmp_path / "m.pt", "Lit"), state)


def test_wrappers_inside_names_are_left_out(tmp_path):
    model = Net()
    model.enc = torch.compile(model.enc)
    model.more[0] = nn.DataParallel(model.more[0])
    state = values(model)
    assert {"enc._orig_mod.weight", "more.0.module.weight"} <= set(state)
    torch.save(state, tmp_path / "m.pt")
    found = loaded(tmp_path / "m.pt")
    assert torch.equal(found.enc.weight, state["enc._orig_mod.weight"])
    assert torch.equal(found.more[0].bias, state["more.0.module.bias"])


def test_two_prefixes_with_other_values_are_refused_by_name(tmp_path):
    state, other = values(Net()), values(Net())
    path = tmp_path / "m.pt"
    torch.save(under("model.", state) | under("ema_model.", state), path)
    assert_holds(loaded(path), state)
    torch.save(under("model.", state) | under("ema_model.", other), path)
    with pytest.raises(
        LoadError, match=r"'ema_model\.' before it and with 'model\.' before it.*write the ones"
    ):
        loaded(path)
    torch.save(state | under("ema_model.", other), path)
    with pytest.raises(LoadError, match=r"as it is and with 'ema_model\.' before it"):
        loaded(path)
    torch.save(state | {"enc.module.weight": state["enc.weight"]}, path)
    with pytest.raises(LoadError, match=r"'enc\.weight' and 'enc\.module\.weight' are both 'enc\.weight'"):
        loaded(path)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("fails", "fails: no such file: vocabulary.txt; give a function"),
        ("WIDTH", "is not callable"),
        ("Tied", r"Missing key\(s\) in state_dict: table.weight.*; the factory must build the module that"),
    ],
)
def test_what_does_not_fit_is_refused(factory, message, tmp_path):
    torch.save(values(Net()), tmp_path / "m.pt")
    with pytest.raises(LoadError, match=message):
        loaded(tmp_path / "m.pt", factory)


def test_a_module_may_stand_for_its_factory(tmp_path):
    state, before = values(READY), {k: v.clone() for k, v in READY.state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    assert_holds(loaded(tmp_path / "m.pt", "READY"), state)
    assert_holds(READY, before)


def parts_compiled() -> nn.Module:
    model = Net()
    model.enc = torch.compile(model.enc)
    return model


def test_wrapped_models_are_taken_as_what_is_inside(tmp_path):
    plain = compress(Net(), 4)
    wrapped = {
        "parallel": nn.DataParallel(Net()),
        "compiled": torch.compile(Net()),
        "both": nn.DataParallel(torch.compile(Net())),
        "averaged": torch.optim.swa_utils.AveragedModel(Net()),
        "parts": parts_compiled(),
    }
    for name, model in wrapped.items():
        made = compress(model, 4)
        assert set(made.state_dict()) == set(plain.state_dict()), name
        assert [row.name for row in roast_export.summary(made).rows] == [
            row.name for row in roast_export.summary(plain).rows
        ]
    assert isinstance(wrapped["parts"].enc, torch._dynamo.OptimizedModule)
    x, path = torch.randn(2, 16), tmp_path / "m.onnx"
    for wrap in (nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel):
        model = wrap(plain)
        roast_export.save(model, tmp_path / "m.pt", (x,))
        assert list(roast_export.load(tmp_path / "m.pt").roast_layers) == ["more.0.weight"]
    assert roast_export.export(torch.compile(plain), path, example_inputs=(x,)).passed
    with torch.no_grad():
        plain.out.bias += 1
    assert not roast_export.verify(nn.DataParallel(plain), path, example_inputs=(x,)).passed


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: {"epoch": 1, "model": m}])
def test_a_pickled_wrapper_opens_as_what_is_inside(wrap, tmp_path):
    net = Net()
    torch.save(wrap(net), tmp_path / "m.pt")
    found = roast_export.load(tmp_path / "m.pt", trust=True)
    assert type(found) is Net
    assert_holds(found, net.state_dict())


def test_the_command_takes_a_checkpoint_of_lightning(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": values(Lit(WIDTH)), "hyper_parameters": {"width": WIDTH}}, "a.ckpt")
    options = ["--ratio", "4", "--model", f"{HERE}:Lit", "--input", "x:float32[2,16]", "-o", "a.pt"]
    with pytest.raises(SystemExit) as done:
        compress_command.main(["a.ckpt", *options])
    assert done.value.code == 0, capsys.readouterr().err
    assert "was called with the checkpoint's hyper_parameters: width" in caplog.text
    assert list(roast_export.load("a.pt").roast_layers) == ["model.more.0.weight"]
