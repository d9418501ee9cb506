"""Transposed convolutions with a virtual weight: a product and Col2Im, or the operator where it is faster."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

import roast_export
from roast_export import onnx_ops, onnx_transposed
from roast_export.compress import compress
from roast_export.modules import virtual_weights
from roast_export.placement import Placed, place


class Upsample(nn.Module):
    """Every option, over a sequence and over an image."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ConvTranspose1d(32, 16, 4, stride=2, padding=1)
        self.wide = nn.ConvTranspose1d(
            16, 32, 3, stride=3, padding=2, output_padding=1, dilation=2, bias=False
        )
        self.image = nn.ConvTranspose2d(32, 8, (3, 4), (2, 1), (1, 0), (1, 0), dilation=(1, 2))

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.wide(torch.relu(self.plain(x)))
        return y, self.image(image), self.plain(x[0])


INPUTS = (torch.randn(2, 32, 5), torch.randn(2, 32, 4, 3))
DYNAMIC = {"x": {0: "batch", 2: "length"}, "image": {0: "images", 2: "height", 3: "width"}}


def exported(path, **options) -> list[str]:
    torch.manual_seed(0)
    model = roast_export.compress(Upsample().eval(), 4, min_params=64)
    report = roast_export.export(model, path, example_inputs=INPUTS, dynamic_shapes=DYNAMIC, **options)
    assert report.passed or not options.get("verify", True)
    return [node.op_type for node in onnx_ops.nodes_of(onnx.load(path).graph)]


def test_a_weight_is_multiplied_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_transposed, "_least", lambda lengths: 0)
    found = exported(tmp_path / "m.onnx")
    assert (found.count("RoastLinear"), found.count("Col2Im")) == (4, 4)
    assert not {"ConvTranspose", "RoastGather"} & set(found)


def test_small_weights_keep_the_operator(tmp_path):
    found = exported(tmp_path / "m.onnx", verify=False)
    assert (found.count("ConvTranspose"), found.count("RoastLinear")) == (4, 0)


def test_a_file_without_the_library_keeps_the_operator(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_transposed, "_least", lambda lengths: 0)
    found = exported(tmp_path / "m.onnx", portable=True, verify=False)
    assert (found.count("ConvTranspose"), found.count("RoastLinear")) == (4, 0)


def test_groups_keep_the_operator(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_transposed, "_least", lambda lengths: 0)
    model = roast_export.compress(nn.ConvTranspose1d(32, 32, 8, groups=2).eval(), 4)
    path = tmp_path / "m.onnx"
    assert roast_export.export(model, path, example_inputs=(torch.randn(1, 32, 5),)).passed
    found = [node.op_type for node in onnx_ops.nodes_of(onnx.load(path).graph)]
    assert "ConvTranspose" in found
    assert "Col2Im" not in found


def test_control_the_proof_sees_another_stride(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_transposed, "_least", lambda lengths: 0)
    exported(tmp_path / "m.onnx", verify=False)
    proto = onnx.load(tmp_path / "m.onnx")
    node = next(n for n in proto.graph.node if n.op_type == "Col2Im" and n.output[0])
    next(a for a in node.attribute if a.name == "pads").ints[:] = [0, 0, 0, 2]
    onnx.save(proto, tmp_path / "wrong.onnx")
    torch.manual_seed(0)
    model = compress(Upsample().eval(), 4, min_params=64)
    report = roast_export.verify(model, tmp_path / "wrong.onnx", example_inputs=INPUTS)
    assert {check.kind for check in report.failures} == {"output"}


@pytest.mark.parametrize("lengths", [(4,), (32,), (33,), (8, 8), ("n",), ("n", 4)])
def test_many_places_need_a_larger_weight(lengths):
    least = onnx_transposed._least(lengths)
    assert (1 << 15) <= least <= (1 << 18)
    assert onnx_transposed._least((4,)) < onnx_transposed._least((33,))
    assert onnx_transposed._least(("n",)) < onnx_transposed._least(("n", 4))


@pytest.mark.parametrize("ratio", [1, 1.5, 4, 20])
def test_a_weight_lies_in_the_array_as_inputs_by_outputs(ratio):
    shape = (64, 32, 4)
    (mapping,) = place([Placed(shape, False, (0,), turned=True)], ratio)
    (matrix,) = place([Placed((128, 64), False, (0,))], ratio)
    assert (mapping.shape, mapping.matrix, mapping.view) == (shape, (64, 128), matrix.view)
    assert (mapping.indices().reshape(64, 128).T == matrix.indices()).all()
    assert (mapping.signs().reshape(64, 128).T == matrix.signs()).all()


def test_a_weight_that_a_convolution_shares_lies_as_its_filters():
    model = nn.ModuleList(
        [nn.ConvTranspose1d(32, 32, 8), nn.Conv1d(32, 32, 8), nn.ConvTranspose1d(32, 32, 8)]
    )
    model[1].weight = model[0].weight
    found = {n: w.mapping.transposed for n, w in virtual_weights(roast_export.compress(model, 4)).items()}
    assert found == {"0.weight": True, "1.weight": True, "2.weight": False}
