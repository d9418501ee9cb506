"""RzLinear: from live modules, state dicts with facts, and the variants that carry its name."""

from __future__ import annotations

import json

import pytest
import research_models as research
import torch
from torch import nn
from vectors.make_vectors import RESEARCH, sha256

from roast_export import LoadError, export, load
from roast_export.families import rzlinear_numbers, rzlinear_one_level
from roast_export.importers import convert

TABLES = json.loads(RESEARCH.read_text(encoding="utf-8"))["rzlinear"]


class Net(nn.Module):
    """Two layers over one array, with seeds 1367 and 1024."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        array = nn.Parameter(torch.randn(3000))
        self.a = research.RzLinear(70, 100, array, seed=1367)
        self.b = research.RzLinear(100, 33, array, bias=False, init_factor=1.0)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class DenseNet(nn.Module):
    """What a factory builds for its state dict."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(70, 100)
        self.b = nn.Linear(100, 33, bias=False)

    forward = Net.forward


FACTS = {"layers": {"a": {"scale": 0.25, "seed": 1367}, "b": {"scale": 1.0, "seed": 1024}}}
X = torch.randn(4, 70, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t['in_features']}x{t['out_features']}")
def test_the_fixture_makes_the_research_tables(table):
    array = nn.Parameter(torch.arange(table["n_memory"], dtype=torch.float32))
    layer = research.RzLinear(table["in_features"], table["out_features"], array, seed=table["seed"])
    assert layer._random_numbers.tolist() == table["random_numbers"] == rzlinear_numbers(table["seed"])
    assert sha256(layer.dense().detach().long().numpy()) == table["index_sha256"]


def test_a_live_model_is_converted(tmp_path):
    model = Net()
    expected = model(X)
    converted, report = convert(model)
    assert torch.allclose(converted(X), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(converted(X + 1), expected)
    assert "seed 1367" in str(report)
    assert [layer.verdict for layer in report.layers] == ["by formula"] * 2
    assert converted.a.virtual["weight"].memory is converted.b.virtual["weight"].memory
    assert export(converted, tmp_path / "m.onnx", example_inputs=(X,)).passed
    for portable in (False, True):
        options = {"to": "torchscript", "portable": portable, "example_inputs": (X,)}
        assert export(converted, tmp_path / "m.ts", **options).passed


def test_a_state_dict_loads_with_seeds(tmp_path):
    model = Net()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    opened = load(tmp_path / "m.pt", model=f"{__name__}:DenseNet", facts=FACTS)
    assert torch.allclose(opened(X), model(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"layers": {"a": {"scale": 0.25}}}, "its hash numbers are not in a state dict"),
        ({"defaults": {"seed": 1024}}, "its init_factor is not in a state dict"),
        ({"defaults": {"seed": 1, "scale": 1, "random_numbers": [7] * 8}}, "does not give its hash numbers"),
        ({"defaults": {"scale": 1, "random_numbers": [7, 1, 2, 3]}}, "a tuned tile that no file stores"),
    ],
)
def test_a_missing_fact_is_named(tmp_path, facts, message):
    torch.save(Net().state_dict(), tmp_path / "m.pt")
    with pytest.raises(LoadError) as refusal:
        load(tmp_path / "m.pt", model=f"{__name__}:DenseNet", facts=facts)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (lambda m: setattr(m, "_is_hnet", True), None, "a hash of its own"),
        (lambda m: None, {"defaults": {"scale": 0.5}}, "the module 0.25"),
        (lambda m: None, {"defaults": {"tile": [16, 64]}}, "tiles of 32x64"),
        (lambda m: setattr(m, "_hashed_weight", m._hashed_weight[:2000]), None, "use a smaller tile"),
        (lambda m: setattr(m, "_hashed_weight", m._hashed_weight.half()), None, "is float16"),
    ],
)
def test_contradictions_and_other_variants_are_refused(change, facts, message):
    layer = research.RzLinear(70, 100, torch.randn(3000))
    change(layer)
    with pytest.raises(LoadError) as refusal:
        convert(layer, facts)
    assert message in str(refusal.value)


def test_the_one_level_variant_takes_its_tile():
    numbers = [2038074743, 11, 222, 3333]
    layer = research.RzLinear(70, 100, torch.randn(3000), init_factor=1.0, bias=False)
    layer._random_numbers = torch.tensor(numbers, dtype=torch.int32)
    layer.forward = None
    converted, _ = convert(layer, {"defaults": {"tile": [16, 32]}})
    m = rzlinear_one_level(70, 100, 3000, numbers, (16, 32))
    r, c = 33, 71
    start = (r // 16 * 3333 + c // 32 * 222 + 11) % numbers[0] % (3000 - 512)
    assert m.indices()[c, r] == start + r % 16 * 32 + c % 32
    memory = layer._hashed_weight.numpy()
    assert torch.equal(converted.weight, torch.from_numpy(m.weight(memory)))
