"""What onnxruntime promises in no document and this package relies on, and the runners built on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from roast_export import create_session, families, onnx_ops, ort_library_path, runtimes
from roast_export.errors import RoastError
from roast_export.mapping import Mapping
from tests.mappings import pattern

M = 4096
MAPPING = families.roast((256, 512), M, seed=1, tile=(32, 32), align=16)
TABLE = families.roast((512, 256), M, seed=2, tile=(1, 32), align=16, transposed=False)
DENSE = MAPPING.numel * 4
LEVELS = {
    level: getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
}

try:
    ort_library_path()
    MISSING = None
except RoastError as error:
    MISSING = str(error)
needs_library = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def gather(operator: str, output: str, mapping: Mapping = MAPPING) -> onnx.NodeProto:
    values = onnx_ops.attributes(mapping, 0.02, operator)
    return helper.make_node(operator, ["memory"], [output], name=output, domain=onnx_ops.DOMAIN, **values)


def product(operator: str = "RoastGather", *, functions: bool = True) -> onnx.ModelProto:
    """y = (x @ W) @ W2.T: two layers of one array."""
    nodes = [
        gather(operator, "w"),
        gather(operator, "w2", families.roast((256, 512), M, seed=3, tile=(32, 32), align=16)),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["w2"], ["w2t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "w2t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(pattern(M) / 1000, "memory")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(onnx_ops.DOMAIN, 1)]
    bodies = onnx_ops.functions([operator], 20) if functions else []
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)


def weight_only(mapping: Mapping = MAPPING, operator: str = "RoastGather") -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(onnx_ops.DOMAIN, 1)]
    graph = helper.make_graph(
        [gather(operator, "w", mapping)],
        "g",
        [],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, list(mapping.shape))],
        [numpy_helper.from_array(pattern(M), "memory")],
    )
    return helper.make_model(
        graph, opset_imports=opsets, functions=onnx_ops.functions([operator], 20), ir_version=10
    )


def optimised(
    proto: onnx.ModelProto, folder: Path, *, native: bool, fold: bool = True, level: str = "ENABLE_ALL"
) -> onnx.ModelProto:
    """What a session makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    if not fold:
        options.add_session_config_entry(runtimes.DISABLE_FOLDING, "ConstantFolding")
    if native:
        create_session(saved(proto, folder), options)
    else:
        onnxruntime.InferenceSession(saved(proto, folder), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def saved(proto: onnx.ModelProto, folder: Path) -> str:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return str(folder / "m.onnx")


def largest(proto: onnx.ModelProto) -> int:
    """Bytes of the largest tensor in a graph."""
    return max(len(numpy_helper.to_array(tensor).tobytes()) for tensor in proto.graph.initializer)


def operators(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node if node.domain == onnx_ops.DOMAIN}


X = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)


# ---- Facts of onnxruntime ----


@needs_library
def test_the_kernel_wins_over_the_function(tmp_path):
    proto = weight_only()
    body = proto.functions[0].node
    last = next(node for node in body if "result" in node.output)
    last.output[0] = "right"
    body.append(helper.make_node("Neg", ["right"], ["result"]))
    weight = MAPPING.weight(pattern(M), 0.02)
    native = create_session(saved(proto, tmp_path)).run(None, {})[0]
    assert native.tobytes() == weight.tobytes()
    stock = onnxruntime.InferenceSession(saved(proto, tmp_path), providers=["CPUExecutionProvider"])
    assert stock.run(None, {})[0].tobytes() == (-weight).tobytes(), "control: the function is another one"


@pytest.mark.parametrize("level", LEVELS)
def test_without_the_library_the_function_is_inlined(tmp_path, level):
    found = optimised(product(), tmp_path, native=False, fold=False, level=level)
    assert operators(found) == set()
    assert len(found.graph.node) > 100


def test_control_without_library_and_function_nothing_runs(tmp_path):
    path = saved(product(functions=False), tmp_path)
    with pytest.raises(Exception, match="RoastGather"):
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@needs_library
@pytest.mark.parametrize("fold", [True, False], ids=["folding", "no folding"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_node_of_the_library_is_never_folded(tmp_path, level, fold):
    found = optimised(product(), tmp_path, native=True, fold=fold, level=level)
    assert operators(found) == {"RoastGather"}
    assert largest(found) == 4 * M
    assert [tensor.name for tensor in found.graph.initializer] == ["memory"], "one array for two layers"


@pytest.mark.parametrize("level", ["ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"])
def test_folding_decides_what_a_session_without_the_library_holds(tmp_path, level):
    assert largest(optimised(product(), tmp_path, native=False, level=level)) == DENSE
    assert largest(optimised(product(), tmp_path, native=False, fold=False, level=level)) <= 4 * M


@needs_library
def test_a_materialized_weight_is_folded_with_the_library_too(tmp_path):
    found = optimised(product("RoastGatherFolded"), tmp_path, native=True)
    assert operators(found) == set()
    assert largest(found) == DENSE


@needs_library
def test_what_is_saved_after_optimising_with_the_library_is_small(tmp_path):
    path = Path(saved(product(), tmp_path))
    runtimes.optimised_copy(path, tmp_path / "copy.onnx")
    size = sum(file.stat().st_size for file in tmp_path.glob("copy.onnx*"))
    assert size < 4 * M + 64 * 1024
    found = onnx.load(tmp_path / "copy.onnx")
    assert operators(found) == {"RoastGather"}
    y = create_session(tmp_path / "copy.onnx").run(None, {"x": X})[0]
    np.testing.assert_array_equal(y, create_session(path).run(None, {"x": X})[0])


def test_native_folded_and_unfolded_agree(tmp_path):
    path = saved(product(), tmp_path)
    usable = [runtime for runtime in runtimes.onnx_runtimes() if runtime.unavailable() is None]
    first, *others = [runtime.open(path)({"x": X})[0] for runtime in usable]
    for y in others:
        np.testing.assert_allclose(y, first, rtol=1e-5, atol=1e-5 * np.abs(first).max())
    changed = usable[0].open(path)({"x": X * 1.001})[0]
    assert np.abs(changed - first).max() > 1e-5 * np.abs(first).max(), "control"


def test_a_drawn_weight_says_that_it_needs_the_library(tmp_path):
    drawn = families.fakeroast_random((8, 8), M, 3, draw_bits=64)
    path = saved(weight_only(drawn, "RoastGatherDrawn"), tmp_path)
    with pytest.raises(Exception, match="RoastGatherDrawn"):
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if MISSING is None:
        assert create_session(path).run(None, {})[0].tobytes() == drawn.weight(pattern(M), 0.02).tobytes()


# ---- create_session and the runners ----


@needs_library
@pytest.mark.parametrize("as_text", [True, False], ids=["str", "path"])
def test_create_session_takes_what_a_session_takes(tmp_path, as_text):
    path = Path(saved(product(), tmp_path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = False
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    session = create_session(str(path) if as_text else path, options, provider_options=[{}])
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1
    assert operators(onnx.load(tmp_path / "seen.onnx")) == {"RoastGather"}


@needs_library
def test_options_can_be_used_for_two_sessions(tmp_path):
    path, options = saved(product(), tmp_path), onnxruntime.SessionOptions()
    first, second = (create_session(path, options).run(None, {"x": X})[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAST_ORT_LIBRARY", str(tmp_path / "nowhere.so"))
    path = saved(product(), tmp_path)
    for call in (lambda: create_session(path), ort_library_path):
        with pytest.raises(RoastError, match=r"ROAST_ORT_LIBRARY names .*nowhere\.so.*correct or unset"):
            call()
    assert "nowhere.so" in (runtimes.native_unavailable() or "")
    usable = {r.name for r in runtimes.onnx_runtimes() if r.unavailable() is None}
    assert usable == {"onnxruntime portable", "onnxruntime folded", "onnx reference"}


def test_a_file_that_is_no_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.so").write_text("not a library")
    monkeypatch.setenv("ROAST_ORT_LIBRARY", str(tmp_path / "text.so"))
    with pytest.raises(RoastError, match=r"onnxruntime does not accept .*text\.so"):
        create_session(saved(product(), tmp_path))


@needs_library
def test_control_with_the_library_all_runners_are_usable():
    assert runtimes.native_unavailable() is None
    assert [r.name for r in runtimes.onnx_runtimes() if r.unavailable() is not None] == []


@pytest.mark.parametrize("runtime", runtimes.onnx_runtimes(), ids=lambda runtime: runtime.name)
def test_a_runner_takes_a_path_and_bytes(tmp_path, runtime):
    if runtime.unavailable() is not None:
        pytest.skip(str(runtime.unavailable()))
    proto = weight_only()
    weight = MAPPING.weight(pattern(M), 0.02)
    for source in (saved(proto, tmp_path), proto.SerializeToString()):
        assert runtime.open(source)({})[0].tobytes() == weight.tobytes()
    with pytest.raises(Exception, match=r"(?i)load|parse|decod|protobuf|no such|exist"):
        runtime.open(str(tmp_path / "nothing.onnx"))


@pytest.mark.parametrize("runtime", runtimes.onnx_runtimes(), ids=lambda runtime: runtime.name)
def test_every_runner_refuses_an_id_outside_the_table(runtime):
    if runtime.unavailable() is not None:
        pytest.skip(str(runtime.unavailable()))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    values = onnx_ops.attributes(TABLE, 0.02, "RoastEmbedding")
    graph = helper.make_graph(
        [helper.make_node("RoastEmbedding", ["memory", "ids"], ["y"], domain=onnx_ops.DOMAIN, **values)],
        "g",
        [ids],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(pattern(M), "memory")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(onnx_ops.DOMAIN, 1)]
    bodies = onnx_ops.functions(["RoastEmbedding"], 20)
    proto = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    run = runtime.open(proto.SerializeToString())
    good = np.array([0, 511])
    assert run({"ids": good})[0].tobytes() == TABLE.weight(pattern(M), 0.02)[good].tobytes()
    for bad in (-1, 512):
        with pytest.raises(Exception, match=r"(?i)bounds|not in \[0, 512\)"):
            run({"ids": np.array([0, bad])})
