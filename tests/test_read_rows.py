"""Rows that are picked out of a virtual weight are expanded alone, such as the experts that a token takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional

import roast_export
from roast_export import modes, onnx_ops, torch_ops
from roast_export.compress import _Group
from roast_export.errors import RoastError
from roast_export.libraries import ort_library_path
from roast_export.modules import virtual_weights
from roast_export.placement import Placed, place
from roast_export.program import LoadedProgram, layers_of, quiet
from roast_export.read_rows import as_table
from roast_export.to_onnx import OnnxOptions, to_onnx
from roast_export.trace import trace
from tests.mappings import drawn, hashed, pattern

EXPERTS, INSIDE, WIDTH = 6, 48, 32
GATHER, LOOKUP = torch.ops.roast.gather.default, torch.ops.roast.embedding.default


class Bank(nn.Module):
    """Experts in one parameter, or the rows of an embedding, read as `read` does."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) > 2:
            self.bank = nn.Parameter(torch.randn(shape))
        else:
            self.table = nn.Embedding(*shape)
        self.read = read

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.bank if hasattr(self, "bank") else self.table.weight, ids) * 1.0


THREE = (EXPERTS, INSIDE, WIDTH)
READINGS = {
    "one expert a token": (lambda w, ids: w[ids[:, 0]], THREE),
    "several a token": (lambda w, ids: w[ids], THREE),
    "counted from the end": (lambda w, ids: w[ids - 3], THREE),
    "ids of 32 bits": (lambda w, ids: w[ids.int()], THREE),
    "index_select": (lambda w, ids: w.index_select(0, ids[:, 1]), THREE),
    "cast": (lambda w, ids: w.half()[ids].float(), THREE),
    "filters": (lambda w, ids: w[ids], (EXPERTS, 8, 4, 16)),
    "narrow": (lambda w, ids: w[ids], (EXPERTS, 8, 50)),
    "table": (lambda w, ids: w[ids], (EXPERTS, 400)),
    "lookup": (lambda w, ids: functional.embedding(ids, w), (EXPERTS, 400)),
}
OTHERS = {
    "a mask": (lambda w, ids: w[(ids > 2).flatten()[:1].repeat(6)], THREE),
    "two indices": (lambda w, ids: w[ids, ids], THREE),
    "the second axis": (lambda w, ids: w[:, ids], THREE),
    "read whole too": (lambda w, ids: w[ids] + w.mean(), THREE),
}
IDS = torch.tensor([[0, 5], [3, 3], [2, 0]])


def compressed(reading: tuple, ratio: float = 4) -> nn.Module:
    torch.manual_seed(0)
    return roast_export.compress(Bank(*reading).eval(), ratio)


def loaded(model: nn.Module) -> LoadedProgram:
    with quiet(), torch.no_grad():
        return LoadedProgram(torch.export.export(model, (IDS,), dynamic_shapes=({0: torch.export.Dim.AUTO},)))


def targets(model: LoadedProgram) -> list[object]:
    return [node.target for node in model.program.graph.nodes if node.target in (GATHER, LOOKUP)]


@pytest.mark.parametrize("ratio", [1, 1.5, 4])
@pytest.mark.parametrize("reading", READINGS)
def test_rows_that_are_picked_are_read_alone_and_equal(reading, ratio):
    small = compressed(READINGS[reading], ratio)
    model = loaded(small)
    assert targets(model) == [LOOKUP]
    for ids in (IDS, IDS[:1], (IDS + 1).repeat(3, 1) % EXPERTS):
        with torch.no_grad():
            assert torch.equal(model(ids), small(ids))
    (layer,) = layers_of(model.program)
    assert (layer.name, layer.kind) == (next(iter(virtual_weights(small))), "embedding")


@pytest.mark.parametrize("reading", ["several a token", "cast", "filters"])
def test_a_record_of_earlier_versions_is_expanded_whole(reading, monkeypatch):
    """Its tiles are columns of the view: elements of a row lie apart."""
    monkeypatch.setattr(_Group, "bank", False)
    small = compressed(READINGS[reading])
    model = loaded(small)
    assert targets(model) == [GATHER]
    with torch.no_grad():
        assert torch.equal(model(IDS), small(IDS))


@pytest.mark.parametrize("reading", OTHERS)
def test_what_picks_no_rows_reads_the_whole_weight(reading):
    small = compressed(OTHERS[reading])
    model = loaded(small)
    assert targets(model) == [GATHER]
    with torch.no_grad():
        assert torch.equal(model(IDS), small(IDS))


@pytest.mark.parametrize("reading", ["several a token", "lookup"])
def test_an_expert_that_is_not_there_is_refused(reading):
    small = compressed(READINGS[reading])
    model = loaded(small)
    for wrong in (EXPERTS, -EXPERTS - 1):
        for run in (small, model):
            with pytest.raises((IndexError, RoastError, RuntimeError)), torch.no_grad():
                run(torch.full((1, 2), wrong))


@settings(max_examples=60, deadline=None)
@given(mapping=hashed() | drawn())
def test_a_weight_as_a_table_has_the_same_elements(mapping):
    memory = torch.from_numpy(pattern(mapping.n_memory))
    table = as_table(mapping)
    assert table.shape[0] % mapping.shape[0] == 0
    whole = torch_ops.gather(memory, mapping.to_list(), 0.5)
    rows = torch_ops.embedding(memory, torch.arange(table.shape[0]), table.to_list(), 0.5)
    assert torch.equal(rows.reshape(mapping.shape), whole)


@pytest.mark.parametrize("ratio", [1, 1.5, 4, 20])
def test_the_tiles_of_a_bank_are_pieces_of_its_rows(ratio):
    shape = (16, 64, 128)
    (mapping,) = place([Placed(shape, False, (0,), bank=True)], ratio)
    assert (mapping.shape, mapping.matrix, mapping.transposed) == (shape, (16 * 64, 128), False)
    assert mapping.tile[0] == 1
    assert as_table(mapping).row_unit >= 16
    assert mapping.n_memory == pytest.approx(math.prod(shape) / ratio, rel=0.05)


def test_only_convolutions_and_bilinear_layers_keep_the_matrix_of_their_outputs():
    model = nn.ModuleList([nn.Conv1d(32, 32, 32), nn.Bilinear(32, 32, 32), Bank(None, (8, 32, 32))])
    found = {
        name: weight.mapping.matrix
        for name, weight in virtual_weights(roast_export.compress(model, 4)).items()
    }
    assert found == {"0.weight": (32, 1024), "1.weight": (32, 1024), "2.bank": (256, 32)}


def experts_of(kind: str) -> nn.Module:
    """The experts of one layer, two for each token, in the form in which they are traced."""
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": INSIDE, "num_hidden_layers": 1}
    common |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_experts_per_tok": 2}
    if kind == "mixtral":
        config = transformers.MixtralConfig(num_local_experts=EXPERTS, **common)
    elif kind == "qwen":
        config = transformers.Qwen3MoeConfig(
            num_experts=EXPERTS, moe_intermediate_size=INSIDE, decoder_sparse_step=1, **common
        )
    else:
        config = transformers.GptOssConfig(
            num_local_experts=EXPERTS, layer_types=["full_attention"], **common
        )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    model.set_experts_implementation(modes.EXPERTS)
    return model.layers[0].mlp.experts


def routed(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, and for each token two experts with their shares."""
    return torch.randn(tokens, WIDTH), torch.randint(0, EXPERTS, (tokens, 2)), torch.rand(tokens, 2)


def expanded(
    proto: onnx.ModelProto, inputs: tuple[Tensor, ...], native: bool
) -> tuple[Tensor, dict[str, int]]:
    """The output of a file, and how many elements of each virtual weight one run makes."""
    nodes = onnx_ops.layers_in(proto.graph)
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    made.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n.output[0]) for n in nodes)
    options = onnxruntime.SessionOptions()
    if native:
        options.register_custom_ops_library(ort_library_path())
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    feed = zip(proto.graph.input, inputs, strict=True)
    output, *values = session.run(None, {place.name: value.numpy() for place, value in feed})
    return torch.from_numpy(output), {n.name: value.size for n, value in zip(nodes, values, strict=True)}


@pytest.mark.parametrize("native", [False, True], ids=["standard operators", "native"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen", "gpt_oss"])
def test_a_mixture_of_transformers_expands_the_experts_of_its_tokens_alone(kind, native):
    model = roast_export.compress(experts_of(kind), 4, min_params=1024)
    program = trace(model, routed(4), ({0: torch.export.Dim("tokens")},) * 3)
    proto = ir.to_proto(to_onnx(program, OnnxOptions()))
    weights = virtual_weights(model)
    assert len(weights) == 2
    for tokens in (1, 2, 10):
        inputs = routed(tokens)
        with torch.no_grad():
            expected = model(*inputs)
        found, sizes = expanded(proto, inputs, native)
        assert sizes == {n: tokens * 2 * math.prod(w.mapping.shape[1:]) for n, w in weights.items()}
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", ["torchscript", "pt2", "ort"])
def test_the_other_forms_read_rows_too(to, tmp_path):
    report = roast_export.export(
        compressed(READINGS["several a token"]), tmp_path / f"m.{to}", to=to, example_inputs=(IDS,),
        dynamic_shapes={"ids": {0: "n"}},
    )  # fmt: skip
    assert report.passed
