"""Whole models: compressed, exported, and beside a dense file of the same graph and the same weights."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

import roast_export
from bench import graphs
from bench.limits import model_row
from bench.machine import Peaks
from bench.peers import Peer, Truth, compare, memory_rows, time_rows
from roast_export import onnx_ops, torch_ops
from roast_export.modules import virtual_weights
from roast_export.recurrent_shapes import any_length

SAMPLES = Path(__file__).parent.parent / "samples"
RATIO = 100
BOUND = 2e-3
"""Largest difference from the dense file, relative to the largest output: rounding through all layers."""


@dataclass(frozen=True)
class Case:
    """model: compressed. inputs: feeds by the name of the case. flops: of one run, 0 if not counted."""

    model: nn.Module
    inputs: dict[str, dict[str, np.ndarray]]
    dynamic: dict[str, dict[int, str]] | None
    flops: dict[str, float]
    ratio: int = RATIO
    plain: nn.Module | None = None
    """The dense module; torch.onnx writes the dense file of it, where ours has another graph."""


def measure_model(group: dict, folder: Path, measured: dict[int, Peaks]) -> dict:
    """Every input of one model, with every number of threads."""
    torch.manual_seed(0)
    case = MODELS[group["model"]](group["shrink"])
    peers = _files(case, folder)
    model = group["model"]
    rows, limits, sessions = [], [], {}
    for threads in group["threads"]:
        for name, feeds in case.inputs.items():
            truths = _truths(peers, feeds)
            found, errors = compare(
                peers, feeds, truths, threads=threads, budget=2 * group["budget"], sessions=sessions
            )
            facts = {"model": model, "case": name}
            flops = case.flops.get(name, 0.0)
            rows += time_rows(peers, found, errors, measured[threads], flops, facts)
            if flops:
                ours = next(peer.file for peer in peers if peer.name.startswith("roast"))
                mine = [row for row in rows if row["threads"] == threads]
                limits.append(model_row(mine, facts, ours, feeds, flops, measured[threads]))
    sessions.clear()
    feeds = next(iter(case.inputs.values()))
    memory = memory_rows(peers, feeds, {"subject": f"model {model}"})
    return {"models": rows, "limits": limits, "memory": memory}


def dense_twin(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every virtual weight expanded into the file and every operator a standard one."""
    arrays = {tensor.name: tensor for tensor in proto.graph.initializer}
    weights: dict[tuple, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        nodes += _dense_nodes(node, arrays, weights, proto) if node.domain == onnx_ops.DOMAIN else [node]
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    # Shapes of values are optional, and onnxruntime's quantiser fails on those of weights it transposes.
    del twin.graph.node[:], twin.functions[:], twin.graph.value_info[:]
    twin.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in twin.graph.initializer if tensor.name in read]
    del twin.graph.initializer[:]
    twin.graph.initializer.extend(kept)
    return twin


def _dense_nodes(node, arrays, weights: dict[tuple, str], proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    mapping, scale = onnx_ops.mapping_of(node)
    source = onnx_ops.array_of(node)
    linear = node.op_type in onnx_ops.LINEARS
    key = (source, tuple(mapping.to_list()), scale, linear)
    if key not in weights:
        memory = torch.from_numpy(numpy_helper.to_array(arrays[source]).copy())
        weight = torch_ops.gather(memory, mapping.to_list(), scale).numpy()
        weights[key] = f"dense_weight_{len(weights)}"
        stored = np.ascontiguousarray(weight.T) if linear else weight
        proto.graph.initializer.append(numpy_helper.from_array(stored, weights[key]))
    name, output = weights[key], node.output[0]
    if node.op_type in onnx_ops.EMBEDDINGS:
        return [helper.make_node("Gather", [name, node.input[1]], [output], name=node.name)]
    if node.op_type == "RoastGather":
        return [helper.make_node("Identity", [name], [output], name=node.name)]
    if node.op_type == "RoastLinear":
        return [helper.make_node("MatMul", [node.input[0], name], [output], name=node.name)]
    product = helper.make_node("MatMul", [node.input[0], name], [f"{output}_product"], name=node.name)
    return [product, helper.make_node("Add", [f"{output}_product", node.input[2]], [output])]


def _files(case: Case, folder: Path) -> list[Peer]:
    """Ours by the exporter, dense from it, int8 from dense. Files over 2 GB would need another form."""
    ours, dense, int8 = (folder / f"{name}.onnx" for name in ("roast", "dense", "int8"))
    example = {name: torch.from_numpy(array) for name, array in next(iter(case.inputs.values())).items()}
    roast_export.export(case.model, ours, example_inputs=example, dynamic_shapes=case.dynamic, verify=False)
    if case.plain is None:
        dense.write_bytes(dense_twin(onnx.load(ours)).SerializeToString())
    else:
        _write_plain(case, example, dense)
    graphs.write_int8(int8, dense)
    missing = graphs.without_kernel(ours)
    path = f"functions for {', '.join(missing)}" if missing else "native operators"
    return [
        Peer("dense", dense, bound=BOUND),
        Peer("int8", int8),
        Peer("roast", ours, case.ratio, path, bound=BOUND),
    ]


def _write_plain(case: Case, example: dict[str, torch.Tensor], path: Path) -> None:
    """The dense module with the values of the virtual weights, as torch.onnx writes it."""
    weights = virtual_weights(case.model)
    with torch.no_grad():
        for name, parameter in case.plain.named_parameters():
            parameter.copy_(weights[name]() if name in weights else case.model.get_parameter(name))
    shapes = {name: {} for name in example} | (case.dynamic or {})
    dynamic = {n: dict.fromkeys(axes, torch.export.Dim.AUTO) or None for n, axes in shapes.items()}
    with any_length():
        program = torch.export.export(case.plain, (), example, dynamic_shapes=dynamic)
        torch.onnx.export(program, dynamo=True, opset_version=graphs.OPSET, verbose=False).save(path)


def _truths(peers: list[Peer], feeds: dict[str, np.ndarray]) -> dict[str, Truth]:
    """What onnx runtime computes of the dense file with all optimisations; int8 is compared with it too."""
    values = graphs.session(peers[0].file, 2).run(None, feeds)[0]
    scale = float(np.abs(values).max())
    return {peer.name: Truth(values, scale) for peer in peers}


def _sample(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"samples_{name}", SAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bert(shrink: int, local: bool = False) -> Case:
    """BERT-base: batch 1, sequence 8, 32 and 128. local: an array for each weight instead of one for all."""
    sample = _sample("bert")
    hidden, layers, vocabulary = 768 // min(shrink, 12), max(1, 12 // shrink), 30522 // shrink
    config = sample.BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        vocab_size=vocabulary,
        attn_implementation="eager",
    )
    model, _ = sample.compressed(config, RATIO, local)
    inputs, flops = {}, {}
    for sequence in (32, 8, 128):
        ids = np.random.default_rng(0).integers(1, vocabulary, (1, sequence))
        inputs[f"sequence {sequence}"] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        products = 12 * hidden**2 * sequence + 2 * sequence**2 * hidden
        flops[f"sequence {sequence}"] = 2.0 * layers * products
    axes = {0: "batch", 1: "sequence"}
    return Case(model, inputs, {"input_ids": axes, "attention_mask": axes}, flops)


def _mlp(shrink: int) -> Case:
    """Three layers of width 4096, batch 1."""
    width = 4096 // shrink
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, width))
    small = roast_export.compress(model, RATIO, init="fresh").eval()
    x = np.random.default_rng(0).standard_normal((1, width), np.float32)
    return Case(small, {"batch 1": {"input": x}}, None, {"batch 1": 6.0 * width**2})


def _recommender(shrink: int) -> Case:
    """26 tables of ten million rows together, 1000x smaller; only the tables are virtual."""
    sample = _sample("recommender")
    rows = [max(3, n // shrink) for n in sample.ROWS]
    model = sample.Recommender(sample.tables(rows, 1000)).eval()
    inputs = {}
    for batch in (1, 256):
        features, ids, _ = sample.clicks(rows, batch, torch.Generator().manual_seed(batch))
        inputs[f"batch {batch}"] = {"features": features.numpy(), "ids": ids.numpy()}
    inputs = dict(reversed(inputs.items()))
    return Case(model, inputs, {"features": {0: "batch"}, "ids": {0: "batch"}}, {}, ratio=1000)


class _Block(nn.Module):
    """Two 3x3 convolutions and a way round them (He et al., 2015, arXiv:1512.03385)."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1)
        straight = stride == 1 and inside == outside
        self.around = nn.Identity() if straight else nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x):
        return torch.relu(self.around(x) + self.second(torch.relu(self.first(x))))


def _cnn(shrink: int) -> Case:
    """ResNet-18's layers, batch norms folded away, one image of 224x224."""
    widths = [max(8, n // shrink) for n in (64, 64, 128, 256, 512)]
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for k, (inside, outside) in enumerate(itertools.pairwise(widths)):
        layers += [_Block(inside, outside, 1 if k == 0 else 2), _Block(outside, outside, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1000))
    small = roast_export.compress(model, RATIO, init="fresh").eval()
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    flops = {"224x224": 3.63e9} if shrink == 1 else {}
    return Case(small, {"224x224": {"input": image}}, None, flops)


class _Outputs(nn.Module):
    """A recurrent layer without its last state."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, input):  # noqa: A002
        return self.layer(input)[0]


class _Pair(nn.Bilinear):
    def forward(self, input, other):  # noqa: A002
        return super().forward(input, other)


class _Experts(nn.Module):
    """Two of eight experts for each token, by the batched product of transformers' mixtures."""

    def __init__(self, width: int, inside: int):
        super().__init__()
        self.gate = nn.Linear(width, 8)
        self.up = nn.Parameter(torch.randn(8, inside, width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(8, width, inside) * inside**-0.5)

    def forward(self, input):  # noqa: A002
        weight, expert = self.gate(input).softmax(-1).topk(2)
        hidden = torch.relu(self.up[expert] @ input[:, None, :, None])
        return ((self.down[expert] @ hidden).squeeze(-1) * weight[..., None]).sum(1)


def _layer(make: Callable[[int], nn.Module], feeds: dict, dynamic: dict, shrink: int) -> Case:
    """One module beside its dense self. feeds: the shape of each input, by the name of the case."""
    plain = make(shrink).eval()
    small = roast_export.compress(plain, 20, init="fresh").eval()
    generator = np.random.default_rng(0)
    inputs = {
        case: {name: generator.standard_normal(shape, np.float32) for name, shape in shapes(shrink).items()}
        for case, shapes in feeds.items()
    }
    return Case(small, inputs, dynamic, {}, ratio=20, plain=plain)


def _recurrent(kind: type[nn.RNNBase], shrink: int) -> Case:
    """Two layers of 512 over 256 features, batch 1."""
    return _layer(
        lambda k: _Outputs(kind(256 // k, 512 // k, 2, batch_first=True)),
        {f"{n} steps": lambda k, n=n: {"input": (1, n, 256 // k)} for n in (32, 4)},
        {"input": {1: "length"}},
        shrink,
    )


def _bilinear(shrink: int) -> Case:
    """128 and 128 features to 128."""
    return _layer(
        lambda k: _Pair(128 // k, 128 // k, 128 // k),
        {f"batch {n}": lambda k, n=n: {"input": (n, 128 // k), "other": (n, 128 // k)} for n in (32, 1)},
        {"input": {0: "batch"}, "other": {0: "batch"}},
        shrink,
    )


def _deconvolution(shrink: int) -> Case:
    """128 to 64 channels, kernel 4, stride 2, at 16x16."""
    return _layer(
        lambda k: nn.ConvTranspose2d(128 // k, 64 // k, 4, 2, 1),
        {"16x16": lambda k: {"input": (1, 128 // k, 16, 16)}},
        {},
        shrink,
    )


def _mixture(shrink: int) -> Case:
    """Experts of 256 x 1024."""
    return _layer(
        lambda k: _Experts(256 // k, 1024 // k),
        {f"{n} tokens": lambda k, n=n: {"input": (n, 256 // k)} for n in (16, 2, 64)},
        {"input": {0: "tokens"}},
        shrink,
    )


MODELS: dict[str, Callable[[int], Case]] = {
    "bert": _bert,
    "bert, local arrays": partial(_bert, local=True),
    "mlp": _mlp,
    "recommender": _recommender,
    "cnn": _cnn,
    "lstm": partial(_recurrent, nn.LSTM),
    "gru": partial(_recurrent, nn.GRU),
    "bilinear": _bilinear,
    "deconvolution": _deconvolution,
    "mixture": _mixture,
}
