"""An exported .onnx in, onnxruntime's own format out, for builds that read nothing else.

Two forms, because a .ort holds no functions:
1. native: the `ai.roast` nodes as they are. It runs with the operator library only, in any build since 1.16
   that takes custom operators: full packages, and minimal builds that were asked for them.
2. portable: every layer written out in standard operators. It needs no library, but a build that has int64
   arithmetic and Mod, and it is slow.

onnxruntime-mobile, last published as 1.18, has neither custom operators nor Mod, and runs neither form.
A .ort is not optimised again when it is loaded, so weights stay virtual in every session.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from roast_export import onnx_ops
from roast_export.errors import ExportError, RoastError
from roast_export.ort_graph import read_graph
from roast_export.ort_types import with_minimal_names
from roast_export.size import limits, onnx_tensor_bytes

if TYPE_CHECKING:
    import onnxruntime

LAYER_CODE_BYTES = 11 * 1024
"""What the arithmetic of a layer takes in the portable form, beside the size gate."""

LOOKUP_BYTES = 10 * 1024
"""What a lookup takes beyond that: none of its arithmetic can be folded."""

SMALLEST_WEIGHT = 64
"""Elements below which a tensor is not taken for an expanded weight."""

_SMALL_CONSTANT = 4 * (SMALLEST_WEIGHT - 1)
"""Bytes up to which constants are folded, in the portable form: too few for a weight."""

_BOUNDED_FOLDING = (1, 27)
"""The first onnxruntime that can bound what it folds; older ones must not fold at all."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a .ort: its name, dimensions and bytes."""

    name: str
    dims: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True)
class OrtModel:
    """What a .ort says: operators as (domain, opset, name), standard domain "ai.onnx"; stored tensors."""

    operators: tuple[tuple[str, int, str], ...]
    tensors: tuple[StoredTensor, ...]


def write(source: Path, target: Path, *, portable: bool = False) -> OrtModel:
    """Write the .onnx file `source` as `target`, and check what came out.

    Raises:
        ExportError: the file has no such form, or the result would not stay small.
    """
    proto = onnx.load(source)
    layers = onnx_ops.layers_in(proto.graph)
    _check_form(layers, portable)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if portable:
                _save(_written_out(source, Path(folder)), target, portable)
            else:
                _save(source, target, portable)
        except RoastError:
            raise
        except Exception as error:
            raise ExportError(f"onnxruntime cannot write {target.name}: {str(error).strip()}") from error
    model = read(target)
    complaint = _size_complaint(proto, layers, target, portable) or dense_complaint(
        proto, layers, [(tensor.name, tensor.dims) for tensor in model.tensors]
    )
    if complaint:
        target.unlink()
        raise ExportError(f"{target.name}: {complaint}")
    return model


def read(path: Path) -> OrtModel:
    """What is in a .ort file.

    Raises:
        RoastError: it is not one.
    """
    try:
        return _read(path)
    except Exception as error:
        raise RoastError(f"{path} is not an .ort file that this onnxruntime writes: {error}") from error


def required_operators(models: list[OrtModel]) -> str:
    """The text of a required_operators.config, for a build of onnxruntime with nothing else in it.

    Operators of the library are left out: such a build takes them from the library.
    """
    wanted: dict[tuple[str, int], set[str]] = {}
    for model in models:
        for domain, opset, name in model.operators:
            if domain != onnx_ops.DOMAIN:
                wanted.setdefault((domain, opset), set()).add(name)
    lines = [
        f"{domain};{opset};{','.join(sorted(names))}" for (domain, opset), names in sorted(wanted.items())
    ]
    return "\n".join(["# Operators of the model; those of ai.roast come with the library.", *lines, ""])


def _check_form(layers: list[onnx.NodeProto], portable: bool) -> None:
    kinds = {node.op_type for node in layers}
    if "RoastGatherFolded" in kinds:
        raise ExportError(
            "a .ort is not optimised when it is loaded, so materialized weights would be stored dense; "
            "export with weights='virtual', or ship the .onnx"
        )
    if portable and any(map(onnx_ops.is_drawn, kinds)):
        raise ExportError(
            "weights drawn from MT19937 have no standard-operator form; ship the native .ort with the "
            "library, or export the .onnx with --portable"
        )


def _save(source: Path, target: Path, portable: bool) -> None:
    """At the basic level: higher ones bring operators that a build without contrib operators refuses."""
    import onnxruntime

    options = _options(target, "ConstantFolding;NchwcTransformer")
    options.add_session_config_entry("session.save_model_format", "ORT")
    if portable:
        # Everything was done before, and names would grow again.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    else:
        from roast_export.runtimes import create_session

        create_session(source, options)
        target.write_bytes(with_minimal_names(target.read_bytes()))


def _written_out(source: Path, folder: Path) -> Path:
    """The model with its functions written out, small constants folded and inner names short.

    A .ort keeps every name that it ever had: the functions' own would be larger than the model.
    """
    import onnxruntime

    large = folder / "large.onnx"
    bounded = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= _BOUNDED_FOLDING
    options = _options(large, "NchwcTransformer" if bounded else "ConstantFolding;NchwcTransformer")
    entry = "optimization.constant_folding_max_output_size_in_bytes"
    options.add_session_config_entry(entry, str(_SMALL_CONSTANT))
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    proto = onnx.load(large)
    _shorten(proto, keep={tensor.name for tensor in onnx.load(source).graph.initializer})
    onnx.save(proto, folder / "short.onnx")
    return folder / "short.onnx"


def _options(target: Path, disabled: str) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("optimization.disable_specified_optimizers", disabled)
    return options


def _shorten(proto: onnx.ModelProto, keep: set[str]) -> None:
    graph = proto.graph
    keep = keep | {value.name for value in [*graph.input, *graph.output]} | {""}
    names = (name for k in itertools.count() if (name := f"_{k}") not in keep)
    short: dict[str, str] = {}

    def renamed(name: str) -> str:
        if name not in keep and name not in short:
            short[name] = next(names)
        return short.get(name, name)

    for node in graph.node:
        if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
            return  # names of a subgraph may mean values outside it; then all stay long
    for node in graph.node:
        node.name = ""
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    del graph.value_info[:]


def _size_complaint(
    proto: onnx.ModelProto, layers: list[onnx.NodeProto], target: Path, portable: bool
) -> str:
    nodes = sum(1 for _ in onnx_ops.nodes_of(proto.graph))
    code = code_bytes([node.op_type for node in layers])
    found = limits(onnx_tensor_bytes(proto), len(layers), nodes, code if portable else 0)
    return found.complaint(target.stat().st_size, onnx_tensor_bytes(read_graph(target)))


def code_bytes(operators: list[str]) -> int:
    """What these layers' arithmetic may take in the portable form. operators: one for each layer."""
    lookups = sum("embedding" in operator.lower() for operator in operators)
    return LAYER_CODE_BYTES * len(operators) + LOOKUP_BYTES * lookups


def dense_complaint(
    proto: onnx.ModelProto, layers: list[onnx.NodeProto], stored: list[tuple[str, tuple[int, ...]]]
) -> str | None:
    """A tensor (name, dims) that the .onnx did not have, and that is as large as a virtual weight."""
    mappings = [(node.name, onnx_ops.mapping_of(node)[0]) for node in layers]
    known = {tensor.name for tensor in proto.graph.initializer}
    for tensor, dims in stored:
        numel = math.prod(dims)
        for name, mapping in mappings:
            large = numel >= max(SMALLEST_WEIGHT, mapping.n_memory // 8)
            if tensor not in known and large and numel == mapping.numel:
                return f"{tensor} {list(dims)} holds {name}, expanded"
    return None


def _read(path: Path) -> OrtModel:
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor

    # It reads the file and finds the schema's own readers, which have no other public entry.
    graph = OrtFormatModelProcessor(str(path), {}, None)._model.Graph()
    operators = sorted(set(_operators(graph)))
    tensors = []
    for k in range(graph.InitializersLength()):
        tensor = graph.Initializers(k)
        dims = tuple(int(tensor.Dims(d)) for d in range(tensor.DimsLength()))
        tensors.append(StoredTensor(tensor.Name().decode(), dims, int(tensor.RawDataLength())))
    return OrtModel(tuple(operators), tuple(tensors))


def _operators(graph: Any) -> Iterator[tuple[str, int, str]]:
    """Of a graph and the graphs in its nodes' attributes."""
    for k in range(graph.NodesLength()):
        node = graph.Nodes(k)
        yield node.Domain().decode() or "ai.onnx", int(node.SinceVersion()), node.OpType().decode()
        for a in range(node.AttributesLength()):
            inner = node.Attributes(a).G()
            if inner is not None:
                yield from _operators(inner)
