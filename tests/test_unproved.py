"""A file that nothing compared with PyTorch is refused, in whatever way the comparison came to nothing."""

from dataclasses import replace
from functools import partial

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import roast_export
from roast_export import cli
from roast_export.errors import InputError, VerificationError
from roast_export.onnx_file import OnnxFile


class Layered(nn.Module):
    """A compressed layer, and outputs made of what it gives."""

    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64)
        self.outputs = outputs

    def forward(self, x):
        return self.outputs(self.layer(x))


EXAMPLE = (torch.randn(3, 64, generator=torch.Generator().manual_seed(1)),)


def made(outputs=torch.tanh):
    return roast_export.compress(Layered(outputs).eval(), 4, min_params=512)


@pytest.fixture
def without_runtimes(monkeypatch):
    """A machine on which no runtime can be used."""
    known = OnnxFile.runtimes

    def missing(self):
        return [replace(runtime, unavailable=lambda: "it is not installed") for runtime in known(self)]

    monkeypatch.setattr(OnnxFile, "runtimes", missing)


@pytest.mark.usefixtures("without_runtimes")
def test_without_a_runtime_nothing_is_written(tmp_path):
    with pytest.raises(VerificationError, match=r"it is not installed.*--no-verify") as caught:
        roast_export.export(made(), tmp_path / "m.onnx", example_inputs=EXAMPLE)
    assert not caught.value.report.passed
    assert list(tmp_path.iterdir()) == []
    report = roast_export.export(made(), tmp_path / "m.onnx", example_inputs=EXAMPLE, verify=False)
    assert not report.passed
    assert (tmp_path / "m.onnx").is_file()


@pytest.mark.usefixtures("without_runtimes")
def test_the_command_ends_with_2(tmp_path):
    archive, output = tmp_path / "m.pt", tmp_path / "m.onnx"
    roast_export.save(made(), archive, EXAMPLE)
    result = CliRunner().invoke(cli.export_command, [str(archive), "-o", str(output)])
    assert result.exit_code == 2
    assert "NOT VERIFIED" in result.output
    assert "Traceback" not in result.output
    assert not output.exists()
    result = CliRunner().invoke(cli.export_command, [str(archive), "-o", str(output), "--no-verify"])
    assert result.exit_code == 0
    assert output.is_file()


@pytest.mark.parametrize(
    "outputs", [lambda y: y[:, :0], lambda y: {"a": y[:0], "b": y[:, :0]}], ids=["one", "two"]
)
def test_outputs_without_elements_are_no_proof(tmp_path, outputs):
    with pytest.raises(VerificationError, match="nothing compared an output"):
        roast_export.export(made(outputs), tmp_path / "m.onnx", example_inputs=EXAMPLE)
    assert list(tmp_path.iterdir()) == []


def test_one_output_without_elements_is_named(tmp_path):
    report = roast_export.export(
        made(lambda y: {"full": y, "empty": y[:, :0]}), tmp_path / "m.onnx", example_inputs=EXAMPLE
    )
    assert report.passed
    assert any("output 'empty' has no elements" in warning for warning in report.warnings)


def test_a_runtime_that_cannot_run_the_file_is_no_proof(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    model = made()
    roast_export.export(model, path, example_inputs=EXAMPLE, verify=False)

    def half(opener, path):
        """Weights are read, the whole file is not run."""
        run = opener(path)

        def either(inputs):
            if "x" in inputs:
                raise NotImplementedError("no such operator")
            return run(inputs)

        return either

    known = OnnxFile.runtimes

    def reference(self):
        found = [runtime for runtime in known(self) if not runtime.complete]
        return [replace(runtime, open=partial(half, runtime.open)) for runtime in found]

    monkeypatch.setattr(OnnxFile, "runtimes", reference)
    report = roast_export.verify(model, path, example_inputs=EXAMPLE)
    assert report.skipped
    assert not report.passed


def test_bounds_from_the_command_line(tmp_path):
    """A bound that a right file cannot meet is a failure; with the wide one a wrong file passes."""
    archive, output = tmp_path / "m.pt", tmp_path / "m.onnx"
    roast_export.save(made(), archive, EXAMPLE)
    right = CliRunner().invoke(cli.export_command, [str(archive), "-o", str(output), "--rtol", "1e-4"])
    assert right.exit_code == 0, right.output
    output.unlink()
    narrow = CliRunner().invoke(cli.export_command, [str(archive), "-o", str(output), "--atol", "1e-12"])
    assert narrow.exit_code == 2
    assert "allowed 1e-12" in narrow.output
    assert not output.exists()
    both = CliRunner().invoke(cli.export_command, [str(archive), "--atol", "1", "--no-verify"])
    assert both.exit_code == 1
    assert "--no-verify" in both.output


@pytest.mark.parametrize("bound", [float("inf"), float("nan"), -1.0])
def test_a_bound_that_allows_anything_is_refused(tmp_path, bound):
    with pytest.raises(InputError, match="finite"):
        roast_export.export(made(), tmp_path / "m.onnx", example_inputs=EXAMPLE, atol=bound)
    assert list(tmp_path.iterdir()) == []


def test_control_a_user_bound_lets_a_wrong_file_through(tmp_path):
    path, model = tmp_path / "m.onnx", made()
    roast_export.export(model, path, example_inputs=EXAMPLE, verify=False)
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.op_type = "Cos" if node.op_type == "Tanh" else node.op_type
    onnx.save(proto, path)
    options = {"example_inputs": EXAMPLE, "runtimes": ["onnxruntime portable"]}
    assert not roast_export.verify(model, path, **options).passed
    assert roast_export.verify(model, path, atol=3.0, **options).passed
