"""A dense convolution before a BatchNorm: the exporter changes its parameters, and the proof knows."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import roast_export
from roast_export.fold_norms import SUFFIX


class Net(nn.Module):
    """Two dense convolutions, one with a norm behind it, and a virtual layer."""

    def __init__(self):
        super().__init__()
        self.normed = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8 * 16, 64)

    def forward(self, image):
        return self.last(self.plain(torch.relu(self.norm(self.normed(image)))).flatten(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net(torch.randn(4, 3, 8, 8))
    model = roast_export.compress(net.eval(), 8)
    path, inputs = tmp_path_factory.mktemp("norm") / "n.onnx", (torch.randn(2, 3, 8, 8),)
    roast_export.export(
        model, path, example_inputs=inputs, dynamic_shapes={"image": {0: "batch"}}, verify=False
    )
    return model, path, inputs


def test_folded_parameters_have_names_of_their_own(exported):
    model, path, inputs = exported
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert {f"normed.weight{SUFFIX}", f"normed.bias{SUFFIX}", "plain.weight", "plain.bias"} <= stored.keys()
    assert not np.array_equal(stored[f"normed.weight{SUFFIX}"], model.normed.weight.detach().numpy())
    report = roast_export.verify(model, path, example_inputs=inputs)
    assert report.passed, str(report)
    assert {"plain.weight", "plain.bias"} <= {check.name for check in report.checks}


@pytest.mark.parametrize("name", [f"normed.weight{SUFFIX}", f"normed.bias{SUFFIX}", "plain.weight"])
def test_control_a_changed_parameter_is_refused(exported, tmp_path, name):
    model, path, inputs = exported
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "x.onnx")
    report = roast_export.verify(model, tmp_path / "x.onnx", example_inputs=inputs)
    assert any(check.kind == "output" for check in report.failures)
    assert SUFFIX in name or any(check.name == name for check in report.failures)
