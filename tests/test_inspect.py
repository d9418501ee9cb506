"""inspect and summary: what they say, and that damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from roast_export import inspect as module
from roast_export import runtimes
from roast_export.compress import compress
from roast_export.errors import LoadError, RoastError
from roast_export.families import roast
from roast_export.inspect import inspect
from roast_export.onnx_ops import DOMAIN, attributes, functions
from roast_export.summary import summary

M = 1024
MAPPING = roast((20, 30), M, seed=1, tile=(16, 16), align=16)
TABLE = roast((50, 32), M, seed=2, tile=(1, 32), align=16, transposed=False)


def virtual_node(operator: str, mapping, inputs: list[str], output: str, name: str) -> onnx.NodeProto:
    values = attributes(mapping, 0.03, operator)
    return helper.make_node(operator, inputs, [output], name=name, domain=DOMAIN, **values)


def model(**changes) -> onnx.ModelProto:
    """Two uses of fc.weight, one table, one bias; one array for both weights."""
    nodes = [
        virtual_node("RoastGather", MAPPING, ["memory"], "w", "fc.weight"),
        virtual_node("RoastGather", MAPPING, ["memory"], "w2", "fc.weight#2"),
        virtual_node("RoastEmbedding", TABLE, ["memory", "ids"], "e", "table.weight"),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 20]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 7]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 30])],
        [
            numpy_helper.from_array(np.zeros(M, changes.get("dtype", np.float32)), "memory"),
            numpy_helper.from_array(np.zeros(30, np.float32), "bias"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    proto.functions.extend(functions(changes.get("written", ["RoastGather", "RoastEmbedding"]), 18))
    helper.set_model_props(proto, {"roast.mapping_version": "1"})
    return proto


def saved(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def library(monkeypatch):
    """Answers for whether the native library can be used."""

    def answer(reason: str | None) -> None:
        monkeypatch.setattr(module, "native_unavailable", lambda: reason)

    answer(None)
    return answer


def test_an_exported_file_is_described(tmp_path, library):
    found = inspect(saved(tmp_path, model()))
    assert [layer.name for layer in found.layers] == ["fc.weight", "table.weight"]
    assert [layer.operator for layer in found.layers] == ["RoastGather", "RoastEmbedding"]
    assert [layer.shape for layer in found.layers] == [(20, 30), (50, 32)]
    assert found.layers[0].scale == pytest.approx(0.03)
    array = found.arrays["memory"]
    assert (array.slots, array.dtype, array.bytes, array.readers) == (M, "float32", 4 * M, 2)
    assert found.kept_bytes == 120
    assert found.dense_bytes == 4 * (600 + 1600) + 120
    assert found.opset == 18
    assert found.inputs == {"x": "float32[batch, 20]", "ids": "int64[batch, 7]"}
    assert found.file_bytes == (tmp_path / "m.onnx").stat().st_size
    assert found.paths == {"native": "yes", "portable": "yes"}
    assert found.would_run == "native"
    text = str(found)
    for part in ["fc.weight", "20x30", "1x32", "roast.mapping_version: 1", "y: float32[batch, 30]", "native"]:
        assert part in text
    assert text.isascii()
    assert found.to_dict()["arrays"]["memory"]["slots"] == M


def test_float16_arrays_count_half(tmp_path, library):
    assert inspect(saved(tmp_path, model(dtype=np.float16))).array_bytes == 2 * M


def test_the_path_follows_library_and_functions(tmp_path, library):
    path = saved(tmp_path, model())
    library("it is not installed")
    found = inspect(path)
    assert found.would_run == "portable"
    assert found.paths["native"] == "no: it is not installed"
    found = inspect(saved(tmp_path, model(written=["RoastGather"])))
    assert found.would_run == "not at all"
    assert "RoastEmbedding has no form" in found.paths["portable"]
    library(None)
    assert inspect(path).would_run == "native"


def test_materialized_weights_never_run_natively(tmp_path, library):
    proto = model(written=["RoastGatherFolded", "RoastEmbedding"])
    for node in proto.graph.node[:2]:
        node.op_type = "RoastGatherFolded"
    found = inspect(saved(tmp_path, proto))
    assert found.would_run == "portable"
    assert "dense on purpose" in found.paths["native"]


def test_nodes_in_branches_are_found(tmp_path, library):
    proto = model()
    inner = helper.make_graph(
        [virtual_node("RoastGather", MAPPING, ["memory"], "v", "inner.weight")],
        "then",
        [],
        [helper.make_tensor_value_info("v", TensorProto.FLOAT, [20, 30])],
    )
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    assert "inner.weight" in [layer.name for layer in inspect(saved(tmp_path, proto)).layers]


def test_external_data_counts_and_stays_on_disk(tmp_path, library):
    proto = model()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    found = inspect(path)
    assert found.file_bytes == path.stat().st_size + (tmp_path / "m.onnx.data").stat().st_size
    assert found.array_bytes == 4 * M


def test_external_data_outside_the_folder_is_not_looked_at(tmp_path, library):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(b"x" * 1000)
    proto = model()
    tensor = proto.graph.initializer[1]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path = saved(inner, proto)
    assert inspect(path).file_bytes == path.stat().st_size


def test_an_ordinary_file_is_called_so(tmp_path):
    proto = model()
    del proto.graph.node[:3]
    found = inspect(saved(tmp_path, proto))
    assert found.layers == []
    assert "ordinary ONNX file" in str(found)


def _without(name):
    def change(proto):
        node = proto.graph.node[0]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)

    return change


def _with(name, value):
    def change(proto):
        _without(name)(proto)
        proto.graph.node[0].attribute.append(helper.make_attribute(name, value))

    return change


def _unknown_operator(proto):
    proto.graph.node[0].op_type = "RoastFuture"


def _no_inputs(proto):
    del proto.graph.node[0].input[:]


def _negative(proto):
    proto.graph.initializer[1].dims[0] = -30


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *((_without(name), "'fc.weight' is damaged") for name in ("tile", "hash1", "scale", "n_memory")),
        (_with("tile", [0, 16]), "'fc.weight' is damaged: .*tile"),
        (_with("tile", [16]), "'fc.weight' is damaged"),
        (_with("tile", 16), "'fc.weight' is damaged"),
        (_with("shape", [-20, -30]), "'fc.weight' is damaged: .*shape"),
        (_with("hash1", [1, 2, 3]), "'fc.weight' is damaged"),
        (_with("scale", "x"), "'fc.weight' is damaged"),
        (_unknown_operator, "unknown operator RoastFuture; upgrade"),
        (_no_inputs, "'fc.weight' is damaged"),
        (_negative, "'bias' has a negative dimension"),
    ],
)
def test_a_damaged_layer_is_named(tmp_path, change, says):
    proto = model()
    change(proto)
    with pytest.raises(LoadError, match=says):
        inspect(saved(tmp_path, proto))


@pytest.mark.parametrize(
    "content", [b"", b"just a text file, no model\n", b"\x08\x07\x12\x04abcd", b"\xff" * 99]
)
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="damaged"):
        inspect(path)


def test_a_truncated_or_missing_file_is_refused(tmp_path):
    path = saved(tmp_path, model())
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(LoadError, match="damaged"):
        inspect(path)
    with pytest.raises(LoadError, match="does not exist"):
        inspect(tmp_path / "none.onnx")
    with pytest.raises(LoadError, match="is a folder"):
        inspect(tmp_path)


def test_a_model_file_shows_its_summary(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(compress(_net(), 10), path)
    with pytest.raises(RoastError, match="--trust"):
        inspect(path)
    found = inspect(path, trust=True)
    assert found.kind == "PyTorch"
    assert len(found.summary.arrays) == 1
    assert "32x32 tiles" in str(found) or "tiles, scale" in str(found)


def test_the_native_answer_is_the_runtimes_own():
    assert module.native_unavailable is runtimes.native_unavailable


class Tied(nn.Module):
    """An embedding whose table is the last layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 64)
        self.hidden = nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)
        self.out = nn.Linear(64, 100, bias=False)
        self.out.weight = self.table.weight


def _net() -> Tied:
    torch.manual_seed(0)
    return Tied()


def test_summary_of_a_compressed_model():
    found = summary(compress(_net(), 10))
    rows = {row.name: row for row in found.rows}
    assert rows["hidden.weight"].compressed
    assert rows["hidden.weight"].shape == (64, 64)
    assert "tiles, scale" in rows["hidden.weight"].detail
    assert rows["hidden.bias"].detail == "one dimension (bias or norm)"
    assert rows["out.weight"].detail == "same as table.weight"
    assert rows["out.weight"].tied
    assert not any("memory" in name for name in rows)
    [array] = found.arrays
    assert array.readers == 2
    assert array.slots == -(-round((6400 + 4096) / 10) // 16) * 16
    assert found.virtual_elements == 6400 + 4096
    assert found.kept_bytes == 4 * 3 * 64 + 4 * 2 * 64 + 8
    assert found.dense_bytes == sum(p.nbytes for p in _net().parameters()) + 4 * 2 * 64 + 8
    assert str(found).isascii()
    assert "same as table.weight" in str(found)


def test_summary_of_local_arrays():
    found = summary(compress(_net(), 10, local=True))
    assert [array.readers for array in found.arrays] == [1, 1]


def test_summary_says_why_compress_left_a_parameter():
    found = summary(compress(_net(), 10, exclude=["hidden.*"]))
    reasons = {row.name: row.detail for row in found.rows}
    assert reasons["hidden.weight"] == "excluded"
    assert found.virtual_elements == 6400


def test_control_a_dense_model_has_nothing_virtual():
    found = summary(_net())
    assert found.arrays == []
    assert not any(row.compressed for row in found.rows)
    assert found.array_bytes == 0
    details = {row.name: row.detail for row in found.rows}
    assert details["hidden.weight"] == "not compressed"
    assert details["out.weight"] == "same as table.weight"
