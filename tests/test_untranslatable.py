"""What torch.onnx cannot translate is refused with the operator, the line that calls it, and a next step."""

import pytest
import torch
from torch import nn

import roast_export


class Scaled(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def bessel(y):
    return torch.special.i1e(y)


def median(y):
    return torch.median(y)


@pytest.mark.parametrize(("function", "operator"), [(bessel, "prims.bessel_i1e"), (median, "aten.median")])
def test_the_refusal_names_operator_line_and_next_step(tmp_path, function, operator):
    torch.manual_seed(0)
    model = roast_export.compress(Scaled(function).eval(), 8)
    inputs = (torch.randn(64, 64),)
    with pytest.raises(roast_export.ExportError) as refused:
        roast_export.export(model, tmp_path / "m.onnx", example_inputs=inputs)
    text = str(refused.value)
    assert f"no translation of torch's {operator}, at " in text
    assert "in forward: return self.function(self.layer(x))" in text
    assert "--to torchscript" in text
    assert list(tmp_path.iterdir()) == []
    roast_export.save(model, tmp_path / "m.pt", inputs)
    with pytest.raises(roast_export.ExportError, match=operator):
        roast_export.export(roast_export.load(tmp_path / "m.pt"), tmp_path / "m.onnx")
    roast_export.export(model, tmp_path / "m.pt2", to="pt2", example_inputs=inputs, verify=False)
    written = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(written(*inputs), model(*inputs))
