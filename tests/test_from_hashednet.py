"""HashedNet ports: a table without a formula, kept dense on demand; other hashes refused by name."""

from __future__ import annotations

import pytest
import research_models as research
import torch
from torch import nn

from roast_export import LoadError, load
from roast_export.importers import convert

X = torch.randn(3, 30, generator=torch.Generator().manual_seed(1))


def test_a_hashed_layer_is_refused_with_the_costs():
    with pytest.raises(LoadError) as refusal:
        convert(nn.Sequential(research.HashLinear(30, 20, 100)))
    for part in ("HashLinear", "without a formula", "dense 2,400 B", "--keep-dense"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("by_facts", [False, True])
def test_it_is_kept_dense_on_demand(by_facts):
    model = nn.Sequential(research.HashLinear(30, 20, 100))
    expected = model(X)
    facts = {"layers": {"0": {"dense": True}}} if by_facts else None
    converted, report = convert(model, facts, keep_dense=not by_facts)
    assert torch.equal(converted(X), expected)
    assert report.layers[0].verdict == "dense"


def test_a_state_dict_lacks_the_table(tmp_path):
    torch.save(nn.Sequential(research.HashLinear(30, 20, 100)).state_dict(), tmp_path / "m.pt")
    with pytest.raises(LoadError, match="idxW is an attribute"):
        load(tmp_path / "m.pt", model=f"{__name__}:dense")


def dense():
    return nn.Sequential(nn.Linear(30, 20))


@pytest.mark.parametrize(
    ("name", "attribute", "message"),
    [
        ("RobeEmbedding", "table", "multiplies and shifts"),
        ("HashNetEmbedding", "table", "multiplies and shifts"),
        ("HashConv2d", "shared_weight", "the sum of two maps"),
        ("HashLinear", "shared_weight", "the sum of two maps"),
    ],
)
def test_other_hashes_are_refused_by_name(name, attribute, message):
    layer = type(name, (nn.Module,), {})()
    setattr(layer, attribute, nn.Parameter(torch.zeros(50)))
    with pytest.raises(LoadError) as refusal:
        convert(nn.Sequential(layer), keep_dense=True)
    assert name in str(refusal.value)
    assert message in str(refusal.value)


def test_control_an_unrelated_class_of_that_name_is_left_alone():
    layer = type("HashLinear", (nn.Linear,), {})(3, 4)
    with pytest.raises(LoadError, match="no layer of this model"):
        convert(nn.Sequential(layer))
