"""measure: a fresh process without torch, with figures that follow what the path does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from roast_export import measure as module
from roast_export.errors import RoastError
from roast_export.families import roast
from roast_export.libraries import ort_library_path
from roast_export.measure import measure
from roast_export.onnx_ops import DOMAIN, attributes, functions

LINUX = sys.platform == "linux"
SIDE = 2048
DENSE_BYTES = 4 * SIDE * SIDE
X = {"x": np.ones((1, SIDE), np.float32)}


def _library() -> str | None:
    try:
        return ort_library_path()
    except RoastError:
        return None


native_only = pytest.mark.skipif(_library() is None, reason="no native library")


def write_model(path: Path, *, dense: bool = False) -> Path:
    """x @ W, with a virtual W of 16 MiB out of 64 KiB, or with W itself."""
    mapping = roast((SIDE, SIDE), 16384, seed=1, tile=(32, 32), align=16)
    memory = np.random.default_rng(0).standard_normal(16384, dtype=np.float32)
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    stored = {"W": mapping.weight(memory)} if dense else {"memory": memory}
    if not dense:
        values = attributes(mapping, 1.0, "RoastGather")
        nodes.insert(0, helper.make_node("RoastGather", ["memory"], ["W"], domain=DOMAIN, **values))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIDE])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if not dense:
        model.functions.extend(functions(["RoastGather"], 18))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def virtual(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("measure") / "virtual.onnx")


@pytest.mark.skipif(not LINUX, reason="memory is read from /proc")
def test_a_dense_model_costs_its_weights_and_a_portable_one_does_not_at_load(virtual, tmp_path):
    dense = measure(write_model(tmp_path / "dense.onnx", dense=True), X, native=False, label="dense")
    portable = measure(virtual, X, native=False, runs=1)
    assert dense.path == "dense"
    assert portable.path == "portable"
    assert dense.load_resident_bytes > 0.8 * DENSE_BYTES
    assert portable.load_resident_bytes < 0.8 * DENSE_BYTES
    for found in (dense, portable):
        assert found.load_peak_bytes >= found.load_resident_bytes > 0
        assert 0 < found.load_seconds < 60
        assert 0 < found.run_seconds < 60


@pytest.mark.skipif(not LINUX, reason="memory is read from /proc")
def test_folding_brings_the_dense_weight_back(virtual):
    folded = measure(virtual, X, native=False, fold=True, runs=1)
    assert folded.path == "portable, folded"
    assert folded.load_resident_bytes > 0.8 * DENSE_BYTES


@native_only
def test_the_native_path_loads_small(virtual):
    native = measure(virtual, X, native=True, runs=2)
    assert native.path == "native"
    if LINUX:
        assert native.load_resident_bytes < 0.8 * DENSE_BYTES


def test_the_child_process_imports_neither_torch_nor_the_package(virtual, tmp_path):
    np.savez(tmp_path / "in.npz", _x=X["x"])
    request = {"path": str(virtual), "kind": "onnx", "library": None, "fold": False, "threads": 1, "runs": 1}
    request["inputs"] = str(tmp_path / "in.npz")
    command = [sys.executable, "-X", "importtime", "-P", module.__file__, json.dumps(request)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert {"numpy", "onnxruntime"} <= imported
    assert not {"torch", "onnx", "roast_export"} & imported


@pytest.mark.parametrize(
    ("content", "inputs", "says"),
    [
        (b"not a model", X, "could not be measured: .*"),
        (None, {"y": X["x"]}, "could not be measured: ValueError"),
        (None, {"x": X["x"].astype(np.float64)}, "could not be measured: .*float"),
    ],
)
def test_a_failure_in_the_child_is_one_message(virtual, tmp_path, content, inputs, says):
    path = virtual
    if content is not None:
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
    with pytest.raises(RoastError, match=says) as caught:
        measure(path, inputs, native=False)
    assert "\n" not in str(caught.value)


def test_zero_runs_are_refused(virtual):
    with pytest.raises(RoastError, match="at least 1"):
        measure(virtual, X, native=False, runs=0)
