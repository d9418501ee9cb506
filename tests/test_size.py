"""The size gate of a model whose graph is larger than its tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import roast_export
from roast_export import size, to_ort
from roast_export.errors import ExportError
from roast_export.runtimes import native_unavailable

STEPS = 150
TENSOR = np.random.default_rng(0).standard_normal(9_000).astype(np.float32)
"""Fewer bytes than the nodes of the model may take, and more than its tensors may."""


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(STEPS):
            x = torch.sin(x) + 1
        return self.fc(x)


INPUTS = (torch.rand(2, 64),)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return roast_export.compress(Deep().eval(), ratio=20)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("deep") / "m.onnx"
    report = roast_export.export(model, path, example_inputs=INPUTS, verify=False)
    assert report.limit_bytes - report.file_bytes > TENSOR.nbytes, "the total alone would let the tensor in"
    assert size.nodes_of_program(torch.export.export(model, INPUTS)) == 2 * STEPS + 1
    return path


def gate(model: nn.Module, path: Path) -> list[str]:
    """What the size gate says against a file."""
    report = roast_export.verify(model, path, example_inputs=INPUTS, runtimes=["onnxruntime portable"])
    return [check.note for check in report.failures if check.name == "size gate"]


def stored(values: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(values))


HIDING_PLACES = {
    "tensor": lambda graph: graph.initializer.append(numpy_helper.from_array(TENSOR, "junk")),
    "index table": lambda graph: graph.initializer.append(
        numpy_helper.from_array(np.arange(TENSOR.size // 2), "junk")
    ),
    "constant": lambda graph: graph.node.insert(0, stored(TENSOR)),
    "floats": lambda graph: graph.node.insert(
        0, helper.make_node("Constant", [], ["c"], value_floats=TENSOR.tolist())
    ),
    "integers": lambda graph: graph.node.insert(
        0, helper.make_node("Constant", [], ["c"], value_ints=list(range(1 << 20, (1 << 20) + TENSOR.size)))
    ),
    "branch": lambda graph: graph.node.insert(0, branching()),
}


def branching() -> onnx.NodeProto:
    """A branch that holds the tensor."""
    output = helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None)
    branch = helper.make_graph([stored(TENSOR)], "branch", [], [output])
    return helper.make_node("If", ["flag"], ["found"], then_branch=branch, else_branch=branch)


def test_a_graph_of_many_nodes_passes(model, good):
    assert gate(model, good) == []


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_control_a_tensor_does_not_hide_among_many_nodes(model, good, place, tmp_path):
    proto = onnx.load(good)
    HIDING_PLACES[place](proto.graph)
    if place == "branch":
        proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    onnx.save(proto, tmp_path / "m.onnx")
    (note,) = gate(model, tmp_path / "m.onnx")
    assert "bytes of tensors, more than" in note


def test_control_text_is_bounded_by_the_nodes(model, good, tmp_path):
    proto = onnx.load(good)
    helper.set_model_props(
        proto, {p.key: p.value for p in proto.metadata_props} | {"junk": TENSOR.tobytes().hex() * 5}
    )
    onnx.save(proto, tmp_path / "m.onnx")
    (note,) = gate(model, tmp_path / "m.onnx")
    assert "bytes beside its tensors, more than" in note


@pytest.mark.parametrize("portable", [False, True])
def test_an_ort_file_of_many_nodes(good, tmp_path, monkeypatch, portable):
    """The graph alone takes more than the limit that does not count nodes."""
    if not portable and native_unavailable():
        pytest.skip(str(native_unavailable()))
    to_ort.write(good, tmp_path / "m.ort", portable=portable)
    monkeypatch.setattr(size, "NODE_BYTES", 0)
    monkeypatch.setattr(size, "GRAPH_BYTES", 16 * 1024)
    with pytest.raises(ExportError, match="beside its tensors"):
        to_ort.write(good, tmp_path / "m.ort", portable=portable)


def test_other_formats_tell_tensors_from_the_rest(model, tmp_path):
    expected = sum(p.numel() * p.element_size() for p in model.parameters())
    for to in ("torchscript", "pt2"):
        report = roast_export.export(model, tmp_path / f"m.{to}", to=to, example_inputs=INPUTS, verify=False)
        assert (
            expected
            <= report.tensor_bytes
            <= report.tensor_limit_bytes
            < report.file_bytes + size.TENSOR_BYTES
        )
