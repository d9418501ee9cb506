"""Virtual weights of recurrent layers and of nn.Bilinear are multiplied as they are, not expanded."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from torch import Tensor, nn

import roast_export
from roast_export import onnx_ops, onnx_steps


class Chain(nn.Module):
    """Every recurrent layer, with and without biases, in both directions, batch first and length first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 32, num_layers=2, batch_first=True)
        self.gru = nn.GRU(32, 32, bidirectional=True, bias=False)
        self.rnn = nn.RNN(64, 32, nonlinearity="relu", batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        y, (last, cell) = self.lstm(x)
        y, both = self.gru(y.transpose(0, 1))
        y, end = self.rnn(y.transpose(0, 1), state)
        return y, last, cell, both, end


CHAIN = (torch.randn(2, 5, 32), torch.randn(1, 2, 32))
DYNAMIC = {"x": {0: "batch", 1: "length"}, "state": {1: "batch"}}


class Pairs(nn.Module):
    def __init__(self, out: int = 32) -> None:
        super().__init__()
        self.pair = nn.Bilinear(16, 24, out)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.pair(x, z)


PAIRS = (torch.randn(3, 2, 16), torch.randn(3, 2, 24))


def exported(module: nn.Module, inputs, path, **options) -> onnx.ModelProto:
    torch.manual_seed(0)
    model = roast_export.compress(module, 4, min_params=64).eval()
    report = roast_export.export(model, path, example_inputs=inputs, **options)
    assert report.passed or not options.get("verify", True)
    return onnx.load(path)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in onnx_ops.nodes_of(proto.graph)]


def test_recurrent_layers_multiply_step_by_step(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_steps, "LEAST_ELEMENTS", 0)
    proto = exported(Chain(), CHAIN, tmp_path / "m.onnx", dynamic_shapes=DYNAMIC)
    found = operators(proto)
    assert found.count("Scan") == 5
    assert not {"LSTM", "GRU", "RNN", "RoastGather"} & set(found)
    steps = [n for g in onnx_ops.graphs_of(proto.graph) if g.name == "step" for n in g.node]
    assert sum(n.op_type.startswith("RoastLinear") for n in steps) == 5
    names = [node.name for node in onnx_ops.layers_in(proto.graph)]
    assert len(set(names)) == len(names) == 10


@pytest.mark.parametrize("options", [{}, {"portable": True}], ids=["small", "portable"])
def test_small_layers_and_files_without_the_library_keep_the_operators(options, tmp_path, monkeypatch):
    if options:
        monkeypatch.setattr(onnx_steps, "LEAST_ELEMENTS", 0)
    proto = exported(Chain(), CHAIN, tmp_path / "m.onnx", verify=False, **options)
    assert sorted(set(operators(proto)) & {"LSTM", "GRU", "RNN", "Scan"}) == ["GRU", "LSTM", "RNN"]


def test_a_bilinear_layer_is_a_product(tmp_path):
    proto = exported(
        Pairs(), PAIRS, tmp_path / "m.onnx", dynamic_shapes={"x": {0: "batch"}, "z": {0: "batch"}}
    )
    assert [n.op_type for n in onnx_ops.layers_in(proto.graph)] == ["RoastLinearBias"]
    assert onnx_ops.mapping_of(onnx_ops.layers_in(proto.graph)[0])[0].shape == (32, 16 * 24)


def test_control_the_proof_sees_another_weight_in_a_product(tmp_path):
    proto = exported(Pairs(), PAIRS, tmp_path / "m.onnx")
    torch.manual_seed(0)
    model = roast_export.compress(Pairs(), 4, min_params=64).eval()
    (node,) = onnx_ops.layers_in(proto.graph)
    next(a for a in node.attribute if a.name == "hash1").ints[1] += 1
    onnx.save(proto, tmp_path / "wrong.onnx")
    report = roast_export.verify(model, tmp_path / "wrong.onnx", example_inputs=PAIRS)
    assert {check.name for check in report.failures if check.kind == "weight"} == {"pair.weight"}


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(32, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def test_a_start_of_zeros_is_not_stored_for_every_sequence_of_a_batch(tmp_path):
    sizes = []
    for batch in (1, 64):
        proto = exported(Tagger(), (torch.randn(batch, 3, 32),), tmp_path / "m.onnx", verify=batch == 1)
        sizes.append(proto.ByteSize())
    assert abs(sizes[1] - sizes[0]) < 512
    assert not any(
        math.prod(tensor.dims) >= 64 * 32 for tensor in proto.graph.initializer if "memory" not in tensor.name
    )


def test_a_mixture_of_experts_goes_through_as_it_comes(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, use_cache=False,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.MixtralModel(config).eval()
    form = model.config._experts_implementation
    assert form != "batched_mm"
    ids = {"input_ids": torch.randint(0, 64, (2, 4))}
    # The proof compares with the module, in the form that it came in.
    exported(model, ids, tmp_path / "m.onnx")
    assert model.config._experts_implementation == form


class Small(nn.Module):
    """Recurrent layers of two directions and of one, too small for a Scan."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, 32, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(64, 32, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, (last, cell) = self.lstm(x)
        y, end = self.gru(y.transpose(0, 1))
        return y, last, cell, end


@pytest.mark.parametrize(("features", "looked_up"), [(32, 6), (10, 4)])
def test_gates_are_expanded_in_the_order_of_the_operator(features, looked_up, tmp_path):
    proto = exported(
        Small(features), (torch.randn(2, 5, features),), tmp_path / "m.onnx",
        dynamic_shapes={"x": {0: "batch", 1: "length"}},
    )  # fmt: skip
    found = operators(proto)
    assert found.count("RoastEmbedding") == looked_up
    assert found.count("RoastGather") == 6 - looked_up


def test_control_the_proof_sees_gates_in_another_order(tmp_path):
    inputs = (torch.randn(2, 5, 32),)
    model = roast_export.compress(Small(32), 4, min_params=64).eval()
    roast_export.export(model, tmp_path / "m.onnx", example_inputs=inputs, verify=False)
    proto = onnx.load(tmp_path / "m.onnx")
    node = next(n for n in proto.graph.node if n.op_type == "RoastEmbedding")
    (ids,) = [t for t in proto.graph.initializer if t.name == node.input[1]]
    rows = onnx.numpy_helper.to_array(ids).copy()
    rows[0, [0, 1]] = rows[0, [1, 0]]
    ids.CopyFrom(onnx.numpy_helper.from_array(rows, ids.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    report = roast_export.verify(model, tmp_path / "wrong.onnx", example_inputs=inputs)
    assert {check.kind for check in report.failures} == {"output"}
