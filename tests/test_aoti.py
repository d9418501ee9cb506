"""AOTInductor packages: machine code around our operators, and the array in it once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import roast_export
from roast_export.aoti_file import INLINED, _used, open_aoti_file
from roast_export.errors import ExportError, RoastError
from roast_export.to_aoti import compiler_absent
from roast_export.trace import trace

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    dense = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32)).eval()
    return roast_export.compress(dense, 4, seed=seed)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Compiling takes most of a minute, so one package serves all tests."""
    if compiler_absent():
        pytest.skip(compiler_absent())
    path = tmp_path_factory.mktemp("aoti") / "model.aoti.pt2"
    options = {"to": "aoti", "example_inputs": (X,), "dynamic_shapes": {"input": {0: "batch"}}}
    report = roast_export.export(network(0), path, **options)
    assert report.passed
    assert len({check.case for check in report.checks if "batch=" in check.case}) >= 3
    return path


def test_the_package_calls_our_operators_and_holds_no_weight(package):
    file = open_aoti_file(package)
    assert {layer.operator for layer in file.layers} == {"linear"}
    assert len(file.calls) == 1
    assert network(0)[0].virtual["weight"].memory.detach().numpy().tobytes() in file.code
    assert network(0)[0].weight.detach().numpy().tobytes() not in file.code


def test_what_the_package_must_hold_is_what_the_compiler_may_not_write_into_the_code():
    """A tensor of a few elements may become numbers of the code; a buffer may be outside the state dict."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(64, 7)
            self.register_buffer("shift", torch.randn(48), persistent=False)
            self.first = nn.Linear(48, 64)

        def forward(self, x):
            return self.last(self.first(x + self.shift))

    model = roast_export.compress(Shifted().eval(), 4, min_params=2048)
    used = _used(trace(model, (torch.randn(2, 48),)))
    assert torch.equal(used["shift"], model.shift)
    assert {name for name, tensor in used.items() if tensor.numel() <= INLINED} == {"last.bias"}


def test_comparing_a_package_needs_trust(package):
    with pytest.raises(RoastError, match="holds machine code"):
        roast_export.verify(network(0), package, example_inputs=(X,))
    assert roast_export.verify(network(0), package, example_inputs=(X,), trust=True).passed


def test_control_another_model_is_told_apart(package):
    report = roast_export.verify(network(1), package, example_inputs=(X,), trust=True)
    failed = {check.kind for check in report.failures}
    assert {"weight", "output"} <= failed


def test_no_compiler_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match=r"install g\+\+"):
        roast_export.export(network(0), tmp_path / "m.aoti.pt2", to="aoti", example_inputs=(X,))
