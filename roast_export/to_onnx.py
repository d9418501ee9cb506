"""Exported program in, ONNX model out: virtual weights become nodes of `ai.roast`.

Cases for one virtual weight:
1. a hashed map: RoastGather, or RoastEmbedding where rows are looked up; with a standard-op function
2. weights "materialized": RoastGatherFolded, which every runtime folds at load
3. signs from MT19937, portable asked for: RoastGatherSigned with packed bits
4. anything else from MT19937: RoastGatherDrawn, RoastEmbeddingDrawn, RoastLinearDrawn: they need the library
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Lookup
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch
from onnxscript.rewriter import onnx_fusions
from torch.export import ExportedProgram

from roast_export import onnx_ops
from roast_export.calls import plain_name
from roast_export.data_file import external_bytes, move_tensors
from roast_export.errors import ExportError, InputError
from roast_export.fold_norms import name_folded
from roast_export.fuse import fuse_linear
from roast_export.mapping import VERSION, Element, Mapping, Sign
from roast_export.onnx_activations import activations
from roast_export.onnx_attention import attention
from roast_export.onnx_bilinear import bilinear
from roast_export.onnx_distances import distances
from roast_export.onnx_doubles import doubles
from roast_export.onnx_dtypes import refuse_bfloat16, refuse_complex_inputs
from roast_export.onnx_exact import exact_rewrites
from roast_export.onnx_lookup import is_narrow
from roast_export.onnx_norms import norms
from roast_export.onnx_pooling import pooling
from roast_export.onnx_recurrent import recurrent, refuse_projections
from roast_export.onnx_steps import steps
from roast_export.onnx_transposed import transposed_convolutions
from roast_export.onnx_uniform import spread_uniform
from roast_export.program import VirtualLayer, input_names, layers_of, output_names, quiet
from roast_export.ranges import RANGES, named_ranges
from roast_export.recurrent_shapes import any_length
from roast_export.stateful import STATE, state_of
from roast_export.untranslatable import explain

DEFAULT_OPSET = 20
OPSETS = range(onnx_ops.LOWEST_OPSET, 24)
IR_VERSION = 10
"""Read by onnxruntime 1.18 and later; opsets above 21 bring a higher one."""

LARGEST_FOLDED = 256
"""Elements of a constant that is computed at export: a longer one the file computes, and stays small."""

LARGEST_FILE = 2**31 - 2**20
"""Protobuf's limit, less room for the graph; a larger model keeps its tensors in a file beside it."""

SHARED_ARRAY = "roast_memory"
"""Name of the one initializer that all layers share."""

DimNames = Lookup[str, Lookup[int, str]]


@dataclass(frozen=True)
class OnnxOptions:
    """How to write the file. Raises InputError for values that cannot be."""

    opset: int = DEFAULT_OPSET
    materialized: bool = False
    portable: bool = False
    dim_names: DimNames | None = None
    """Names of dynamic dimensions; those that nobody named are called <input>_<axis>."""
    input_names: Lookup[str, str] = field(default_factory=dict)
    """What the file calls inputs of the program, where not as the program does."""

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise InputError(f"opset {self.opset} is not in {OPSETS.start}..{OPSETS.stop - 1}")


def to_onnx(program: ExportedProgram, options: OnnxOptions) -> ir.Model:
    """The ONNX model with its functions and metadata, in memory.

    Raises:
        ExportError: torch.onnx has no translation for an operator of the model, the model computes in
            bfloat16, or an input is complex.
        InputError: a dimension named in dim_names is not dynamic.
    """
    onnx_ops.register_schemas()
    refuse_projections(program)
    refuse_complex_inputs(program)
    layers = layers_of(program)
    model = _translate(program, options)
    _name_inputs(model, program)
    refuse_bfloat16(model)
    _name_outputs(model, program)
    _name_nodes(model, layers)
    _name_arrays(model, layers)
    name_folded(model, program)
    fuse_linear(model)
    spread_uniform(model, {*program.state_dict, *program.constants, *array_names(layers).values()})
    _number_uses(model)
    _settle_dimensions(model, program, options.dim_names)
    _spell_inputs(model, options.input_names)
    _strip(model)
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == onnx_ops.DOMAIN}
    for proto in onnx_ops.functions(used, options.opset, _is_narrow(layers)):
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
    model.opset_imports.setdefault(onnx_ops.DOMAIN, onnx_ops.DOMAIN_VERSION)
    model.metadata_props.update(_metadata(program, options))
    model.producer_name, model.producer_version = "roast-export", version("roast-export")
    return model


def array_names(layers: Sequence[VirtualLayer]) -> dict[str, str]:
    """Initializer of each array: a shared one has a name of its own, local ones their layer's."""
    arrays = {layer.array for layer in layers}
    shared = len(arrays) == 1 and len(layers) > 1
    return {array: SHARED_ARRAY if shared else array for array in arrays}


def write(model: ir.Model, path: Path, data: Path | None = None) -> None:
    """One file, or the file and `<name>.data` beside it where protobuf's 2 GB do not hold the tensors.

    data: where the large tensors will lie, with what is there already, when `path` is put in place.
    """
    if data is not None:
        move_tensors(model, path.with_name(data.name), data)
    values = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    if sum(v.nbytes for v in values if not isinstance(v, ir.ExternalTensor)) > LARGEST_FILE:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)


def size_of(path: Path) -> int:
    """Bytes of a model on disk, with its tensors in other files."""
    return os.path.getsize(path) + external_bytes(path)


def _translate(program: ExportedProgram, options: OnnxOptions) -> ir.Model:
    roast = onnxscript.values.Opset(onnx_ops.DOMAIN, onnx_ops.DOMAIN_VERSION)
    standard = onnxscript.values.Opset("", options.opset)

    def gather(memory: Any, mapping: Sequence[int], scale: float) -> Any:
        record = Mapping.from_list([int(x) for x in mapping])
        name = _operator(record, options)
        inputs = (
            [memory, standard.Constant(value=_packed(record))] if name == "RoastGatherSigned" else [memory]
        )
        return getattr(roast, name)(*inputs, **onnx_ops.attributes(record, scale, name))

    def embedding(memory: Any, ids: Any, mapping: Sequence[int], scale: float) -> Any:
        record = Mapping.from_list([int(x) for x in mapping])
        if _expands(record, options):
            return standard.Gather(gather(memory, mapping, scale), ids, axis=0)
        ids = standard.Cast(ids, to=int(ir.DataType.INT64)) if ids.dtype != ir.DataType.INT64 else ids
        name = "RoastEmbedding" + _drawn(record)
        return getattr(roast, name)(memory, ids, **onnx_ops.attributes(record, scale, name))

    def linear(x: Any, memory: Any, bias: Any, mapping: Sequence[int], scale: float) -> Any:
        record = Mapping.from_list([int(x) for x in mapping])
        if _expands(record, options):
            product = standard.MatMul(x, standard.Transpose(gather(memory, mapping, scale), perm=[1, 0]))
            return product if bias is None else standard.Add(product, bias)
        name = ("RoastLinear" if bias is None else "RoastLinearBias") + _drawn(record)
        inputs = [x, memory] if bias is None else [x, memory, bias]
        return getattr(roast, name)(*inputs, **onnx_ops.attributes(record, scale, name))

    table: dict[Callable[..., Any], Callable[..., Any]] = {
        torch.ops.roast.gather.default: gather,
        torch.ops.roast.embedding.default: embedding,
        torch.ops.roast.linear.default: linear,
        **activations(standard),
        **attention(standard),
        **distances(standard),
        **doubles(standard),
        **norms(standard),
        **pooling(standard),
        # Where the library is not, a weight that is expanded once a run is better than at every step.
        **(recurrent(standard) if options.portable else _products(standard)),
    }
    exact_rewrites()
    try:
        with quiet(), any_length(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                custom_translation_table=table,
                opset_version=options.opset,
                verbose=False,
                optimize=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(explain(error, program)) from error
    assert exported is not None
    onnxscript.optimizer.optimize_ir(exported.model, output_size_limit=LARGEST_FOLDED)
    onnx_fusions.fuse(exported.model)
    return exported.model


def _products(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Layers of which products with virtual weights are parts."""
    return steps(standard) | bilinear(standard) | transposed_convolutions(standard)


def _expands(mapping: Mapping, options: OnnxOptions) -> bool:
    """Whether the weight is made before it is used, although an operator could use it as it is."""
    return options.materialized or (options.portable and onnx_ops.needs_stream(mapping))


def _drawn(mapping: Mapping) -> str:
    return "Drawn" if onnx_ops.needs_stream(mapping) else ""


def _operator(mapping: Mapping, options: OnnxOptions) -> str:
    if not onnx_ops.needs_stream(mapping):
        return "RoastGatherFolded" if options.materialized else "RoastGather"
    if options.materialized:
        raise ExportError(
            "weights drawn from MT19937 have no form that a runtime can decode by itself; export with "
            "weights='virtual' and ship the library"
        )
    if not options.portable:
        return "RoastGatherDrawn"
    if mapping.element is not Element.HASH:
        raise ExportError(
            "slots drawn from MT19937 have no portable form; leave --portable out and ship the library"
        )
    return "RoastGatherSigned"


def _packed(mapping: Mapping) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(mapping.packed_signs())


def _name_inputs(model: ir.Model, program: ExportedProgram) -> None:
    """torch.onnx writes some names in lower case."""
    for value, name in zip(model.graph.inputs, input_names(program), strict=True):
        value.name = name


def _spell_inputs(model: ir.Model, names: Lookup[str, str]) -> None:
    inputs = {value.name: value for value in model.graph.inputs}
    for name, wanted in names.items():
        if name not in inputs or plain_name(wanted) != name:
            raise InputError(
                f"input_names calls {name!r} {wanted!r}; the inputs are {', '.join(map(str, inputs))}, "
                "and a name may differ from them in other characters in the place of _ alone"
            )
        inputs[name].name = wanted


def _name_outputs(model: ir.Model, program: ExportedProgram) -> None:
    for value, name in zip(model.graph.outputs, output_names(program), strict=True):
        value.name = name


def _name_nodes(model: ir.Model, layers: list[VirtualLayer]) -> None:
    """Roast nodes take the dotted name of their weight."""
    names: dict[object, list[str]] = {}
    for layer in layers:
        for key in (_weight_key(layer.array, layer.mapping, layer.scale), layer.mapping.shape):
            names.setdefault(key, []).append(layer.name)
    for node in model.graph.all_nodes():
        if node.domain == onnx_ops.DOMAIN:
            proto = ir.to_proto(node)
            array, (mapping, scale) = onnx_ops.array_of(proto), onnx_ops.mapping_of(proto)
            # What fits no layer takes the name of one of its shape: the proof will say what is wrong.
            known = names.get(_weight_key(array, mapping, scale)) or names[mapping.shape]
            # A tied weight goes by the name of each use; the exporter may have merged some uses.
            node.name = known.pop(0) if len(known) > 1 else known[0]


def _number_uses(model: ir.Model) -> None:
    """A second use of a weight gets #2, and so on: every node has a name of its own.

    After products are fused: one weight that several products read is a node for each of them then.
    """
    uses: dict[str | None, int] = {}
    for node in model.graph.all_nodes():
        if node.domain == onnx_ops.DOMAIN:
            uses[node.name] = count = uses.get(node.name, 0) + 1
            node.name = node.name if count == 1 else f"{node.name}#{count}"


def _weight_key(array: str, mapping: Mapping, scale: float) -> object:
    if mapping.sign is Sign.MT19937:
        # RoastGatherSigned has its signs as an input.
        mapping = replace(mapping, sign=Sign.NONE, sign_seed=0, sign_skip=0)
    return array, mapping, float(np.float32(scale))


def _name_arrays(model: ir.Model, layers: list[VirtualLayer]) -> None:
    for old, new in array_names(layers).items():
        if old != new:
            array = model.graph.initializers.pop(old)
            array.name = new
            model.graph.initializers[new] = array


def _settle_dimensions(model: ir.Model, program: ExportedProgram, dim_names: DimNames | None) -> None:
    """Give every symbol the name asked for, and those that nobody named <input>_<axis>."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    names: dict[str, str | int] = {}
    for name, axes in (dim_names or {}).items():
        if name not in inputs:
            raise InputError(f"no input is called {name!r}; the model takes {', '.join(inputs)}")
        shape = inputs[name].shape
        assert shape is not None
        for axis, label in axes.items():
            symbol = _symbol(shape[axis]) if -len(shape) <= axis < len(shape) else None
            if symbol is None:
                free = [
                    f"{n}:{k}" for n, v in inputs.items() for k, d in enumerate(v.shape or ()) if _symbol(d)
                ]
                raise InputError(
                    f"input {name!r}, axis {axis} is fixed by the model; "
                    f"dynamic are: {', '.join(free) or 'none'}"
                )
            names.setdefault(symbol, label)
    for name, value in inputs.items():
        for axis, dim in enumerate(value.shape or ()):
            symbol = _symbol(dim)
            if symbol is not None and symbol not in names:
                names[symbol] = f"{name}_{axis}"
    for value in _all_values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_settled(dim, names) for dim in value.shape])


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    """The symbol of a dimension. torch.onnx writes some known lengths as symbols like "7"."""
    text = None if isinstance(dim, int) else dim.value
    return text if text and not text.isdigit() else None


def _settled(dim: int | ir.SymbolicDim, names: dict[str, str | int]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    text = dim.value
    if text is None or text.isdigit():
        return int(text) if text else None
    # A derived length such as 2*s0 stays unknown: its symbols are about to change their names.
    return names.get(text)


def _all_values(model: ir.Model) -> list[ir.Value]:
    inputs = [value for graph in _graphs(model) for value in graph.inputs]
    values = [*inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]
    return list({id(value): value for value in values}.values())


def _graphs(model: ir.Model) -> list[ir.Graph]:
    """The graph of the model, and the graphs inside its nodes."""
    return [model.graph, *model.graph.subgraphs()]


def _strip(model: ir.Model) -> None:
    """Drop what the exporter noted for debugging; it can be larger than the model."""
    graphs, nodes = _graphs(model), list(model.graph.all_nodes())
    values = [*_all_values(model), *(value for graph in graphs for value in graph.initializers.values())]
    things: list[Any] = [model, *graphs, *nodes, *values]
    for thing in things:
        thing.metadata_props.clear()
        thing.doc_string = None
    # onnxruntime's custom operators of this age cannot infer shapes: the file says theirs.
    stated = [value for graph in graphs for value in [*graph.inputs, *graph.outputs]]
    stated += [node.outputs[0] for node in nodes if node.domain == onnx_ops.DOMAIN]
    keep = {id(value) for value in stated}
    for value in values:
        if id(value) not in keep and value.const_value is None:
            value.shape = value.type = None
    model.ir_version = min(model.ir_version or IR_VERSION, IR_VERSION)


def _is_narrow(layers: Sequence[VirtualLayer]) -> bool:
    """Whether nothing that depends on the model's inputs needs more than 31 bits."""
    return all(is_narrow(layer.mapping) for layer in layers if layer.kind == "embedding")


def _metadata(program: ExportedProgram, options: OnnxOptions) -> dict[str, str]:
    found = {
        "roast.mapping_version": str(VERSION),
        "roast.source": f"roast-export {version('roast-export')}, torch {torch.__version__}",
        "roast.weights": "materialized" if options.materialized else "virtual",
        "roast.minimum_runtime": "onnxruntime 1.20; with the library 1.16",
    }
    ranges = named_ranges(program, options.dim_names)
    if ranges:
        found[RANGES] = json.dumps(ranges)
    state = state_of(program)
    if state:
        spelled = {options.input_names.get(name, name): output for name, output in state.items()}
        found[STATE] = json.dumps(spelled)
    layers = layers_of(program)
    found["roast.int64"] = "constants" if _is_narrow(layers) else "required"
    names = array_names(layers)
    for array, memory in {layer.array: layer.memory for layer in layers}.items():
        digest = hashlib.sha256(memory.contiguous().numpy().tobytes()).hexdigest()
        found[f"roast.sha256.{names[array]}"] = digest
    if any(onnx_ops.needs_stream(layer.mapping) for layer in layers) and not options.portable:
        found["roast.minimum_runtime"] = "onnxruntime 1.16 with the roast library"
    return found
