"""ONNX Runtime for 64-bit ARM under qemu: every operator with the library, and the functions without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import roast_export
from roast_export import runtime_qemu
from roast_export.compare import compare_values
from roast_export.errors import RoastError
from roast_export.mapping import Mapping
from roast_export.runtimes import Runtime
from roast_export.tensor_file import decode, encode
from tests.mappings import pattern
from tests.models import MIXED_DYNAMIC, Mixed, mixed_inputs
from tests.onnx_models import attributes, one_node
from tests.test_native_kernel import LARGE, assert_same_bits

RUNTIMES = {runtime.name: runtime for runtime in runtime_qemu.runtimes()}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found = RUNTIMES[request.param]
    reason = found.unavailable()
    if reason:
        pytest.skip(reason)
    return found


@pytest.fixture
def native() -> Callable[[str | bytes], Callable[[dict[str, Any]], list[Any]]]:
    reason = runtime_qemu.native_unavailable()
    if reason:
        pytest.skip(reason)
    return runtime_qemu.open_native


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray], dict[str, np.ndarray]]:
    """A file with a layer of every kind, what torch makes of three inputs, and the inputs."""
    torch.manual_seed(0)
    model = roast_export.compress(Mixed().eval(), ratio=20)
    path = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    roast_export.export(
        model, path, example_inputs=mixed_inputs(), dynamic_shapes=MIXED_DYNAMIC, verify=False
    )
    ids, image = mixed_inputs(3)
    with torch.no_grad():
        expected = model(ids, image).numpy()
    return path, [expected], {"ids": ids.numpy(), "image": image.numpy()}


def test_a_model_with_every_layer_agrees_with_torch(runtime, mixed):
    path, expected, inputs = mixed
    outputs = runtime.open(str(path))(inputs)
    assert len(outputs) == len(expected)
    for got, want in zip(outputs, expected, strict=True):
        found = compare_values(runtime.name, "logits", "random", want, got, 1e-5, 1e-5)
        assert found.passed, found
        # The control: the same bound refuses a slightly wrong answer.
        wrong = want + np.float32(1e-3) * np.abs(want).max()
        assert not compare_values(runtime.name, "logits", "random", wrong, got, 1e-5, 1e-5).passed


# Every map by every instruction set is in test_qemu.py; here, that the operator reaches the kernel.
@pytest.mark.parametrize("name", ["matrices", "mt19937 signs", "drawn 64"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_weights_are_equal_in_every_bit(native, name, dtype):
    m: Mapping = LARGE[name]
    memory = pattern(m.n_memory, dtype)
    model = one_node("RoastGatherDrawn", attributes(m, -1.7, drawn=True), {"memory": memory})
    assert_same_bits(native(model)({})[0], m.weight(memory, -1.7))


def test_rows_are_equal_in_every_bit(native):
    m = LARGE["matrices"]
    memory, ids = pattern(m.n_memory), np.array([[0, 699, 3], [3, 3, 350]], np.int64)
    model = one_node(
        "RoastEmbedding", attributes(m, 0.5), {"memory": memory, "ids": ids}, as_inputs=("ids",), rank=3
    )
    assert_same_bits(native(model)({"ids": ids})[0], m.weight(memory, 0.5)[ids])


def test_an_id_outside_the_table_is_an_error(native):
    m = LARGE["matrices"]
    model = one_node(
        "RoastEmbedding",
        attributes(m),
        {"memory": pattern(m.n_memory), "ids": np.zeros(1, np.int64)},
        as_inputs=("ids",),
        rank=2,
    )
    with pytest.raises(RoastError, match=r"id 700 at place 0 is not in \[0, 700\)"):
        native(model)({"ids": np.array([700], np.int64)})


@pytest.mark.parametrize("model", [b"", b"not a model"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused(runtime, model):
    with pytest.raises(RoastError, match="onnxruntime on arm64 cannot run the model"):
        runtime.open(model)({})


def test_missing_programs_are_named_with_what_makes_them(monkeypatch, tmp_path):
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path))
    assert "qemu-aarch64 is missing; run `make mobile`" in str(runtime_qemu.unavailable())
    for name in ("bin/qemu-aarch64", "ort_run-aarch64", "aarch64/libonnxruntime.so.1"):
        (tmp_path / "qemu" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "qemu" / name).touch()
    assert runtime_qemu.unavailable() is None
    assert "libroast_ort.so is missing; run `make cross`" in str(runtime_qemu.native_unavailable())


def test_tensors_survive_the_file_format():
    tensors = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a name": np.array(7, np.int64),
        "none": np.zeros((0, 4), np.float16),
        "flags": np.array([True, False, True]),
    }
    back = decode(encode(tensors))
    assert len(back) == len(tensors)
    for got, want in zip(back, tensors.values(), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert helper.np_dtype_to_tensor_dtype(back[2].dtype) == TensorProto.FLOAT16
