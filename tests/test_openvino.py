"""Files in a runtime that cuts int64 to int32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import roast_export
from roast_export import families, runtime_openvino
from roast_export.onnx_file import open_onnx
from tests.mappings import pattern
from tests.test_onnx_ops import model as one_node

TABLES = {
    "compress": families.roast((300_000, 64), 200_000, seed=3, tile=(1, 32), align=16, transposed=False),
    "robe": families.robe(300_000, 16, 500_000, families.robe_numbers(5), 123_456_789, 1),
    "stretch": families.side_by_side(
        (5000, 64), 200_000, first=3200, tiles=2000, tile=(2, 32), align=16, transposed=False, seed=1
    ),
}


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(3000, 32), nn.Embedding(5000, 32)
        self.tower = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.tower(torch.cat([self.users(user), self.items(item)], -1))


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(32 * 64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(torch.relu(self.conv(x)).flatten(1))


MODELS = {
    "recommender": (Recommender, (torch.tensor([1, 2999]), torch.tensor([4999, 0]))),
    "digits": (Digits, (torch.rand(2, 1, 8, 8),)),
}


@pytest.fixture
def openvino() -> None:
    reason = runtime_openvino.unavailable()
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("narrow", [True, False], ids=["narrow", "control"])
def test_rows_keep_their_bits(openvino, name, narrow):
    mapping = TABLES[name]
    memory = pattern(mapping.n_memory)
    ids = np.random.default_rng(0).integers(0, mapping.shape[0], 400)
    ids[:2] = 0, mapping.shape[0] - 1
    arrays = {"memory": memory, "ids": ids}
    proto = one_node("RoastEmbedding", mapping, arrays, scale=0.3, inputs=("ids",), narrow=narrow)
    (rows,) = runtime_openvino.open_openvino(proto.SerializeToString())({"ids": ids})
    assert (rows.tobytes() == mapping.weight(memory, 0.3)[ids].tobytes()) is narrow


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_proved(openvino, name, tmp_path):
    kind, inputs = MODELS[name]
    torch.manual_seed(0)
    model = roast_export.compress(kind().eval(), ratio=8)
    roast_export.export(model, tmp_path / "m.onnx", example_inputs=inputs, verify=False)
    report = roast_export.verify(
        model, tmp_path / "m.onnx", example_inputs=inputs, runtimes=[runtime_openvino.NAME]
    )
    assert report.passed
    assert {check.runtime for check in report.checks if check.kind == "weight"} >= {runtime_openvino.NAME}


def test_a_table_that_needs_64_bits_says_so(tmp_path):
    torch.manual_seed(0)
    model = roast_export.compress(Recommender().eval(), ratio=8)
    inputs = MODELS["recommender"][1]
    report = roast_export.export(model, tmp_path / "m.onnx", example_inputs=inputs, verify=False)
    assert not any("64 bits" in text for text in report.warnings)
    file = open_onnx(tmp_path / "m.onnx")
    assert {p.key: p.value for p in file.proto.metadata_props}["roast.int64"] == "constants"
    node = next(node for node in file.nodes if node.op_type == "RoastEmbedding")
    numbers = next(a for a in node.attribute if a.name == "hash1").ints
    numbers[1] = 1 << 60
    (tmp_path / "wide.onnx").write_bytes(file.proto.SerializeToString())
    wide = open_onnx(tmp_path / "wide.onnx")
    assert any("computes in 64 bits" in text for text in wide.warnings)
    (runtime,) = [r for r in wide.runtimes() if r.name == runtime_openvino.NAME]
    assert "64 bits" in str(runtime.unavailable())
