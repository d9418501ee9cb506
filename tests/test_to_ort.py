"""Both forms of a .ort: small, virtual, and the same answers as the .onnx."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import roast_export
from roast_export import ort_types, size, to_ort
from roast_export.compare import compare_values
from roast_export.errors import ExportError, RoastError
from roast_export.runtimes import native_unavailable
from tests.mappings import pattern
from tests.models import Small, small_inputs
from tests.onnx_models import attributes, one_node
from tests.test_native_kernel import LARGE

FORMS = {"native": False, "portable": True}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """An exported file, and inputs of another batch."""
    torch.manual_seed(0)
    small = roast_export.compress(Small().eval(), ratio=4)
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    dynamic = {"ids": {0: "batch"}, "extra": {0: "batch"}}
    roast_export.export(small, path, example_inputs=small_inputs(), dynamic_shapes=dynamic, verify=False)
    return path, {name: value.numpy() for name, value in small_inputs(3).items()}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    reason = native_unavailable() if request.param == "native" else None
    if reason:
        pytest.skip(reason)
    return request.param


def outputs_of(path: Path, form: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    if form == "native":
        return roast_export.create_session(path).run(None, inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def test_both_forms_answer_as_the_onnx_file(source, form, tmp_path):
    path, inputs = source
    target = tmp_path / "model.ort"
    to_ort.write(path, target, portable=FORMS[form])
    expected = outputs_of(path, "portable", inputs)
    outputs = outputs_of(target, form, inputs)
    assert len(outputs) == len(expected)
    for want, got in zip(expected, outputs, strict=True):
        assert compare_values(form, "y", "random", want, got, 1e-5, 1e-5).passed
        wrong = want + np.asarray(1e-3 * np.abs(want).max() + 1, want.dtype)
        assert not compare_values(form, "y", "random", wrong, got, 1e-5, 1e-5).passed


def test_the_operators_are_those_of_the_form(source, form, tmp_path):
    path, _ = source
    model = to_ort.write(path, tmp_path / "model.ort", portable=FORMS[form])
    domains = {domain for domain, _, _ in model.operators}
    assert "com.microsoft" not in domains
    assert ("ai.roast" in domains) == (form == "native")
    assert to_ort.read(tmp_path / "model.ort") == model


def test_the_config_of_a_reduced_build_names_the_standard_operators(source, form, tmp_path):
    path, _ = source
    model = to_ort.write(path, tmp_path / "model.ort", portable=FORMS[form])
    lines = to_ort.required_operators([model, model]).splitlines()
    named = {
        (domain, int(opset), name)
        for domain, opset, names in (line.split(";") for line in lines if not line.startswith("#"))
        for name in names.split(",")
    }
    assert named == {item for item in model.operators if item[0] != "ai.roast"}
    assert any(name == "Mod" for _, _, name in named) == (form == "portable")


def test_a_native_file_without_the_library_is_refused_by_onnxruntime(source, tmp_path):
    path, inputs = source
    if native_unavailable():
        pytest.skip(str(native_unavailable()))
    to_ort.write(path, tmp_path / "model.ort")
    with pytest.raises(Exception, match=r"ai\.roast"):
        outputs_of(tmp_path / "model.ort", "portable", inputs)


def names_of(content: bytes) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """What a .ort says of kernels' types: operator, name, inputs (0) and outputs (1)."""
    reader = importlib.import_module("ort_flatbuffers_py.fbs.InferenceSession").InferenceSession
    resolver = reader.GetRootAs(content, 0).KernelTypeStrResolver()
    entries = [resolver.OpKernelTypeStrArgs(k) for k in range(resolver.OpKernelTypeStrArgsLength())]
    return {entry.OpId().decode(): ort_types._names(entry) for entry in entries}


def test_minimal_builds_find_the_array_of_every_operator(source, tmp_path, monkeypatch):
    if native_unavailable():
        pytest.skip(str(native_unavailable()))
    path, inputs = source
    to_ort.write(path, tmp_path / "model.ort")
    monkeypatch.setattr(to_ort, "with_minimal_names", lambda content: content)
    to_ort.write(path, tmp_path / "plain.ort")
    plain, content = (tmp_path / "plain.ort").read_bytes(), (tmp_path / "model.ort").read_bytes()
    before, after = names_of(plain), names_of(content)
    ours = [name for name in before if name.startswith("ai.roast:")]
    assert len(ours) >= 2
    for name in before:
        array = 1 if "Linear" in name else 0
        added = {"T0": [(0, array)]} if name in ours else {}
        assert after[name] == {**before[name], **added}
    assert all("T0" not in before[name] for name in ours), "control"
    assert ort_types.with_minimal_names(content) == content, "once is enough"
    want, got = (outputs_of(tmp_path / file, "native", inputs) for file in ("plain.ort", "model.ort"))
    for one, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_stored_tensor_is_a_weight(source, form, tmp_path):
    path, _ = source
    model = to_ort.write(path, tmp_path / "model.ort", portable=FORMS[form])
    proto = onnx.load(path)
    stored = {tensor.name for tensor in proto.graph.initializer}
    assert {tensor.name for tensor in model.tensors} >= {"roast_memory"}
    added = [tensor for tensor in model.tensors if tensor.name not in stored]
    assert all(math.prod(tensor.dims) < to_ort.SMALLEST_WEIGHT for tensor in added)


def test_control_a_folded_weight_is_found(source, tmp_path):
    """What onnxruntime's defaults would have stored."""
    path, _ = source
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "dense.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    proto, model = onnx.load(path), to_ort.read(tmp_path / "dense.ort")
    layers = [node for node in proto.graph.node if node.domain == "ai.roast"]
    stored = [(tensor.name, tensor.dims) for tensor in model.tensors]
    assert "expanded" in str(to_ort.dense_complaint(proto, layers, stored))


@pytest.mark.parametrize(
    ("change", "what"),
    [(("SLACK", -9.0), "of"), (("GRAPH_BYTES", -(1 << 20)), "beside its")],
    ids=["of", "beside"],
)
def test_control_a_file_that_is_too_large_is_removed(source, tmp_path, monkeypatch, change, what):
    path, _ = source
    monkeypatch.setattr(size, *change)
    with pytest.raises(ExportError, match=rf"model\.ort: has \d+ bytes {what} tensors, more than -?\d+"):
        to_ort.write(path, tmp_path / "model.ort", portable=True)
    assert not (tmp_path / "model.ort").exists()


def test_materialized_weights_are_refused(tmp_path):
    m = LARGE["matrices"]
    path = tmp_path / "folded.onnx"
    path.write_bytes(one_node("RoastGatherFolded", attributes(m), {"memory": pattern(m.n_memory)}))
    with pytest.raises(ExportError, match="would be stored dense"):
        to_ort.write(path, tmp_path / "folded.ort")


def test_names_like_the_short_ones_are_left_alone(source, tmp_path):
    """As in the graphs that are cut out of a portable .ort."""
    proto, inputs = onnx.load(source[0]), source[1]
    for tensor in proto.graph.initializer:
        if tensor.name == "roast_memory":
            tensor.name = "_0"
    for node in proto.graph.node:
        node.input[:] = ["_0" if name == "roast_memory" else name for name in node.input]
    onnx.save(proto, tmp_path / "model.onnx")
    model = to_ort.write(tmp_path / "model.onnx", tmp_path / "model.ort", portable=True)
    assert "_0" in {tensor.name for tensor in model.tensors}
    want, got = (outputs_of(path, "portable", inputs) for path in (source[0], tmp_path / "model.ort"))
    for one, other in zip(want, got, strict=True):
        assert compare_values("portable", "output", "random", one, other, 1e-5, 1e-5).passed
        wrong = one + np.asarray(1e-3 * np.abs(one).max() + 1, one.dtype)
        assert not compare_values("portable", "output", "random", wrong, other, 1e-5, 1e-5).passed


def test_drawn_weights_have_no_portable_form(tmp_path):
    m = LARGE["drawn"]
    path = tmp_path / "drawn.onnx"
    path.write_bytes(one_node("RoastGatherDrawn", attributes(m, drawn=True), {"memory": pattern(m.n_memory)}))
    with pytest.raises(ExportError, match="no standard-operator form"):
        to_ort.write(path, tmp_path / "drawn.ort", portable=True)


def test_a_model_with_subgraphs_keeps_its_names(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, [2])],
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.zeros(3, np.float32), "unused")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = proto.SerializeToString()
    to_ort._shorten(proto, set())
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 64, b"\x10\0\0\0ORTM" + b"\xff" * 64])
def test_what_is_no_ort_file_is_refused(content, tmp_path):
    (tmp_path / "bad.ort").write_bytes(content)
    with pytest.raises(RoastError, match=r"bad\.ort is not an \.ort file"):
        to_ort.read(tmp_path / "bad.ort")
