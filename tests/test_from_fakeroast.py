"""FakeRoast checkpoints: recovered, proved entry by entry, equal to the research module, damage caught."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import research_models as research
import torch
from torch import nn
from vectors.make_vectors import RESEARCH, sha256

from roast_export import ExportError, InputError, LoadError, compress, export, load, save, seeds, torch_ops
from roast_export.cli import export_command, inspect_command
from roast_export.importers import convert, survey
from roast_export.mapping import Sign
from roast_export.proof import Table
from roast_export.recover import Hints, NotRecovered, Recovered, recover

HERE = "research_models:"
TABLES = json.loads(RESEARCH.read_text(encoding="utf-8"))["fakeroast"]
LAYERS = {"mlp": "linear", "conv2d": "conv", "embedding": "embedding"}


@pytest.fixture(scope="module", autouse=True)
def fewer_seeds():
    """An eighth of the seeds, which holds all seeds of research.json, in an eighth of the time."""
    searched = seeds.SEARCHED
    seeds.SEARCHED = 1 << 17
    seeds._first_outputs.cache_clear()
    yield
    seeds.SEARCHED = searched
    seeds._first_outputs.cache_clear()


def table_of(t) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and sign table of one entry of research.json, made by the fixtures."""
    shape, block = tuple(t["shape"]), (t.get("block_k", 16), t.get("block_n", 8))
    layer = LAYERS.get(t.get("layer"), "linear")
    index = research.index_table(t["kind"], layer, shape, t["n_memory"], t["seed"], t.get("offset", 0), block)
    skip = 2 * index.numel() if t["kind"] == "random" else 0
    return index, research.sign_table(shape, t["seed"], skip)


def net(kind="pareto", **options):
    torch.manual_seed(0)
    return research.Net(kind, **options).eval()


def saved(tmp_path: Path, content) -> Path:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    return path


def output(model):
    """In aten operators: the library adds in another order, and these tests compare bits."""
    with torch.no_grad(), torch_ops.without_library():
        return model(**research.net_inputs())


# ---- Recover and prove ----


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_the_fixtures_make_the_research_tables(number):
    t = TABLES[number]
    index, sign = table_of(t)
    assert sha256(index.numpy()) == t["index_sha256"]
    assert sha256(sign.numpy().astype(np.int8)) == t["sign_sha256"]


@pytest.mark.parametrize("known", [True, False], ids=["seed known", "nothing known"])
@pytest.mark.parametrize("number", [0, 2, 4, 7, 8, 10, 16, 20, 28, 32, 35, 36, 37])
def test_a_research_table_is_recovered(number, known):
    t = TABLES[number]
    index, sign = table_of(t)
    offsets = (t.get("offset", 0),) if known else (0, 12345, 200000)
    hints = Hints(LAYERS.get(t.get("layer"), "linear"), seeds=(t["seed"],) if known else (), offsets=offsets)
    found = recover(Table(index.numpy(), sign.numpy(), t["n_memory"]), hints)
    assert isinstance(found, Recovered), found
    assert found.kind == t["kind"]
    assert sha256(found.mapping.indices()) == t["index_sha256"]
    assert sha256(found.mapping.signs()) == t["sign_sha256"]


def test_an_offset_that_nobody_knows_is_found():
    index = research.index_table("hashednet", "linear", (20, 30), 500, 7, offset=77_777)
    sign = research.sign_table((20, 30), 7)
    found = recover(Table(index.numpy(), sign.numpy(), 500), Hints("linear", seeds=(7,), total=100_000))
    assert isinstance(found, Recovered), found
    assert np.array_equal(found.mapping.indices(), index.numpy())


COEFFICIENTS = [1234567891, 987654321, 1357924681, 5]
"""Odd and below the prime, but of no seed that is searched."""


@pytest.mark.parametrize(
    ("kind", "layer", "shape", "slots"),
    [
        ("roast", "linear", (33, 70), 300),
        ("roast", "linear", (90, 70), 1000),
        ("roast", "embedding", (50, 12), 4096),
        ("roast", "conv", (8, 3, 3, 3), 100_000),
        ("pareto", "linear", (33, 70), 300),
        ("pareto", "linear", (33, 70), 1000),
        ("pareto", "linear", (33, 70), 2000),
        ("hashednet", "linear", (33, 70), 300),
        ("hashednet", "linear", (33, 70), 100_000),
    ],
)
def test_coefficients_of_no_seed_are_solved_from_the_table(kind, layer, shape, slots):
    index = research.index_table(kind, layer, shape, slots, 0, 4321, coefs=COEFFICIENTS)
    sign = research.sign_table(shape, 9)
    found = recover(Table(index.numpy(), sign.numpy(), slots), Hints(layer, offsets=(4321,), seeds=(9,)))
    assert isinstance(found, Recovered), found
    assert found.how.startswith("solved")
    assert found.mapping.sign is Sign.MT19937
    assert np.array_equal(found.mapping.indices(), index.numpy())
    assert np.array_equal(found.mapping.signs(), sign.numpy())


@pytest.mark.parametrize("place", [(0, 0), (16, 31), (32, 69)])
@pytest.mark.parametrize("number", [0, 3, 6, 36])
def test_one_changed_index_is_caught_with_its_place(number, place):
    t = TABLES[number]
    index, sign = table_of(t)
    place = tuple(min(p, d - 1) for p, d in zip(place, t["shape"], strict=True))
    index[place] = (index[place] + 1) % t["n_memory"]
    hints = Hints("linear", seeds=(t["seed"],), kinds=(t["kind"],), offsets=(t.get("offset", 0),))
    found = recover(Table(index.numpy(), sign.numpy(), t["n_memory"]), hints)
    assert isinstance(found, NotRecovered)
    assert "1 of" in found.reason
    assert f"[{place[0]}, {place[1]}]" in found.reason


def test_one_changed_sign_is_caught_with_its_place():
    index, sign = table_of(TABLES[3])
    sign[7, 11] *= -1
    hints = Hints("linear", seeds=(TABLES[3]["seed"],))
    found = recover(Table(index.numpy(), sign.numpy(), 1000), hints)
    assert isinstance(found, NotRecovered)
    assert "indices are proved" in found.reason
    assert "1 of 2,310 entries differ, the first at [7, 11]" in found.reason


# ---- Models ----


@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
@pytest.mark.parametrize(
    ("kind", "bits"),
    [("pareto", 64), ("roast", 64), ("roast", 32), ("hashednet", 32), ("random", 64), ("random", 32)],
)
def test_a_live_model_is_converted_bit_by_bit(kind, bits, local):
    model = net(kind, bits=bits, local=local)
    expected = output(model)
    weights = {n: m.WHelper() * m.scale for n, m in model.named_modules() if hasattr(m, "WHelper")}
    converted, report = convert(model)
    assert converted is model
    assert torch.equal(output(model), expected)
    for name, weight in weights.items():
        assert torch.equal(model.get_submodule(name).weight, weight)
    arrays = {id(module.virtual["weight"].memory) for module in (model.table, model.conv, model.last)}
    assert len(arrays) == (3 if local else 1)
    assert [layer.verdict for layer in report.layers] == [
        f"{layer.elements:,} of {layer.elements:,}" for layer in report.layers
    ]
    assert report.table_bytes == 12 * report.elements
    assert report.export_bytes == report.array_bytes + report.kept_bytes
    assert not hasattr(model, "roast_array") or local
    assert str(report).isascii()


def test_convolution_options_are_kept_and_padding_mode_ignored():
    torch.manual_seed(0)
    options = {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2, "padding_mode": "reflect"}
    model = nn.Sequential(research.FakeRoastConv2d(4, 6, (3, 2), kind="roast", **options)).eval()
    x = torch.randn(2, 4, 12, 12)
    expected = model(x)
    convert(model)
    assert torch.equal(model(x), expected)


def test_padding_idx_and_max_norm_are_ignored_as_in_the_research_forward():
    torch.manual_seed(0)
    model = research.FakeRoastEmbedding(40, 12, kind="pareto", padding_idx=0, max_norm=0.01)
    ids = torch.tensor([0, 3, 39])
    expected = model(ids)
    converted, _ = convert(model)
    assert torch.equal(converted(ids), expected)
    assert converted(ids)[0].abs().sum() > 0


@pytest.mark.parametrize("kind", ["random", "hashednet", "roast"])
def test_an_lstm_is_converted(kind):
    torch.manual_seed(0)
    model = research.FakeRoastLSTM(5, 12, kind=kind).eval()
    x = torch.randn(2, 7, 5)
    y, (h, c) = model(x)
    converted, _ = convert(model)
    z, (h2, c2) = converted(x)
    for expected, actual in ((y, z), (h, h2), (c, c2)):
        assert torch.allclose(expected, actual, atol=1e-6)
    assert not torch.allclose(converted(x + 1)[0], y)


def test_another_forward_under_the_same_name_is_refused():
    class FakeRoastLinear(research.FakeRoastLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(LoadError, match="its forward gives other outputs"):
        convert(FakeRoastLinear(20, 30, kind="pareto"))


def test_copies_of_an_array_become_one_if_they_are_equal():
    model = net()
    for module in (model.conv, model.last):
        module.WHelper.weight = nn.Parameter(model.roast_array.detach().clone())
    expected = output(model)
    _, report = convert(model)
    assert torch.equal(output(model), expected)
    assert report.array_bytes == 4 * 700
    assert "2 copies of an array" in str(report)


def test_control_copies_that_differ_stay_apart_and_are_named():
    model = net()
    model.last.WHelper.weight = nn.Parameter(model.roast_array.detach() + 1)
    expected = output(model)
    _, report = convert(model)
    assert torch.equal(output(model), expected)
    assert report.array_bytes == 2 * 4 * 700
    assert "hold arrays that differ" in str(report)


def permuted(model) -> None:
    """The tiles of one layer permuted without a seed, as the roast_mem mapper does."""
    generator = torch.Generator().manual_seed(1)
    index = model.first.WHelper.IDX
    index.data = index.flatten()[torch.randperm(index.numel(), generator=generator)].reshape(index.shape)


def test_a_map_without_a_formula_is_refused_with_the_alternatives():
    model = net("roast")
    permuted(model)
    before = list(model.state_dict())
    with pytest.raises(LoadError) as refusal:
        convert(model)
    text = str(refusal.value)
    for part in ("1 of 4", "'first'", "FakeRoastLinear", "roast_mem", "dense 3,840 B", "--keep-dense"):
        assert part in text
    assert list(model.state_dict()) == before, "a refusal must leave the model as it was"


def test_keep_dense_accepts_the_expanded_weight():
    model = net("roast")
    permuted(model)
    expected = output(model)
    _, report = convert(model, keep_dense=True)
    assert torch.equal(output(model), expected)
    assert [layer.verdict for layer in report.layers].count("dense") == 1
    assert type(model.first) is nn.Linear
    assert report.kept_bytes >= 4 * 40 * 24


def test_a_damaged_layer_is_named_and_others_are_not():
    model = net()
    with torch.no_grad():
        model.conv.WHelper.IDX[1, 2, 0, 1] += 1
    with pytest.raises(LoadError) as refusal:
        convert(model)
    assert "'conv'" in str(refusal.value)
    assert "[1, 2, 0, 1]" in str(refusal.value)
    assert "'first'" not in str(refusal.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: setattr(w, "IDX", nn.Parameter(w.IDX.float(), requires_grad=False)), "IDX is float32"),
        (lambda w: setattr(w, "weight", nn.Parameter(w.weight.half())), "WHelper.weight is float16"),
        (lambda w: setattr(w, "G", nn.Parameter(w.G.double())), "WHelper.G is float64"),
        (lambda w: setattr(w, "G", nn.Parameter(w.G[:1])), "G has shape"),
        (lambda w: delattr(w, "G"), "WHelper.G is missing"),
        (lambda w: setattr(w, "weight", nn.Parameter(w.weight[:, None])), "has 2 dimensions, not 1"),
        (lambda w: w.IDX.data.fill_(700), "index 700 at [0, 0] is outside its array of 700 slots"),
        (lambda w: w.IDX.data.fill_(-1), "index -1 at [0, 0] is outside"),
    ],
)
def test_wrong_tensors_are_refused_by_name(damage, message):
    model = net()
    damage(model.first.WHelper)
    with pytest.raises(LoadError) as refusal:
        convert(model)
    assert message in str(refusal.value)
    assert "'first'" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "bias", nn.Parameter(torch.zeros(3))), "bias has 3 elements, not 40"),
        (lambda m: setattr(m, "scale", float("nan")), "not a finite float32"),
        (lambda m: setattr(m, "scale", "large"), "not those of this class"),
    ],
)
def test_wrong_attributes_are_refused_by_name(change, message):
    model = net()
    change(model.first)
    with pytest.raises(LoadError) as refusal:
        convert(model)
    assert message in str(refusal.value)
    assert "'first'" in str(refusal.value)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"offset": -1}, "origin"),
        ({"offset": 1 << 60}, "origin"),
        ({"kind": "random"}, "no known map gives its index table"),
        ({"scale": 2.0}, "the facts say scale 2, the module 0.9"),
    ],
)
def test_wrong_facts_are_refused_by_name(facts, message):
    with pytest.raises(LoadError) as refusal:
        convert(net(), {"layers": {"first": facts}})
    assert message in str(refusal.value)


def test_a_model_without_research_layers_is_refused():
    with pytest.raises(LoadError, match="no layer of this model"):
        convert(nn.Linear(3, 4))


# ---- Files ----


def test_a_state_dict_loads_into_the_dense_model(tmp_path):
    model = net("roast")
    path = saved(tmp_path, model.state_dict())
    opened = load(path, model=HERE + "DenseNet", facts=research.NET_FACTS)
    assert torch.equal(output(opened), output(model))
    assert not torch.equal(output(opened), output(net("pareto")))


def test_a_state_dict_loads_into_the_research_classes(tmp_path):
    model = net("hashednet")
    opened = load(saved(tmp_path, model.state_dict()), model=HERE + "Net")
    assert torch.equal(output(opened), output(model))


def test_a_pickled_model_needs_trust(tmp_path):
    model = net()
    path = saved(tmp_path, model)
    with pytest.raises(LoadError, match="--trust"):
        load(path)
    assert torch.equal(output(load(path, trust=True)), output(model))


def test_a_file_saved_on_a_gpu_opens_here(tmp_path):
    import zipfile

    model = net()
    path = saved(tmp_path, model.state_dict())
    moved = tmp_path / "gpu.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(moved, "w") as new:
        for name in old.namelist():
            blob = old.read(name)
            if name.endswith("data.pkl"):
                assert blob.count(b"X\x03\x00\x00\x00cpu") == 1
                blob = blob.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, blob)
    opened = load(moved, model=HERE + "DenseNet", facts=research.NET_FACTS)
    assert torch.equal(output(opened), output(model))


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (lambda s: None, None, "its scale is not in a state dict"),
        (lambda s: s.pop("first.WHelper.G"), research.NET_FACTS, "WHelper.G is missing"),
        (lambda s: s.pop("first.WHelper.weight"), research.NET_FACTS, "WHelper.weight is missing"),
        (lambda s: s.pop("first.bias"), research.NET_FACTS, "whether it has a bias"),
        (lambda s: s.pop("norm.weight"), research.NET_FACTS, "Missing key(s) in state_dict: norm.weight"),
        (lambda s: s.update(more=torch.zeros(1)), research.NET_FACTS, "Unexpected key(s)"),
        (
            lambda s: s.update({"first.WHelper.IDX": s["last.WHelper.IDX"]}),
            research.NET_FACTS,
            "index table has shape [17, 40], the factory's weight [40, 24]",
        ),
    ],
)
def test_an_incomplete_state_dict_is_refused_by_name(tmp_path, change, facts, message):
    state = dict(net().state_dict())
    change(state)
    with pytest.raises(LoadError) as refusal:
        load(saved(tmp_path, state), model=HERE + "DenseNet", facts=facts)
    assert message in str(refusal.value)


def test_copies_that_differ_are_refused_where_the_model_shares_them(tmp_path):
    state = {key: value.clone() for key, value in net().state_dict().items()}
    assert torch.equal(output(load(saved(tmp_path, state), model=HERE + "Net")), output(net()))
    state["last.WHelper.weight"] += 1
    with pytest.raises(LoadError, match="the file holds different values"):
        load(saved(tmp_path, state), model=HERE + "Net")
    assert load(saved(tmp_path, state), model=HERE + "DenseNet", facts=research.NET_FACTS)


def test_a_state_dict_alone_says_what_to_give(tmp_path):
    with pytest.raises(LoadError, match=r"4 layers of fakeroast.*--model"):
        load(saved(tmp_path, net().state_dict()))


def test_facts_about_nothing_are_refused(tmp_path):
    archive = tmp_path / "model.pt"
    save(compress(nn.Linear(64, 64), 4), archive, (torch.randn(1, 64),))
    with pytest.raises(InputError, match="no layer of research code"):
        load(archive, facts={"defaults": {"scale": 1.0}})


# ---- Exports ----


@pytest.mark.parametrize(("kind", "portable"), [("pareto", True), ("random", False)])
def test_an_export_holds_array_and_coefficients_only(tmp_path, kind, portable):
    model, report = convert(net(kind))
    done = export(
        model,
        tmp_path / "m.onnx",
        example_inputs=research.net_inputs(),
        portable=portable,
    )
    assert done.passed
    signs = report.packed_sign_bytes if portable else 0
    size = (tmp_path / "m.onnx").stat().st_size
    assert size <= 1.02 * (report.export_bytes + signs) + (64 << 10) + 4 * 1024
    assert report.array_bytes == done.array_bytes


@pytest.mark.parametrize("form", ["torchscript", "torchscript --portable", "pt2"])
@pytest.mark.parametrize(("kind", "bits"), [("pareto", 64), ("roast", 64), ("random", 64), ("random", 32)])
def test_torch_formats_take_imported_models(tmp_path, kind, bits, form):
    original = net(kind, bits=bits)
    expected = output(original)
    model, _ = convert(original)
    target, _, portable = form.partition(" ")
    options = {"to": target, "portable": bool(portable), "example_inputs": research.net_inputs()}
    if kind == "random" and portable:
        with pytest.raises(ExportError, match="no portable form"):
            export(model, tmp_path / "m", **options)
        return
    assert export(model, tmp_path / "m", **options).passed
    torch.testing.assert_close(output(model), expected, atol=1e-5, rtol=1e-5)


def test_a_survey_changes_nothing_and_shows_refusals():
    model = net("roast")
    permuted(model)
    before = output(model)
    report = survey(model)
    assert [layer.verdict for layer in report.layers].count("refused") == 1
    assert report.table_bytes == 12 * report.elements
    assert report.array_bytes == 4 * 700
    assert torch.equal(output(model), before)
    assert type(model.first).__name__ == "FakeRoastLinear"


# ---- Commands ----


def command(run, *arguments) -> int:
    with pytest.raises(SystemExit) as end:
        run.main([str(x) for x in arguments])
    return int(end.value.code or 0)


def test_inspect_needs_no_model_for_a_state_dict(tmp_path, capsys):
    path = saved(tmp_path, net("roast").state_dict())
    assert command(inspect_command, path) == 0
    text = capsys.readouterr().out
    for part in ("4 virtual weights", "3,056 table entries proved", "arrays 2,800 B", "tables 35.81 KiB"):
        assert part in text


def test_inspect_shows_what_an_export_would_refuse(tmp_path, capsys):
    model = net("roast")
    permuted(model)
    path = saved(tmp_path, model.state_dict())
    assert command(inspect_command, path, "--model", HERE + "Net") == 0
    text = capsys.readouterr().out
    assert "refused" in text
    assert "--keep-dense" in text


def test_the_export_command_takes_facts_and_prints_the_import(tmp_path, capsys):
    path = saved(tmp_path, net().state_dict())
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(research.NET_FACTS))
    common = [path, "-o", tmp_path / "m.onnx", "--model", HERE + "DenseNet", "--no-verify"]
    common += ["--input", "ids:int64[2,6]", "--input", "image:float32[2,3,8,8]"]
    assert command(export_command, *common) == 1
    assert "its scale is not in a state dict" in capsys.readouterr().err
    assert command(export_command, *common, "--facts", facts) == 0
    assert "3,056 table entries proved" in capsys.readouterr().out
    assert (tmp_path / "m.onnx").stat().st_size < 70_000


def test_the_export_command_keeps_dense_on_demand(tmp_path, capsys):
    model = net("roast")
    permuted(model)
    path = saved(tmp_path, model)
    common = [path, "-o", tmp_path / "m.onnx", "--trust", "--no-verify"]
    common += ["--input", "ids:int64[2,6]", "--input", "image:float32[2,3,8,8]"]
    assert command(export_command, *common) == 1
    assert "1 of 4 compressed layers" in capsys.readouterr().err
    assert command(export_command, *common, "--keep-dense") == 0
