"""One traced model: the exported program every target is made from, and what is virtual in it."""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Lookup
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from roast_export.errors import ExportError, InputError, MappingError
from roast_export.fuse_program import fuse_program
from roast_export.mapping import Mapping
from roast_export.storage import own_program
from roast_export.untraceable import explain

Inputs = tuple[Any, ...] | Lookup[str, Any]
"""Arguments of forward, in order, or by name."""

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
    """A model opened from an archive, without its code. `program` is what torch.export proved."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        # Guards are Python source in the archive; shapes are checked by running the model.
        program._guards_code = []
        fuse_program(program)
        self.program = program
        self.roast_errors: dict[str, float] = {}
        self.graph = program.module(check_guards=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
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
    """Name of the graph node, which is also the name of its ONNX value."""
    kind: str
    """"gather", "embedding" or "linear"."""
    mapping: Mapping
    scale: float
    memory: Tensor
    array: str
    """Name of the parameter that holds the array."""


def split(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a forward call."""
    if isinstance(inputs, Lookup):
        return (), dict(inputs)
    return tuple(inputs) if isinstance(inputs, Sequence) else (inputs,), {}


def trace(
    model: nn.Module, inputs: Inputs, dynamic_shapes: Any = None, *, every_dimension: bool = False
) -> ExportedProgram:
    """torch.export with `every_dimension` as dynamic as it can be, or as `dynamic_shapes` says.

    dynamic_shapes: as torch.export takes it, or {"input": {axis: "name"}}.

    Raises:
        InputError: the example inputs do not run, or a dimension asked for cannot be dynamic.
        ExportError: torch.export cannot trace the model.
    """
    if isinstance(model, LoadedProgram):
        return model.program
    devices = {str(tensor.device) for tensor in [*model.parameters(), *model.buffers()]} - {"cpu"}
    if devices:
        raise InputError(f"the model is on {sorted(devices)[0]}; move it with model.cpu()")
    run(model, *split(inputs))
    named = arguments(model, inputs)
    wanted = {name: {0} for name in named} if every_dimension else _wanted(named, dynamic_shapes)
    if wanted is None:
        shapes = dynamic_shapes
    else:
        named = _without_ones(model, named, wanted)
        inputs = _call_like(inputs, named)
        shapes = _every_dimension(named) if every_dimension else _dynamic(named, wanted)
    args, kwargs = split(inputs)
    try:
        # torch.export prints the graph that it could not finish to stderr.
        with quiet(), redirect_stderr(io.StringIO()), torch.no_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        fuse_program(program)
        return own_program(program)
    except (
        torch._dynamo.exc.UserError,
        torch.fx.experimental.symbolic_shapes.ConstraintViolationError,
    ) as error:
        raise InputError(_fixed(error)) from error
    except Exception as error:
        raise ExportError(explain(error)) from error


def layers_of(program: Program) -> list[VirtualLayer]:
    """Every use of a virtual weight, in the order of the graph."""
    if not isinstance(program, ExportedProgram):
        return program.layers
    parameters = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    found: list[VirtualLayer] = []
    for node in program.graph.nodes:
        kind = ROAST_TARGETS.get(node.target)
        if kind is None:
            continue
        array = parameters.get(getattr(node.args[kind == "linear"], "name", ""))
        if array is None:
            raise ExportError(
                f"the array of {_layer_name(node, kind)} is computed inside the model; make it a "
                "parameter or a buffer"
            )
        name = _layer_name(node, kind)
        try:
            mapping = Mapping.from_list([int(x) for x in node.args[-2]])
        except MappingError as error:
            raise MappingError(f"{name}: {error}") from error
        found.append(
            VirtualLayer(
                name=name,
                node=node.name,
                kind=kind,
                mapping=mapping,
                scale=float(node.args[-1]),
                memory=program.state_dict[array].detach(),
                array=array,
            )
        )
    return found


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
        InputError: their structure is not the one the model was traced with.
    """
    if not isinstance(program, ExportedProgram):
        return arguments(program.model, inputs)
    args, kwargs = split(inputs)
    in_spec = program.call_spec.in_spec
    order = list(in_spec.child(1).context) if in_spec.num_children == 2 else []
    n_positional = in_spec.child(0).num_children
    if len(args) < n_positional + len(order):
        names = _argument_names(program)
        by_name = dict(zip(names, args, strict=False)) | kwargs
        missing = [name for name in names if name not in by_name]
        if missing:
            raise InputError(f"no input {missing[0]!r} is given; the model takes {', '.join(names)}")
        args = tuple(by_name[name] for name in names[:n_positional])
        kwargs = {name: by_name[name] for name in names[n_positional:]}
    leaves = pytree.tree_leaves((args, kwargs))
    return dict(zip(input_names(program), leaves, strict=True))


def call(model: nn.Module, program: Program, values: dict[str, Tensor]) -> Any:
    """Run the model on flat inputs {name: tensor}.

    Raises:
        InputError: the model does not run on them.
    """
    if not isinstance(program, ExportedProgram):
        return run(model, (), values)
    leaves = [values[name] for name in input_names(program)]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return run(model, args, kwargs)


def output_names(program: Program) -> list[str]:
    """A name for each tensor output: the keys of a dict, else output, or output_0, output_1 ..."""
    if not isinstance(program, ExportedProgram):
        return program.output_names
    outputs = program.graph_signature.user_outputs
    tree = pytree.tree_unflatten(list(range(len(outputs))), program.call_spec.out_spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    taken = set(input_names(program))
    names = []
    for k, path in enumerate(paths):
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        name = "_".join(parts) if parts and not parts[0].isdigit() else f"output_{'_'.join(parts) or k}"
        name = "output" if len(paths) == 1 and name.startswith("output_") else name
        names.append(f"{name}_out" if name in taken else name)
    return names


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and back in the modes it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's export chatter off the screen; what matters comes as an exception."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "torch.export", "torch.onnx")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of nn.TransformerEncoder is one opaque operator that nothing can export.
    torch.backends.mha.set_fastpath_enabled(False)
    detect = transformer._detect_is_causal_mask
    # nn.Transformer compares a mask's values with a causal one, which no trace can follow, to choose a faster
    # kernel. A mask that is not called causal is applied as it is.
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        transformer._detect_is_causal_mask = detect
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _argument_names(program: ExportedProgram) -> list[str]:
    """Top-level names of forward's arguments, positional ones first."""
    signature = program.module_call_graph[0].signature
    names = list(getattr(signature, "forward_arg_names", None) or [])
    return names or input_names(program)


def _layer_name(node: torch.fx.Node, kind: str) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else node.name
    if kind != "gather" and "virtual" not in path.split("."):
        return f"{path}.weight" if path else "weight"
    return path.replace(".virtual.", ".").removeprefix("virtual.")


def run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the model. Raises InputError if it does not run."""
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        raise InputError(f"the model does not run on these inputs: {_first_line(error)}") from error


def arguments(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Inputs by the names of forward's arguments, in the order of the call."""
    args, kwargs = split(inputs)
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _call_like(inputs: Inputs, named: dict[str, Any]) -> Inputs:
    """The named inputs in the form of the call: by position where they were, else by name."""
    args, kwargs = split(inputs)
    if not args:
        return named
    values = list(named.values())[: len(args)]
    return tuple(values) if not kwargs else dict(named)


def _wanted(named: dict[str, Any], shapes: Any) -> dict[str, set[int]] | None:
    """Axes asked for by {"input": {axis: "name"}}; None if `shapes` is in torch.export's own form."""
    labels = (
        [x for axes in shapes.values() if isinstance(axes, Lookup) for x in axes.values()]
        if (isinstance(shapes, Lookup))
        else []
    )
    if not any(isinstance(label, str) for label in labels):
        return None
    wanted: dict[str, set[int]] = {}
    for name, axes in shapes.items():
        if name not in named:
            raise InputError(f"no input is called {name!r}; the model takes {', '.join(named)}")
        value = named[name]
        for axis in axes or {}:
            if not isinstance(value, Tensor) or not 0 <= axis < value.dim():
                raise InputError(f"input {name!r} has no axis {axis}; its shape is {list(value.shape)}")
            wanted.setdefault(name, set()).add(axis)
    return wanted


def _without_ones(model: nn.Module, named: dict[str, Any], wanted: dict[str, set[int]]) -> dict[str, Any]:
    """Examples with no length 1 on the wanted axes, if the model runs on them.

    torch.export takes a length of 1 for a constant (it may broadcast), so a batch of one would
    stay a batch of one.
    """
    wide = dict(named)
    for name, axes in wanted.items():
        for axis in axes:
            value = wide[name]
            if isinstance(value, Tensor) and axis < value.dim() and value.shape[axis] == 1:
                wide[name] = torch.cat((value, value), axis)
    try:
        run(model, (), wide)
    except InputError:
        return named
    return wide


def _every_dimension(named: dict[str, Any]) -> dict[str, Any]:
    def auto(leaf: Any) -> Any:
        return [Dim.AUTO] * leaf.dim() if isinstance(leaf, Tensor) else None

    return {name: pytree.tree_map(auto, value) for name, value in named.items()}


def _dynamic(named: dict[str, Any], wanted: dict[str, set[int]]) -> dict[str, Any]:
    def nothing(leaf: Any) -> None:
        return None

    return {
        name: dict.fromkeys(sorted(wanted[name]), Dim.DYNAMIC)
        if name in wanted
        else pytree.tree_map(nothing, value)
        for name, value in named.items()
    }


def _fixed(error: BaseException) -> str:
    """Which dimension torch.export found to be fixed, in one sentence."""
    found = re.search(r"inputs\['(\w+)'\](?:\[\d+\])?\.shape\[(\d+)\]", str(error))
    which = f"input {found[1]!r}, axis {found[2]}" if found else "a dimension asked to be dynamic"
    length = re.search(r"hint of (\d+)", str(error))
    at = f" at {length[1]}" if length else ""
    return f"{which} is fixed by the model{at}; leave it out of dynamic_shapes (--dynamic)"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
