"""How near compress() came: in the model, in its summary, in an archive and in the report."""

import copy
import pickle

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from roast_export import compress, export, load, save, summary
from roast_export.cli import compress_command
from roast_export.fit import LARGE_ERROR, advice, relative_errors
from roast_export.modules import virtual_weights

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers of weights, and a tied third."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.again = (nn.Linear(64, 64) for _ in range(3))
        self.again.weight = self.second.weight

    def forward(self, x):
        return self.again(self.second(self.first(x).relu()).relu())


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return Net().eval()


def test_errors_are_those_of_the_weights(dense):
    compressed = compress(dense, 10)
    errors = relative_errors(compressed)
    assert set(errors) == {"first.weight", "second.weight", "again.weight"}
    for name, weight in virtual_weights(compressed).items():
        target = dense.get_parameter(name).detach()
        missed = weight().detach() - target
        assert errors[name] == pytest.approx(float(missed.norm() / target.norm()), rel=1e-4)
    rows = {row.name: row.error for row in summary(compressed).rows}
    assert rows["first.weight"] == errors["first.weight"]
    assert rows["first.bias"] is None


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_errors_go_along_with_a_copy(dense, again):
    compressed = compress(dense, 10)
    assert relative_errors(again(compressed)) == relative_errors(compressed) != {}


def test_errors_end_with_the_array_that_they_are_about(dense):
    compressed = compress(dense, 10)
    with torch.no_grad():
        next(iter(virtual_weights(compressed).values())).memory[0] += 1
    assert relative_errors(compressed) == {}
    assert {row.error for row in summary(compressed).rows} == {None}
    assert "error" not in str(summary(compressed))


def test_a_fresh_array_approximates_nothing(dense):
    assert relative_errors(compress(dense, 10, init="fresh")) == {}


def test_an_archive_and_a_report_carry_the_errors(dense, tmp_path):
    compressed = compress(dense, 10)
    save(compressed, tmp_path / "m.pt", (X,))
    loaded = load(tmp_path / "m.pt")
    assert relative_errors(loaded) == relative_errors(compressed)
    assert "fine-tune" in str(summary(loaded))
    report = export(loaded, tmp_path / "m.onnx")
    assert any("distil the dense model" in warning for warning in report.warnings)


def test_what_training_changed_is_not_warned_of(dense, tmp_path):
    compressed = compress(dense, 10)
    with torch.no_grad():
        next(iter(virtual_weights(compressed).values())).memory.mul_(1.5)
    save(compressed, tmp_path / "m.pt", (X,))
    loaded = load(tmp_path / "m.pt")
    assert relative_errors(loaded) == {}
    assert not export(loaded, tmp_path / "m.onnx").warnings


def test_advice_counts_and_names_the_next_step():
    assert advice({}) is None
    assert advice({"a": LARGE_ERROR, "b": 0.1, "c": 2.0}) is None
    text = advice({"a": 0.5, "b": 0.1, "c": 2.0})
    assert text.startswith("2 of 3 virtual weights")
    assert "median 0.50" in text


def test_the_command_says_what_to_do_next(dense, tmp_path):
    torch.save(dense, tmp_path / "dense.pt")
    arguments = [str(tmp_path / "dense.pt"), "--trust", "--ratio", "10"]
    result = CliRunner().invoke(compress_command, arguments)
    assert result.exit_code == 0, result.output
    assert "fine-tune this model, or distil the dense model into it" in " ".join(result.output.split())
