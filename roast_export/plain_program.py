"""A traced program under the plain signature: tensors by position in, tensors alone out.

Programs of trace.py have it. One that somebody else traced may take nested structures and constants, and may
give numbers and None; the graph is the same, and only its ends are written anew.
"""

from __future__ import annotations

import keyword
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from roast_export.calls import plain_outputs
from roast_export.errors import LoadError


def make_plain(program: ExportedProgram) -> list[str]:
    """Give `program` the plain signature, in place; what a report must tell of it, in full sentences.

    Raises:
        LoadError: the program takes numbers that change from call to call.
    """
    legal_names(program)
    facts = [*_plain_inputs(program), *_plain_outputs(program)]
    program.graph_module.recompile()
    return facts


def name_inputs(program: ExportedProgram, names: list[str]) -> None:
    """Give the inputs of a program these names. torch.export writes some of them otherwise."""
    inputs = [
        spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT
    ]
    nodes = {node.name: node for node in program.graph.nodes}
    for old, new in zip(inputs, names, strict=True):
        if old == new:
            continue
        if new in nodes:
            _rename(program, nodes, new, _free(f"{new}_0", {*nodes, *names}))
        _rename(program, nodes, old, new)
    program.graph_module.recompile()


def legal_names(program: ExportedProgram) -> None:
    """Rename parameters whose dotted name holds a keyword of Python, such as d.is.bias: d.is_.bias.

    torch writes the names of parameters into source when it makes a module of a program.
    """
    stores: list[dict[str, Any]] = [program.state_dict, program.constants]
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            new = _legal(spec.target)
            for store in stores:
                if spec.target in store and new != spec.target:
                    store[new] = store.pop(spec.target)
            spec.target = new
    for output in program.graph_signature.output_specs:
        if output.kind is OutputKind.BUFFER_MUTATION and output.target is not None:
            output.target = _legal(output.target)


def _legal(name: str) -> str:
    return ".".join(f"{part}_" if keyword.iskeyword(part) else part for part in name.split("."))


def _plain_inputs(program: ExportedProgram) -> list[str]:
    signature, nodes = program.graph_signature, {node.name: node for node in program.graph.nodes}
    facts, kept = [], []
    for spec in signature.input_specs:
        if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, TensorArgument):
            node = nodes[spec.arg.name]
            if node.users:
                raise LoadError(
                    f"the input {node.name} is a number that changes from call to call; trace with tensors"
                )
            program.graph.erase_node(node)
            value = getattr(spec.arg, "value", None)
            facts.append(
                f"The argument {node.name} was {value!r} in the example; the file computes with that value."
            )
            continue
        kept.append(spec)
    names = [spec.arg.name for spec in kept if spec.kind is InputKind.USER_INPUT]
    form = program.module_call_graph[0].signature
    assert form is not None
    flat = len(kept) == len(signature.input_specs) and _is_flat(form.in_spec)
    signature.input_specs = kept
    if flat:
        return facts
    example = program.example_inputs
    if example is not None:
        leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
        program._example_inputs = (tuple(leaves), {})
    form.in_spec = pytree.tree_structure((tuple(range(len(names))), {}))
    form.forward_arg_names = names
    return facts


def _is_flat(spec: pytree.TreeSpec) -> bool:
    """Whether a call takes one leaf for each argument."""
    args, kwargs = spec.children()
    return all(child.is_leaf() for child in [*args.children(), *kwargs.children()])


def _plain_outputs(program: ExportedProgram) -> list[str]:
    signature, output = program.graph_signature, program.graph.output_node()
    form = program.module_call_graph[0].signature
    assert form is not None
    specs = signature.output_specs
    first = next((k for k, spec in enumerate(specs) if spec.kind is OutputKind.USER_OUTPUT), len(specs))
    marks = [
        torch.empty(0) if isinstance(spec.arg, TensorArgument) else getattr(spec.arg, "value", None)
        for spec in specs[first:]
    ]
    facts: list[str] = []
    tree = plain_outputs(pytree.tree_unflatten(marks, form.out_spec), set(), facts)
    leaves, form.out_spec = pytree.tree_flatten(tree)
    order = [next(k for k, mark in enumerate(marks) if mark is leaf) for leaf in leaves]
    args = output.args[0]
    assert isinstance(args, tuple | list)
    signature.output_specs = kept = [*specs[:first], *(specs[first + k] for k in order)]
    results: list[Any] = [*args[:first], *(args[first + k] for k in order)]
    for k in range(first, len(results)):
        # A value has one name in a file: an output that is an input, or another output, becomes a copy.
        if results[k].op == "placeholder" or results[k] in results[first:k]:
            with program.graph.inserting_before(output):
                copied = program.graph.call_function(torch.ops.aten.clone.default, (results[k],))
            copied.meta = {"val": results[k].meta["val"]}
            results[k], kept[k].arg = copied, TensorArgument(copied.name)
    output.args = (tuple(results),)
    return facts


def _rename(program: ExportedProgram, nodes: dict[str, torch.fx.Node], old: str, new: str) -> None:
    node = nodes[new] = nodes.pop(old)
    node.name = new
    if node.op == "placeholder":
        node.target = new
    program.graph_signature.replace_all_uses(old, new)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
