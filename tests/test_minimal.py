"""The minimal build of ONNX Runtime, which `make mobile-minimal` makes: .ort files, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

import roast_export
from roast_export import runtime_minimal, to_ort
from roast_export.compare import compare_values
from roast_export.errors import RoastError
from roast_export.mapping import Mapping
from roast_export.report import Check, Report
from roast_export.runtimes import Runtime
from roast_export.to_onnx import OPSETS
from tests.mappings import pattern
from tests.models import MIXED_DYNAMIC, Mixed, mixed_inputs
from tests.onnx_models import attributes, one_node
from tests.test_native_kernel import LARGE, assert_same_bits

RUNTIMES = {runtime.name: runtime for runtime in runtime_minimal.runtimes()}
NATIVE, PORTABLE = RUNTIMES


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return usable(request.param)


@pytest.fixture
def native() -> Runtime:
    return usable(NATIVE)


def usable(name: str) -> Runtime:
    reason = RUNTIMES[name].unavailable()
    if reason:
        pytest.skip(reason)
    return RUNTIMES[name]


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    """The classifier of samples/digits.py, untrained."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)]
    return roast_export.compress(nn.Sequential(*layers).eval(), ratio=20)


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return roast_export.compress(Mixed().eval(), ratio=20)


X = (torch.rand(5, 64, generator=torch.Generator().manual_seed(3)),)


def exported(model: nn.Module, folder: Path, name: str, inputs=X, dynamic=None, opset=None) -> Path:
    """As .ort, in the form that the runtime `name` takes."""
    path = folder / "model.ort"
    roast_export.export(
        *(model, path),
        to="ort",
        example_inputs=inputs,
        dynamic_shapes=dynamic,
        portable=name == PORTABLE,
        opset=opset,
        verify=False,
    )
    return path


def verdict(model: nn.Module, path: Path, name: str) -> Report:
    return roast_export.verify(model, path, example_inputs=X, runtimes=[name])


def failures(report: Report, name: str, kind: str) -> list[Check]:
    return [check for check in report.failures if (check.runtime, check.kind) == (name, kind)]


@pytest.mark.skipif("ROAST_MINIMAL" not in os.environ, reason="only `make mobile-minimal` builds it")
def test_it_is_here():
    assert {name: runtime.unavailable() for name, runtime in RUNTIMES.items()} == dict.fromkeys(RUNTIMES)


# ---- The proof ----


def test_the_proof_of_a_file(runtime, digits, tmp_path):
    report = verdict(digits, exported(digits, tmp_path, runtime.name), runtime.name)
    assert report.passed, report.failures
    seen = [check for check in report.checks if check.runtime == runtime.name]
    assert len([check for check in seen if check.kind == "output"]) > 2
    weights = {
        check.name: check.elements for check in seen if check.kind == "weight" and check.case != "identity"
    }
    assert sum(weights.values()) == 166_400


def test_a_changed_array_is_found(native, digits, tmp_path):
    path = exported(digits, tmp_path, NATIVE)
    memory = next(p for name, p in digits.named_parameters() if "memory" in name).detach().numpy()
    content = bytearray(path.read_bytes())
    place = content.index(memory.tobytes()) + 4 * 100
    content[place] ^= 1
    path.write_bytes(content)
    found = failures(verdict(digits, path, NATIVE), NATIVE, "weight")
    assert [check for check in found if check.elements and check.expected != check.actual], (
        "one bit of one value"
    )


def test_a_wrong_answer_is_found(runtime, digits, tmp_path):
    path = exported(digits, tmp_path, runtime.name)
    other = torch.nn.Sequential(*digits, nn.Identity())
    with torch.no_grad():
        other[4].bias += 1e-3
        found = failures(verdict(other, path, runtime.name), runtime.name, "output")
        other[4].bias -= 1e-3
    assert [check for check in found if check.difference > check.bound > 0]


def test_a_model_with_every_layer_agrees_with_torch(runtime, mixed, tmp_path):
    path = exported(mixed, tmp_path, runtime.name, mixed_inputs(), MIXED_DYNAMIC)
    ids, image = mixed_inputs(3)
    with torch.no_grad():
        want = mixed(ids, image).numpy()
    (got,) = runtime.open(str(path))({"ids": ids.numpy(), "image": image.numpy()})
    found = compare_values(runtime.name, "logits", "random", want, got, 1e-5, 1e-5)
    assert found.passed, found
    # The control: the same bound refuses a slightly wrong answer.
    wrong = want + np.float32(1e-3) * np.abs(want).max()
    assert not compare_values(runtime.name, "logits", "random", wrong, got, 1e-5, 1e-5).passed


@pytest.mark.parametrize("opset", [OPSETS.start, 21])
def test_the_opsets_that_it_knows(runtime, digits, tmp_path, opset):
    path = exported(digits, tmp_path, runtime.name, opset=opset)
    standard = {number for domain, number, _ in to_ort.read(path).operators if domain == "ai.onnx"}
    assert max(standard) <= opset
    assert verdict(digits, path, runtime.name).passed


# ---- The operators ----


@pytest.mark.parametrize("name", ["matrices", "as is", "one row", "mt19937 signs", "drawn 64"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_weights_are_equal_in_every_bit(native, name, dtype):
    m: Mapping = LARGE[name]
    memory = pattern(m.n_memory, dtype)
    model = one_node("RoastGatherDrawn", attributes(m, -1.7, drawn=True), {"memory": memory})
    weight = native.open(model)({})[0]
    assert_same_bits(weight, m.weight(memory, -1.7))
    memory[m.indices().ravel()[0]] *= dtype(2)
    assert weight.tobytes() != m.weight(memory, -1.7).tobytes(), "control: another array"


def test_an_id_outside_the_table_is_an_error(native):
    m = LARGE["matrices"]
    memory, ids = pattern(m.n_memory), np.array([0, 699, 3], np.int64)
    model = one_node(
        "RoastEmbedding", attributes(m, 0.5), {"memory": memory, "ids": ids}, as_inputs=("ids",), rank=2
    )
    run = native.open(model)
    assert_same_bits(run({"ids": ids})[0], m.weight(memory, 0.5)[ids])
    with pytest.raises(RoastError, match=r"id 700 at place 0 is not in \[0, 700\)"):
        run({"ids": np.array([700], np.int64)})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shapes", [((5, 7), (5, 7)), ((5, 7), ()), ((), (5, 7)), ((5, 1), (1, 7))], ids=str)
def test_minimum_and_maximum_are_those_of_the_full_build(runtime, dtype, shapes):
    """custom_ops/minimal/eigen_array.h is part of them."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ("Min", "Max")
    graph = helper.make_graph(
        [helper.make_node(name, ["a", "b"], [name]) for name in names],
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip("ab", shapes, strict=True)],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
    )
    opsets = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    generator = np.random.default_rng(0)
    a, b = (np.asarray(100 * generator.standard_normal(shape)).astype(dtype) for shape in shapes)
    if dtype != np.int64 and a.ndim and b.ndim:
        a[0, 0] = b[-1, -1] = np.nan
    full = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for got, want in zip(
        runtime.open(model)({"a": a, "b": b}), full.run(None, {"a": a, "b": b}), strict=True
    ):
        np.testing.assert_array_equal(got, want)
        assert np.isnan(want).sum() == np.isnan(a + b).sum(), "a NaN is not lost"


# ---- What it refuses ----


def test_it_reads_no_onnx_file(runtime, digits, tmp_path):
    """That is what makes it a minimal build."""
    roast_export.export(digits, tmp_path / "model.onnx", example_inputs=X, verify=False)
    with pytest.raises(RoastError, match="ONNX format model is not supported in this build"):
        runtime.open(str(tmp_path / "model.onnx"))({"input": X[0].numpy()})


def test_a_native_file_as_onnxruntime_writes_it_is_refused(native, digits, tmp_path, monkeypatch):
    """Without the names of roast_export/ort_types.py."""
    monkeypatch.setattr(to_ort, "with_minimal_names", lambda content: content)
    path = exported(digits, tmp_path, NATIVE)
    with pytest.raises(RoastError, match="Failed to find args for kernel type string 'T0'"):
        native.open(str(path))({"input": X[0].numpy()})


def test_a_native_file_needs_the_library(digits, tmp_path):
    path = exported(digits, tmp_path, NATIVE)
    with pytest.raises(RoastError, match="onnxruntime's minimal build cannot run the model"):
        usable(PORTABLE).open(str(path))({"input": X[0].numpy()})


@pytest.mark.parametrize("content", [b"", b"not a model"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused(runtime, content, tmp_path):
    (tmp_path / "bad.ort").write_bytes(content)
    with pytest.raises(RoastError, match="onnxruntime's minimal build cannot run the model"):
        runtime.open(str(tmp_path / "bad.ort"))({})


# ---- Without a build ----


def test_a_missing_build_is_a_named_skip(monkeypatch, tmp_path, digits):
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path / "nothing"))
    path = exported(digits, tmp_path, PORTABLE)
    report = roast_export.verify(digits, path, example_inputs=X, runtimes=["all"])
    assert report.passed
    assert "libonnxruntime.so.1 is missing; run `make mobile-minimal`" in report.skipped[PORTABLE]
    assert NATIVE not in report.skipped, "it does not take the portable form"


def test_it_is_used_only_when_asked_for(monkeypatch, tmp_path, digits):
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path / "nothing"))
    path = exported(digits, tmp_path, PORTABLE)
    assert PORTABLE not in roast_export.verify(digits, path, example_inputs=X).skipped


def test_a_missing_operator_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path))
    for name in ("runtime/libonnxruntime.so.1", "runtime/loader", "ort_run"):
        (tmp_path / "minimal" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "minimal" / name).touch()
    assert runtime_minimal.unavailable() is None
    monkeypatch.setenv("ROAST_ORT_LIBRARY", str(tmp_path / "nowhere.so"))
    assert "ROAST_ORT_LIBRARY names" in str(runtime_minimal.native_unavailable())
