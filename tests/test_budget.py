"""Small files that ask for much: refused before the machine pays, and files of real size are not."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import roast_export
from roast_export import budget
from roast_export.errors import InputError, LoadError
from roast_export.inputs import read_inputs
from roast_export.shape_cost import CHARACTERS, LONGEST, too_costly
from tests.torch_files import rewrite

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"


class Pairs(nn.Module):
    def forward(self, x, y):
        return torch.cat([x, y]) @ torch.ones(3, 2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Its output has the length of both inputs together, which torch writes as an expression."""
    path = tmp_path_factory.mktemp("budget") / "m.pt"
    roast_export.save(Pairs(), path, (torch.zeros(2, 3), torch.zeros(4, 3)))
    return path


def with_expression(archive, path, text):
    def change(name, content):
        if name != MODEL:
            return content
        tree = json.loads(content)
        assert replace(tree), "the archive has no expression"
        return json.dumps(tree).encode()

    def replace(item):
        if isinstance(item, dict) and "Add" in str(item.get("expr_str")):
            item["expr_str"] = text
            return True
        below = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return max(map(replace, below), default=False)

    return rewrite(archive, path, change)


POWERS = [
    "9**9**9**9",
    "Pow(Integer(9), Pow(Integer(9), Integer(99)))",
    "((9**64)**64)**64",
    "1 << 10**10",
    "Integer('9') ** Integer('999999999')",
    "PowByNatural(s0, s0)",
    "TruncToInt(Float('1e999999999'))",
    "LShift(1, 4294967296)",
    "Symbol(9**9**9**9)",
]


@pytest.mark.parametrize("text", POWERS)
def test_a_power_that_never_ends_is_refused(archive, tmp_path, text):
    with pytest.raises(LoadError, match="the power in the expression"):
        roast_export.load(with_expression(archive, tmp_path / "m.pt", text))


def test_expressions_as_torch_writes_them_are_read(archive, tmp_path):
    roast_export.load(archive)
    tree = json.loads(zipfile.ZipFile(archive).read(f"archive/{MODEL}"))
    assert too_costly(tree) is None
    for text in (
        "s0 + s1",
        "Mod(FloorDiv(s0, 2), 64)*s1**2",
        "2*s0 - (s1 << 3)",
        "Rational(1, 2)*ToFloat(s0)**0.5",
    ):
        assert too_costly({"expr_str": text}) is None, text


def test_long_and_many_expressions_are_refused():
    def total(count):
        return "Add(" + ", ".join(f"Symbol('s{k}', positive=True, integer=True)" for k in range(count)) + ")"

    assert too_costly([{"expr_str": total(LONGEST // 2 - 10)}] * 9) is None
    assert "too long to read" in str(too_costly([{"expr_str": total(LONGEST)}]))
    assert "too long to read" in str(too_costly([{"expr_str": total(LONGEST // 2 - 10)}] * 99))
    assert "characters" in str(too_costly([{"expr_str": "s0 + " * CHARACTERS + "s0"}]))


@pytest.fixture
def fewer_values(monkeypatch):
    monkeypatch.setattr(budget, "VALUES", 100_000)


def nested(levels):
    value = (torch.zeros(1),)
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.usefixtures("fewer_values")
def test_sample_inputs_that_double_at_each_level_are_refused(archive, tmp_path):
    def samples(value):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    small, large = samples(nested(4)), samples(nested(60))
    assert len(large) < 20_000
    path = rewrite(archive, tmp_path / "m.pt", lambda name, content: large if name == SAMPLES else content)
    with pytest.raises(LoadError, match="values in data/sample_inputs"):
        roast_export.load(path)
    budget.check_values(torch.load(io.BytesIO(small), weights_only=True))


@pytest.mark.usefixtures("fewer_values")
@pytest.mark.parametrize(
    "content",
    [
        {"a": nested(60)},
        {"a": torch.zeros(1).expand(1 << 40)},
        pickle.loads(b"]" * 400 + b"a" * 399 + b"."),
    ],
    ids=["pairs", "an expanded tensor", "deep lists"],
)
def test_a_checkpoint_that_asks_for_much_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(LoadError, match=r"m\.pt is refused: it holds"):
        roast_export.load(tmp_path / "m.pt", model="torch.nn:Identity")


def test_values_of_real_models_pass():
    many = {f"layer{k}": torch.zeros(2) for k in range(10_000)}
    budget.check_values({"state_dict": many, "mask": torch.zeros(1, 1, 1024, 1024).expand(16, 1, 1024, 1024)})


def bomb(path, members, megabytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in members:
            with file.open(name, "w") as member:
                for _ in range(megabytes):
                    member.write(bytes(1 << 20))
    return path


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path):
    path = bomb(tmp_path / "m.pt", ["m/data.pkl", "m/data/0"], 200)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(LoadError, match=f"unpacks to 419,430,400, more than .* {budget.MEMORY}"):
        roast_export.load(path, model="torch.nn:Identity")
    with pytest.raises(LoadError, match="unpacks to"):
        roast_export.verify(nn.Identity(), path, example_inputs=(torch.zeros(1),))
    with pytest.raises(InputError, match="unpacks to"):
        read_inputs(path)


def test_an_archive_may_unpack_to_more_where_that_is_asked_for(tmp_path, monkeypatch):
    path = bomb(tmp_path / "m.npz", ["x.npy"], 300)
    with pytest.raises(InputError, match="unpacks to"):
        read_inputs(path)
    monkeypatch.setenv(budget.MEMORY, "1")
    with pytest.raises(InputError, match="is no array"):
        read_inputs(path)


def test_inputs_of_zeros_are_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 22, np.float32))
    assert read_inputs(tmp_path / "x.npz")["x"].numel() == 1 << 22


def test_limits_grow_with_the_file_and_what_is_set_comes_first(monkeypatch):
    gigabyte = 10**9
    assert budget.memory(gigabyte) > 16 * gigabyte > budget.memory(4096) - 8 * budget.GIB
    assert budget.seconds(gigabyte) > budget.seconds(4096) >= 600
    monkeypatch.setenv(budget.SECONDS, "7.5")
    monkeypatch.setenv(budget.MEMORY, "0.5")
    assert (budget.seconds(gigabyte), budget.memory(gigabyte)) == (7.5, budget.GIB // 2)
    monkeypatch.setenv(budget.SECONDS, "-1")
    assert budget.seconds(0) == 600
