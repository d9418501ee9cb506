"""docs/tools.md: what other tools make of an exported file, as the page says to call them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
import onnx.version_converter
import onnxruntime
import pytest
import torch
from onnx import helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16
from torch import nn

import roast_export
from roast_export import onnx_ops

LAYERS = ["emb.weight", "wide.weight", "conv.weight", "head.weight"]


class Words(nn.Module):
    """A lookup, products and a convolution: everything that a tool could trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.wide = nn.Embedding(300, 64), nn.Linear(64, 64)
        self.conv, self.head = nn.Conv1d(64, 64, 3, padding=1), nn.Linear(64, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.emb(ids)
        x = torch.relu(x + self.wide(x))
        return self.head(self.conv(x.transpose(1, 2)).transpose(1, 2))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The module, its example, the file and the outputs."""
    torch.manual_seed(0)
    model = roast_export.compress(Words().eval(), ratio=4)
    ids = torch.randint(0, 300, (2, 7))
    path = tmp_path_factory.mktemp("tools") / "words.onnx"
    roast_export.export(model, path, example_inputs=(ids,), verify=False)
    return model, ids, path, model(ids).detach().numpy()


def outputs(proto: onnx.ModelProto, *ids: torch.Tensor, library: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(roast_export.ort_library_path()))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, (value.numpy() for value in ids), strict=True)))


def is_right(proto: onnx.ModelProto, words, atol: float = 1e-5) -> None:
    """Equal results with the library and without, and no weight in the file that was not there."""
    _, ids, path, expected = words
    for library in (True, False):
        (actual,) = outputs(proto, ids, library=library)
        np.testing.assert_allclose(actual, expected, atol=atol)
    assert {node.op_type for node in onnx_ops.layers_in(proto.graph)} == {
        "RoastEmbedding", "RoastLinearBias", "RoastGather",
    }  # fmt: skip
    assert proto.ByteSize() < path.stat().st_size * 1.1


def passes(proto: onnx.ModelProto, words, tmp_path) -> bool:
    model, ids, _, _ = words
    onnx.save(proto, tmp_path / "changed.onnx")
    return roast_export.verify(model, tmp_path / "changed.onnx", example_inputs=(ids,)).passed


def test_version_converter_and_its_functions_back(words, tmp_path):
    model = onnx.load(words[2])
    converted = onnx.version_converter.convert_version(model, 21)
    assert not converted.functions, "the tool keeps functions now: shorten docs/tools.md"
    with pytest.raises(Exception, match="not a registered function"):
        outputs(converted, words[1], library=False)
    for function in model.functions:
        copy = converted.functions.add()
        copy.CopyFrom(function)
        next(o for o in copy.opset_import if o.domain == "").version = 21
    is_right(converted, words)
    assert passes(converted, words, tmp_path)


def test_a_prefix_leaves_operators_to_the_library(words):
    model = onnx.load(words[2])
    prefixed = onnx.compose.add_prefix(model, "enc/", rename_functions=False)
    is_right(prefixed, words)
    renamed = onnx.compose.add_prefix(model, "enc/")
    assert {n.op_type for n in onnx_ops.layers_in(renamed.graph)} == {
        "enc/RoastEmbedding", "enc/RoastLinearBias", "enc/RoastGather",
    }  # fmt: skip
    for library in (True, False):
        np.testing.assert_allclose(outputs(renamed, words[1], library=library)[0], words[3], atol=1e-5)


def test_two_models_become_one(words):
    first = onnx.compose.add_prefix(onnx.load(words[2]), "a/", rename_functions=False)
    second = onnx.compose.add_prefix(onnx.load(words[2]), "b/", rename_functions=False)
    with pytest.raises(ValueError, match="overlapping local function names"):
        onnx.compose.merge_models(first, second, io_map=[])
    functions = {f.name: f for f in [*first.functions, *second.functions]}
    del first.functions[:], second.functions[:]
    merged = onnx.compose.merge_models(first, second, io_map=[])
    merged.functions.extend(functions.values())
    ids = words[1]
    other = ids.flip(0)
    for library in (True, False):
        straight, flipped = outputs(merged, ids, other, library=library)
        np.testing.assert_allclose(straight, words[3], atol=1e-5)
        np.testing.assert_allclose(flipped, words[3][::-1], atol=1e-5)
        assert np.abs(flipped - words[3]).max() > 0.01  # the control: the inputs are told apart
    assert {node.name for node in onnx_ops.layers_in(merged.graph)} == {
        f"{prefix}{name}" for prefix in ("a/", "b/") for name in LAYERS
    }


def test_dynamic_quantisation_leaves_virtual_weights(words, tmp_path):
    proto = onnx.load(words[2])
    dense = np.random.default_rng(0).standard_normal((64, 16), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(dense, "dense"))
    (output,) = proto.graph.output
    proto.graph.node.append(helper.make_node("MatMul", [output.name, "dense"], ["product"], name="tail"))
    proto.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, [None, None, 16])
    )
    source, target = tmp_path / "tail.onnx", tmp_path / "int8.onnx"
    onnx.save(proto, source)
    with pytest.raises(ValueError, match="to be an initializer"):
        quantize_dynamic(source, target)
    quantize_dynamic(source, target, op_types_to_quantize=["MatMul", "Gemm"])
    int8 = onnx.load(target)
    assert any(node.op_type == "MatMulInteger" for node in int8.graph.node)
    assert {node.name for node in onnx_ops.layers_in(int8.graph)} == set(LAYERS)
    expected = words[3] @ dense
    for library in (True, False):
        (actual,) = outputs(int8, words[1], library=library)
        assert 0 < np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_preprocessing_for_quantisation_keeps_weights_virtual(words, tmp_path):
    quant_pre_process(words[2], tmp_path / "expanded.onnx", skip_symbolic_shape=True)
    assert not onnx_ops.layers_in(onnx.load(tmp_path / "expanded.onnx").graph)
    quant_pre_process(words[2], tmp_path / "ready.onnx", skip_optimization=True, skip_symbolic_shape=True)
    is_right(onnx.load(tmp_path / "ready.onnx"), words)


def test_float16_by_another_tool(words):
    model = onnx.load(words[2])
    with pytest.raises(Exception, match="float16"):
        outputs(
            float16.convert_float_to_float16(onnx.load(words[2]), keep_io_types=True), words[1], library=True
        )
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *onnx_ops.OPERATORS]
    narrow = float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
    assert any(t.data_type == onnx.TensorProto.FLOAT16 for t in narrow.graph.initializer)
    is_right(narrow, words, atol=2e-2)


def test_inlining_leaves_standard_operators(words):
    inlined = onnx.inliner.inline_local_functions(onnx.load(words[2]))
    assert not onnx_ops.layers_in(inlined.graph)
    np.testing.assert_allclose(outputs(inlined, words[1], library=False)[0], words[3], atol=1e-5)
    assert inlined.ByteSize() < 2 * words[2].stat().st_size
