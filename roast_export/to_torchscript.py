"""Exported program in, TorchScript module out.

The module tree of the model stays: parameters keep their dotted names, and each virtual weight is a
ScriptWeight in the place of the parameter that it replaces. `forward` is the traced graph, written
out as one line of source for each node:

Case 1: an aten operator: a call of the same operator
Case 2: an operator on a virtual weight: a method of its ScriptWeight
Case 3: arithmetic on lengths: the same arithmetic
Case 4: checks of torch.export itself: left out
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from roast_export.errors import ExportError
from roast_export.note import NOTE, note_of
from roast_export.program import (
    ROAST_TARGETS,
    DimNames,
    Program,
    VirtualLayer,
    input_names,
    layers_of,
    output_names,
    quiet,
)
from roast_export.script_layers import script_model
from roast_export.script_weights import PortableScriptWeight, ScriptWeight
from roast_export.torch_zip import deflated

WEIGHT_METHOD = "roast_weight"
"""Method of the exported module: (k: int, like: Tensor) -> Tensor, its k-th virtual weight."""

_ARITHMETIC: dict[Any, str] = {
    operator.add: "({} + {})", operator.sub: "({} - {})", operator.mul: "({} * {})",
    operator.floordiv: "({} // {})", operator.mod: "({} % {})", operator.neg: "(-{})",
    operator.truediv: "({} / {})", operator.pow: "({} ** {})",
    operator.eq: "({} == {})", operator.ne: "({} != {})", operator.lt: "({} < {})",
    operator.le: "({} <= {})", operator.gt: "({} > {})", operator.ge: "({} >= {})",
    operator.getitem: "{}[{}]", torch.sym_max: "max({}, {})", torch.sym_min: "min({}, {})",
    torch.sym_int: "int({})", torch.sym_float: "float({})", torch.sym_not: "(not {})",
    torch.ops.aten.sym_size.int: "{}.size({})", torch.ops.aten.sym_numel.default: "{}.numel()",
    torch.ops.aten.sym_stride.int: "{}.stride({})",
}  # fmt: skip

_CHECKS = {
    "_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range",
    "sym_constrain_range_for_size", "_check",
}  # fmt: skip


def write_torchscript(
    program: Program,
    path: Path,
    *,
    portable: bool = False,
    lite: bool = False,
    dim_names: DimNames | None = None,
) -> None:
    """Write the model as a TorchScript archive, or for the lite interpreter. dim_names: see signature.

    Raises:
        ExportError: see to_torchscript.
    """
    with quiet():
        uses = _by_place(layers_of(program))
        if isinstance(program, ExportedProgram):
            module = to_torchscript(program, portable=portable)
        else:
            module = script_model(program.model, portable=portable)
            # Every virtual layer holds its weight itself here, tied ones too.
            uses = [(_holder(layer.name), layer) for layer in layers_of(program)]
        module.define(_weight_method([_place(place) for place in dict.fromkeys(name for name, _ in uses)]))
        target = "lite" if lite else "torchscript"
        note = {NOTE: note_of(program, target, portable, uses, dim_names).to_json()}
        with deflated(path) as large:
            if lite:
                large.write(module._save_to_buffer_for_lite_interpreter(_extra_files=note))
            else:
                torch.jit.save(module, large, _extra_files=note)


def to_torchscript(program: ExportedProgram, *, portable: bool = False) -> torch.jit.ScriptModule:
    """The model as a ScriptModule on the CPU, with forward's tensors by the names of the traced inputs.

    One tensor comes back as a Tensor, a dict of tensors as Dict[str, Tensor], anything else as a flat
    tuple in the order of `output_names`.

    Raises:
        ExportError: an operator of the model has no TorchScript, or a weight no portable form.
    """
    layers = layers_of(program)
    weights = _weights(layers, portable)
    tree, values = _tree(program, layers, weights)
    module = torch.jit.script(tree)
    places = {layer.node: _place(name) for name, layer in _by_place(layers)}
    source = _Source(program, values, places)
    module.define(source.forward())
    return module


def _by_place(layers: list[VirtualLayer]) -> list[tuple[str, VirtualLayer]]:
    """Each use of a weight with the dotted name under which the weight is kept: that of its first use."""
    names: dict[Any, str] = {}
    taken: set[str] = set()
    found = []
    for layer in layers:
        key = (layer.array, layer.mapping, layer.scale)
        if key not in names:
            name = layer.name
            while name in taken:
                name += "_"
            taken.add(name)
            names[key] = name
        found.append((names[key], layer))
    return found


def _holder(name: str) -> str:
    """Where script_layers.py keeps the weight of the parameter `name`."""
    return f"{name.rpartition('.')[0]}.virtual".removeprefix(".")


def _weights(layers: list[VirtualLayer], portable: bool) -> dict[str, nn.Module]:
    arrays: dict[str, nn.Parameter] = {}
    weights: dict[str, nn.Module] = {}
    for name, layer in _by_place(layers):
        memory = arrays.setdefault(layer.array, nn.Parameter(layer.memory.detach(), requires_grad=False))
        if name not in weights:
            form = PortableScriptWeight if portable else ScriptWeight
            weights[name] = form(memory, layer.mapping, layer.scale)
    return weights


def _tree(
    program: ExportedProgram, layers: list[VirtualLayer], weights: dict[str, nn.Module]
) -> tuple[nn.Module, dict[str, str]]:
    """Modules that hold every tensor the graph uses, and the source that reads each graph input."""
    # torch.jit keeps one compiled class for equal trees of one Python class; this tree is about to get
    # a forward of its own.
    root: nn.Module = type("Model", (nn.Module,), {})()
    arrays = {layer.array for layer in layers}
    values: dict[str, str] = {}
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT or spec.target in arrays or spec.arg.name not in read:
            continue
        name = str(spec.target)
        tensor = program.state_dict.get(name, program.constants.get(name))
        if not isinstance(tensor, Tensor):
            raise ExportError(f"{name} is a {type(tensor).__name__}, which TorchScript cannot hold")
        parent, leaf = _parent(root, name)
        if spec.kind is InputKind.PARAMETER:
            parent.register_parameter(leaf, nn.Parameter(tensor.detach(), requires_grad=False))
        else:
            parent.register_buffer(leaf, tensor.detach())
        values[spec.arg.name] = _place(name)
    for name, weight in weights.items():
        parent, leaf = _parent(root, name)
        parent.add_module(leaf, weight)
    return root.eval(), values


def _parent(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        child = root._modules[part]
        assert child is not None
        root = child
    return root, leaf


def _place(name: str) -> str:
    """Source that reads the attribute of a dotted name."""
    place = "self"
    for part in name.split("."):
        place = f"{place}.{part}" if part.isidentifier() else f'getattr({place}, "{part}")'
    return place


def _weight_method(places: list[str]) -> str:
    lines = [f"def {WEIGHT_METHOD}(self, k: int, like: Tensor) -> Tensor:"]
    for k, place in enumerate(places):
        lines += [f"    if k == {k}:", f"        return {place}(like)"]
    return "\n".join([*lines, '    raise IndexError("there is no such virtual weight")', ""])


class _Source:
    """The graph as the source of `forward`."""

    def __init__(self, program: ExportedProgram, values: dict[str, str], weights: dict[str, str]) -> None:
        self.program = program
        self.weights = weights
        self.names = dict(values)
        tensors = [s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
        self.names |= dict.fromkeys(tensors, "")
        self.inputs = dict(zip(tensors, input_names(program), strict=True))
        self.names |= self.inputs

    def forward(self) -> str:
        for spec in self.program.graph_signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise ExportError(f"the model changes its own state ({spec.target}); put it in eval mode")
        arguments = ", ".join(f"{name}: Tensor" for name in self.inputs.values())
        lines = [f"def forward(self, {arguments}):"]
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                lines += [f"    {line}" for line in self._statement(node)]
        return "\n".join([*lines, f"    return {self._result()}", ""])

    def _statement(self, node: torch.fx.Node) -> list[str]:
        self.names[node.name] = f"v_{node.name}"
        op = node.target if isinstance(node.target, torch._ops.OpOverload) else None
        if op is not None and (op._opname in _CHECKS or (not node.users and not op._schema.is_mutable)):
            return []
        return [f"{self.names[node.name]} = {self._expression(node)}"]

    def _expression(self, node: torch.fx.Node) -> str:
        kind = ROAST_TARGETS.get(node.target)  # type: ignore[call-overload]
        if kind is not None:
            return self._read(node, kind)
        template = _ARITHMETIC.get(node.target)
        if template is not None:
            return template.format(*(self._value(arg) for arg in node.args))
        if not isinstance(node.target, torch._ops.OpOverload):
            raise ExportError(f"{node.target} has no TorchScript; export to pt2 or onnx")
        schema = node.target._schema
        given = [self._argument(value, a) for value, a in zip(node.args, schema.arguments, strict=False)]
        by_name = {a.name: a for a in schema.arguments}
        given += [f"{key}={self._argument(value, by_name[key])}" for key, value in node.kwargs.items()]
        return f"torch.ops.{node.target.namespace}.{node.target._opname}({', '.join(given)})"

    def _read(self, node: torch.fx.Node, kind: str) -> str:
        weight = self.weights[node.name]
        if kind == "gather":
            return f"{weight}({self._like()})"
        if kind == "embedding":
            return f"{weight}.rows({self._value(node.args[1])})"
        return f"{weight}.linear({self._value(node.args[0])}, {self._value(node.args[2])})"

    def _like(self) -> str:
        if not self.inputs:
            raise ExportError("a model without inputs is a constant; it has no TorchScript form")
        return str(next(iter(self.inputs.values())))

    def _argument(self, value: Any, argument: Any) -> str:
        if isinstance(value, list | tuple) and not value:
            # An empty list has no type of its own.
            kind = "int" if "int" in str(argument.type) else "Tensor"
            return f"torch.jit.annotate(List[{kind}], [])"
        return self._value(value)

    def _value(self, value: Any) -> str:
        if isinstance(value, torch.fx.Node):
            return str(self.names[value.name])
        if isinstance(value, list | tuple):
            return f"[{', '.join(self._value(item) for item in value)}]"
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            return f'float("{value}")'
        if isinstance(value, torch.device):
            return f'torch.device("{value}")'
        if value is None or isinstance(value, bool | int | float | str | torch.dtype):
            return repr(value)
        if isinstance(value, torch.layout | torch.memory_format):
            return str(value)
        raise ExportError(f"an argument of type {type(value).__name__} has no TorchScript")

    def _result(self) -> str:
        outputs = next(node for node in self.program.graph.nodes if node.op == "output").args[0]
        values = [self._value(value) for value in outputs]
        spec = self.program.call_spec.out_spec
        tree = pytree.tree_unflatten(list(range(len(values))), spec)
        if isinstance(tree, int):
            return values[0]
        if isinstance(tree, dict) and all(isinstance(place, int) for place in tree.values()):
            names = output_names(self.program)
            return "{" + ", ".join(f'"{n}": {v}' for n, v in zip(names, values, strict=True)) + "}"
        return f"({', '.join(values)},)"
