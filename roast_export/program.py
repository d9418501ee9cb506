"""One traced model: the exported program every target is made from, and what is virtual in it.

A program takes tensors by position, one for each name of `input_names`, and gives tensors alone: trace.py
makes such programs of live models, and LoadedProgram of programs from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping as Lookup
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from roast_export.calls import Inputs as Inputs
from roast_export.calls import arguments as arguments
from roast_export.calls import by_name, run
from roast_export.calls import split as split
from roast_export.errors import ExportError, InputError, MappingError
from roast_export.golden import Golden
from roast_export.mapping import Mapping
from roast_export.modes import evaluation as evaluation
from roast_export.modes import quiet as quiet
from roast_export.plain_program import make_plain
from roast_export.prepare_program import canonical, forget_derived_ranges, layer_name
from roast_export.subgraphs import Part, parts_of

Dims = list[int | str]
"""Lengths of one tensor; a dynamic dimension is its name."""

DimNames = Lookup[str, Lookup[int, str]]
"""Names of dynamic dimensions: {"input": {axis: "name"}}."""

Program: TypeAlias = "ExportedProgram | Untraced"
"""The traced form of a model, or what stands for it where there is none (untraced.py)."""

if TYPE_CHECKING:
    from roast_export.untraced import Untraced

ROAST_TARGETS = {
    torch.ops.roast.gather.default: "gather",
    torch.ops.roast.embedding.default: "embedding",
    torch.ops.roast.linear.default: "linear",
}


class LoadedProgram(nn.Module):
    """A model opened from an archive, without its code. `program` is what torch.export proved.

    facts: what a report must tell of the call that was traced, in full sentences.
    """

    def __init__(self, program: ExportedProgram, facts: Sequence[str] = ()) -> None:
        super().__init__()
        # Guards are Python source in the archive; shapes are checked by running the model.
        program._guards_code = []
        forget_derived_ranges(program)
        self.facts = [*facts, *make_plain(program)]
        self.program = program = canonical(program)
        self.roast_errors: dict[str, float] = {}
        self.goldens: list[Golden] = []
        self.graph = program.module(check_guards=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors by position, or by the names of `input_names`."""
        values = by_name(input_names(self.program), kwargs, args).values()
        args, kwargs = pytree.tree_unflatten(list(values), self.program.call_spec.in_spec)
        return self.graph(*args, **kwargs)

    def train(self, mode: bool = True) -> LoadedProgram:
        """A traced graph keeps the mode in which it was traced."""
        return self

    @property
    def roast_layers(self) -> dict[str, VirtualLayer]:
        return {layer.name: layer for layer in layers_of(self.program)}


@dataclass(frozen=True)
class VirtualLayer:
    """One use of a virtual weight in a traced graph."""

    name: str
    """Dotted name of the parameter that it replaces."""
    node: str
    """Name of the graph node, which is also the name of its ONNX value; "branch/name" in an inner graph."""
    kind: str
    """"gather", "embedding" or "linear"."""
    mapping: Mapping
    scale: float
    memory: Tensor
    array: str
    """Name of the parameter that holds the array."""


def layers_of(program: Program) -> list[VirtualLayer]:
    """Every use of a virtual weight, in the order of the graph."""
    if not isinstance(program, ExportedProgram):
        return program.layers
    parameters = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    found: list[VirtualLayer] = []
    for part in parts_of(program):
        for node in part.module.graph.nodes:
            if node.target in ROAST_TARGETS:
                found.append(_layer(program, part, node, parameters))
    return found


def _layer(program: ExportedProgram, part: Part, node: torch.fx.Node, stored: dict[str, str]) -> VirtualLayer:
    kind, name = ROAST_TARGETS[node.target], layer_name(node)  # type: ignore[index]
    source = node.args[kind == "linear"]
    source = part.outermost(source) if isinstance(source, torch.fx.Node) else source
    array = stored.get(getattr(source, "name", ""))
    if array is None or (part.path and source not in part.outer.values()):
        raise ExportError(
            f"the array of {name} is computed inside the model; make it a parameter or a buffer"
        )
    fields, scale = node.args[-2:]
    try:
        mapping = Mapping.from_list([int(x) for x in fields])  # type: ignore[union-attr, arg-type]
    except MappingError as error:
        raise MappingError(f"{name}: {error}") from error
    memory = program.state_dict[array].detach()
    return VirtualLayer(name, part.path + node.name, kind, mapping, float(scale), memory, array)  # type: ignore[arg-type]


def kept_bytes(program: Program) -> int:
    """Bytes of the parameters, buffers and constants that are not arrays of virtual weights."""
    if not isinstance(program, ExportedProgram):
        return program.kept_bytes
    arrays = {layer.memory.untyped_storage().data_ptr() for layer in layers_of(program)}
    seen: dict[int, int] = {}
    used = set(program.graph_signature.inputs_to_parameters.values())
    used |= set(program.graph_signature.inputs_to_buffers.values())
    for name, tensor in program.state_dict.items():
        if name in used and tensor.untyped_storage().data_ptr() not in arrays:
            seen[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
    constants = [t for t in program.constants.values() if isinstance(t, Tensor)]
    return sum(seen.values()) + sum(t.numel() * t.element_size() for t in constants)


def input_names(program: Program) -> list[str]:
    """Names of the tensor inputs in order; they are forward's argument names."""
    if not isinstance(program, ExportedProgram):
        return list(program.example)
    return [str(name) for name in program.graph_signature.user_inputs]


def signature(program: Program, dim_names: DimNames | None = None) -> dict[str, tuple[str, Dims]]:
    """Element type and lengths of each tensor input.

    A dynamic length is called as in dim_names, or `<input>_<axis>`. The trace may leave two lengths
    apart that the user gave one name; the name counts.
    """
    if not isinstance(program, ExportedProgram):
        return program.signature
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    labels: dict[str, str] = {}
    shapes = {name: lengths_of(nodes[name].meta["val"]) for name in input_names(program)}
    for name, axes in (dim_names or {}).items():
        for axis, label in axes.items():
            labels.setdefault(_dynamic_length(shapes, name, axis), label)
    found: dict[str, tuple[str, Dims]] = {}
    for name in input_names(program):
        dims: Dims = []
        for axis, length in enumerate(shapes[name]):
            dims.append(
                length if isinstance(length, int) else labels.setdefault(str(length), f"{name}_{axis}")
            )
        found[name] = (str(nodes[name].meta["val"].dtype).removeprefix("torch."), dims)
    return found


def lengths_of(value: Tensor) -> list[Any]:
    """Lengths of a traced tensor: numbers, and symbols or expressions of them where they are dynamic."""
    # A length that a trace found to be fixed late is a symbolic number.
    exprs = [getattr(getattr(length, "node", None), "expr", length) for length in value.shape]
    return [int(expr) if getattr(expr, "is_number", True) else expr for expr in exprs]


def _dynamic_length(shapes: dict[str, list[Any]], name: str, axis: int) -> str:
    """The symbol of a length that the user wants to be dynamic."""
    if name not in shapes:
        raise InputError(f"no input is called {name!r}; the model takes {', '.join(shapes)}")
    if not 0 <= axis < len(shapes[name]) or isinstance(shapes[name][axis], int):
        free = [f"{n}:{k}" for n, v in shapes.items() for k, d in enumerate(v) if not isinstance(d, int)]
        raise InputError(
            f"input {name!r}, axis {axis} is fixed by the model; dynamic are: {', '.join(free) or 'none'}"
        )
    return str(shapes[name][axis])


def flat_inputs(program: Program, inputs: Inputs) -> dict[str, Tensor]:
    """Example inputs as {name: tensor}, in the order of the graph.

    Raises:
        InputError: there are others than the program takes, or they are no tensors.
    """
    if not isinstance(program, ExportedProgram):
        return arguments(program.model, inputs)
    args, kwargs = split(inputs)
    return by_name(input_names(program), kwargs, args)


def call(model: nn.Module, program: Program, values: dict[str, Tensor]) -> Any:
    """Run the model on flat inputs {name: tensor}.

    Raises:
        InputError: the model does not run on them.
    """
    if not isinstance(program, ExportedProgram):
        return run(model, (), values)
    args, kwargs = pytree.tree_unflatten(
        [values[name] for name in input_names(program)], program.call_spec.in_spec
    )
    return run(model, args, kwargs)


def output_names(program: Program) -> list[str]:
    """A name for each tensor output: the keys of a dict, else output, or output_0, output_1 ..."""
    if not isinstance(program, ExportedProgram):
        return program.output_names
    outputs = program.graph_signature.user_outputs
    tree = pytree.tree_unflatten(list(range(len(outputs))), program.call_spec.out_spec)
    return leaf_names(tree, input_names(program))


def leaf_names(outputs: Any, inputs: Sequence[str]) -> list[str]:
    """`output_names` of outputs in this structure; none is the name of an input."""
    paths = [path for path, _ in pytree.tree_flatten_with_path(outputs)[0]]
    taken = set(inputs)
    names: list[str] = []
    for k, path in enumerate(paths):
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        name = "_".join(parts) if parts and not parts[0].isdigit() else f"output_{'_'.join(parts) or k}"
        name = "output" if len(paths) == 1 and name.startswith("output_") else name
        while name in taken:
            name = f"{name}_out"
        taken.add(name)
        names.append(name)
    return names
