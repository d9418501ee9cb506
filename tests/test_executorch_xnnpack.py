"""A .pte that leaves to XNNPACK what is not virtual: what is in it, and that weights stay virtual."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import roast_export
from roast_export import runtime_executorch, runtime_executorch_arm64, to_executorch
from roast_export.errors import ExportError, InputError, RoastError, VerificationError
from roast_export.pte_program import DELEGATE, read_program, written
from roast_export.report import Report

FORMS = {"portable": True, "native": False}
INPUTS = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)),)


class Seen(nn.Module):
    """Convolutions that are never compressed, and a layer that is."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 8 * 8, 40)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(torch.max_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return roast_export.compress(Seen().eval(), ratio=10, exclude=["conv*"])


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    (runtime,) = runtime_executorch.xnnpack_runtimes(native=not FORMS[name])
    reason = runtime.unavailable()
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture(scope="module")
def exported(form: str, model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    path = tmp_path_factory.mktemp(form) / "model.pte"
    report = roast_export.export(
        model, path, to="executorch", example_inputs=INPUTS, portable=FORMS[form], delegate="xnnpack"
    )
    return path, report


def test_convolutions_are_delegated_and_weights_are_not(exported, form):
    program = read_program(exported[0])
    operators = [call.operator for call in program.calls]
    assert DELEGATE in operators
    assert not any("convolution" in operator for operator in operators)
    ours = "roast::linear.out" if form == "native" else "aten::index_select.out"
    assert operators.count(ours) == 1


def test_the_proof_holds_in_xnnpack(exported):
    report = exported[1]
    assert report.passed
    assert {check.runtime for check in report.checks if check.kind == "output"} == {"executorch xnnpack"}
    weights = [check for check in report.checks if check.kind == "weight" and check.name == "fc.weight"]
    assert {check.elements for check in weights} == {40 * 1024}
    assert report.file_bytes <= report.limit_bytes < 40 * 1024 * 4


def test_it_runs_on_arm(exported, form, model):
    (runtime,) = runtime_executorch_arm64.xnnpack_runtimes(native=not FORMS[form])
    reason = runtime.unavailable()
    if reason:
        pytest.skip(reason)
    report = roast_export.verify(model, exported[0], example_inputs=INPUTS, runtimes=[runtime.name])
    assert report.passed
    assert {check.runtime for check in report.checks} == {"file", runtime.name}


def test_control_another_convolution_gives_other_outputs(exported, model):
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] += 1
    try:
        report = roast_export.verify(model, exported[0], example_inputs=INPUTS)
    finally:
        with torch.no_grad():
            model.conv1.weight[0, 0, 0, 0] -= 1
    assert {check.kind for check in report.failures} == {"output"}


def test_control_a_virtual_weight_in_a_delegate_is_refused(form, model, tmp_path, monkeypatch):
    monkeypatch.setattr(to_executorch, "_is_virtual", lambda node: False)
    with pytest.raises(
        (ExportError, VerificationError), match=r"cannot express this model|delegate|past the weights"
    ):
        roast_export.export(
            model,
            tmp_path / "m.pte",
            to="executorch",
            example_inputs=INPUTS,
            portable=FORMS[form],
            delegate="xnnpack",
        )
    assert not (tmp_path / "m.pte").exists()


def test_another_delegate_in_a_file_is_refused(exported, model, tmp_path):
    program = read_program(exported[0])
    program.plan.delegates[0].id = "OtherBackend"
    (tmp_path / "m.pte").write_bytes(written(program.file))
    with pytest.raises(RoastError, match="needs OtherBackend, which no file of ours does"):
        roast_export.verify(model, tmp_path / "m.pte", example_inputs=INPUTS)


def test_a_delegate_belongs_to_executorch(model, tmp_path):
    with pytest.raises(InputError, match="a delegate belongs to executorch; leave it out for onnx"):
        roast_export.export(model, tmp_path / "m.onnx", example_inputs=INPUTS, delegate="xnnpack")


def test_an_unknown_delegate_is_refused(form, model, tmp_path):
    with pytest.raises(InputError, match="delegate 'gpu' is not known"):
        to_executorch.write(torch.export.export(model, INPUTS), tmp_path / "m.pte", delegate="gpu")


@pytest.mark.slow
def test_the_sample_writes_its_file(tmp_path):
    (runtime,) = runtime_executorch.xnnpack_runtimes(native=True)
    reason = runtime.unavailable()
    if reason:
        pytest.skip(reason)
    sample = Path(__file__).parent.parent / "samples" / "pte.py"
    command = [sys.executable, str(sample), "-o", str(tmp_path), "--form", "native", "--delegate", "xnnpack"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["native-xnnpack"]
    assert [path.stem for path in tmp_path.glob("*.pte")] == ["native-xnnpack"]
