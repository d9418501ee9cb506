"""ROBE and UMA tables: both classes, many tables over one array, padding, bags, state dicts."""

from __future__ import annotations

import json

import pytest
import research_models as research
import torch
from torch import nn
from vectors.make_vectors import RESEARCH, sha256

from roast_export import LoadError, load
from roast_export.export import export
from roast_export.families import robe_numbers
from roast_export.importers import convert

TABLES = json.loads(RESEARCH.read_text(encoding="utf-8"))["uma"]


class Net(nn.Module):
    """26 tables of both classes over one array; val_offset counts the rows before each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        array, offset = nn.Parameter(torch.randn(4000)), 0
        self.tables = nn.ModuleList()
        for k in range(26):
            rows = 50 + 7 * k
            if k % 3:
                made = research.HashedEmbeddingBag(
                    rows, 16, array, offset, uma_chunk_size=8, padding_idx=3 if k % 2 else None
                )
            else:
                made = research.HashedEmbeddingCPU(rows, 16, array, offset, chunk=8)
            self.tables.append(made)
            offset += rows

    def forward(self, ids):
        return sum(table(ids[:, k]) for k, table in enumerate(self.tables))


class DenseNet(nn.Module):
    """What a factory builds for its state dict."""

    def __init__(self):
        super().__init__()
        tables = (nn.Embedding(50 + 7 * k, 16, padding_idx=3 if k % 3 and k % 2 else None) for k in range(26))
        self.tables = nn.ModuleList(tables)

    forward = Net.forward


def offsets() -> dict:
    running = {f"tables.{k}": {"val_offset": sum(50 + 7 * j for j in range(k))} for k in range(26)}
    return {"defaults": {"chunk": 8}, "layers": running}


def ids():
    found = torch.randint(0, 50, (5, 26), generator=torch.Generator().manual_seed(2))
    found[0] = 3
    return found


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"Z={t['chunk']}")
def test_the_fixture_makes_the_research_tables(table):
    numbers = research.robe_numbers(table["seed"], 50)
    assert numbers[:5].tolist() == table["random_numbers"]
    assert numbers[:4].tolist() == robe_numbers(table["seed"])
    array = torch.arange(table["n_memory"])
    rows = torch.arange(table["num_embeddings"])
    made = research.robe_rows(rows, array, numbers, table["val_offset"], table["chunk"], table["dim"])
    assert sha256(made.numpy()) == table["index_sha256"]


def test_26_tables_on_one_array_are_converted_bit_by_bit():
    model = Net()
    expected = model(ids())
    converted, report = convert(model)
    assert torch.equal(converted(ids()), expected)
    assert len({id(t.virtual["weight"].memory) for t in converted.tables}) == 1
    assert report.array_bytes == 16_000
    assert len(report.layers) == 26


@pytest.mark.parametrize("form", ["onnx", "torchscript", "torchscript --portable"])
def test_26_tables_on_one_array_are_exported(tmp_path, form):
    converted, _ = convert(Net())
    target, _, portable = form.partition(" ")
    report = export(converted, tmp_path / "m", to=target, portable=bool(portable), example_inputs=(ids(),))
    assert report.passed
    assert report.array_bytes == 16_000
    assert len(report.layers) == 26


def test_padding_rows_are_zeros_and_bags_are_sums():
    torch.manual_seed(0)
    model = research.HashedEmbeddingBag(40, 12, nn.Parameter(torch.randn(500)), 7, padding_idx=2)
    flat, starts = torch.tensor([1, 2, 5, 39, 2]), torch.tensor([0, 2])
    expected = [model(flat), model(flat, starts), model(flat[None])]
    converted, _ = convert(model)
    actual = [converted(flat), converted(flat, starts), converted(flat[None])]
    for a, b in zip(expected, actual, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not converted(flat)[1].any()
    assert converted(flat)[0].any()


def test_a_state_dict_loads_with_offsets(tmp_path):
    model = Net()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    opened = load(tmp_path / "m.pt", model=f"{__name__}:DenseNet", facts=offsets())
    assert torch.equal(opened(ids()), model(ids()))


def test_a_missing_offset_is_named_with_the_likely_one(tmp_path):
    facts = offsets()
    del facts["layers"]["tables.4"]
    torch.save(Net().state_dict(), tmp_path / "m.pt")
    with pytest.raises(LoadError, match=r"tables\.4'.*val_offset.*it is 242"):
        load(tmp_path / "m.pt", model=f"{__name__}:DenseNet", facts=facts)


def cpu_table():
    return research.HashedEmbeddingCPU(40, 12, nn.Parameter(torch.randn(500)), 7, chunk=4)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (cpu_table, lambda m: m.helper_Eidx_base.data.fill_(1), "helper tables are not those of Z"),
        (cpu_table, lambda m: m.helper_E1sR.data.add_(1), "helper_E1sR does not agree"),
        (cpu_table, lambda m: setattr(m, "mode", "mean"), "its mode is 'mean'"),
        (cpu_table, lambda m: setattr(m, "norm", 2.0), "divides its output"),
        (cpu_table, lambda m: setattr(m, "padding_idx", 40), "padding_idx 40 is not a row"),
        (cpu_table, lambda m: setattr(m, "val_offset", -5), "origin"),
        (
            cpu_table,
            lambda m: setattr(m, "random_numbers", nn.Parameter(m.random_numbers[:2], requires_grad=False)),
            "fewer than 4 numbers",
        ),
        (cpu_table, lambda m: setattr(m, "weight", nn.Parameter(m.weight.double())), "is float64"),
    ],
)
def test_contradictions_are_refused(make, change, message):
    model = make()
    change(model)
    with pytest.raises(LoadError) as refusal:
        convert(model)
    assert message in str(refusal.value)


def test_a_seed_that_gives_other_numbers_is_refused():
    with pytest.raises(LoadError, match="seed 7 does not give"):
        convert(cpu_table(), {"defaults": {"seed": 7}})
    assert "seed 1024 agrees" in str(convert(cpu_table(), {"defaults": {"seed": 1024}})[1])
