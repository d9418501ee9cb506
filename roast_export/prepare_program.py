"""A program as torch.export leaves it in, one that every writer and every proof can take out.

1. Blocks of torch.no_grad and of autocast are written into the graph (subgraphs.py).
2. What autocast casts is cast by nodes of the graph.
3. A virtual weight that only feeds a product becomes part of it (fuse_program.py).
4. Layers in branches and loops, whose module torch forgets, get their names.
5. Rows that are picked out of a virtual weight are read alone, say those of a few experts (read_rows.py).
6. Integers that an operator turns into floats (1.0 - mask) are cast by a node: torch.onnx fails otherwise.
7. Sums and maxima of float16 are taken in float32 and cast back: torch.onnx leaves out the cast back.
8. Layers on which no output depends are left out; `unused_layers` names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from roast_export.fuse_program import fuse_program
from roast_export.read_rows import read_rows
from roast_export.subgraphs import has_autocast, inline_blocks, parts_of

_UNUSED = "roast.unused_layers"

_ROAST = {torch.ops.roast.gather.default, torch.ops.roast.embedding.default, torch.ops.roast.linear.default}


WeightNames = Mapping[tuple[tuple[int, ...], float], str]
"""Dotted name of a virtual weight by the integers of its record and its scale."""


def canonical(program: ExportedProgram, names: WeightNames | None = None) -> ExportedProgram:
    """The same computation in the form above; the program that is given may be changed.

    names: those of the model's virtual weights; a program from an archive has them in its nodes.
    """
    inline_blocks(program)
    if has_autocast(program):
        program = _with_casts(program)
    fuse_program(program)
    for part in parts_of(program):
        _cast_integers(part.module.graph)
        for node in part.module.graph.nodes:
            if node.target in _ROAST and not node.meta.get("nn_module_stack"):
                set_name(node, (names or {}).get(weight_of(node), node.name))
    _widen_reductions(program)
    read_rows(program)
    _drop_unused(program, names or {})
    return program


_NUMBER_FIRST = {
    torch.ops.aten.rsub.Scalar: 0,
    torch.ops.aten.pow.Scalar: 1,
    torch.ops.aten.remainder.Scalar_Tensor: 1,
}
"""Operators whose left operand is a number, and the place of their tensor."""


def _cast_integers(graph: torch.fx.Graph) -> None:
    for node in list(graph.nodes):
        place = _NUMBER_FIRST.get(node.target)
        operand = None if place is None else node.args[place]
        if not isinstance(operand, Node) or "val" not in node.meta or "val" not in operand.meta:
            continue
        wanted = node.meta["val"].dtype
        if operand.meta["val"].dtype != wanted:
            with graph.inserting_before(node):
                cast = graph.call_function(torch.ops.aten.to.dtype, (operand, wanted))
            cast.meta = {"val": operand.meta["val"].to(wanted)}
            node.update_arg(place, cast)


_ATEN = torch.ops.aten
_REDUCTIONS = {
    *(_ATEN.sum.default, _ATEN.sum.dim_IntList, _ATEN.nansum.default, _ATEN.cumsum.default),
    *(_ATEN.prod.default, _ATEN.prod.dim_int, _ATEN.amax.default, _ATEN.amin.default),
}
_NARROW = (torch.float16, torch.bfloat16)


def _widen_reductions(program: ExportedProgram) -> None:
    """Take reductions of narrow values in float32, as torch does within them, and cast what they give."""
    renamed = {}
    for part in parts_of(program):
        graph = part.module.graph
        for node in list(graph.nodes):
            narrow = node.meta["val"].dtype if node.target in _REDUCTIONS and "val" in node.meta else None
            operand = node.args[0] if narrow in _NARROW else None
            if operand is None or operand.meta["val"].dtype != narrow or node.kwargs.get("dtype") is not None:
                continue
            with graph.inserting_before(node):
                wide = graph.call_function(_ATEN.to.dtype, (operand, torch.float32))
            with graph.inserting_after(node):
                back = graph.call_function(_ATEN.to.dtype, (node, narrow))
            node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
            node.update_arg(0, wide)
            back.meta = dict(node.meta)
            wide.meta = {"val": operand.meta["val"].to(torch.float32)}
            node.meta = {**node.meta, "val": node.meta["val"].to(torch.float32)}
            renamed[node.name] = back.name
        if renamed:
            part.module.recompile()
    for spec in program.graph_signature.output_specs:
        spec.arg.name = renamed.get(spec.arg.name, spec.arg.name)


def forget_derived_ranges(program: ExportedProgram) -> None:
    """Ranges of symbols alone, not of expressions of them (s27 + s64), for a program that torch has loaded.

    torch takes both out of an archive, and its passes over the graph then fail at the expressions.
    """
    derived = [key for key in program.range_constraints if not key.is_Symbol]
    for key in derived:
        del program.range_constraints[key]
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    lengths = [n.node for v in values if isinstance(v, torch.Tensor) for n in v.shape if hasattr(n, "node")]
    if lengths:
        ranges = lengths[0].shape_env.var_to_range
        for key in [key for key in ranges if not key.is_Symbol]:
            del ranges[key]


def unused_layers(program: Any) -> list[str]:
    """Names of the virtual weights on which no output of the model depends."""
    if not isinstance(program, ExportedProgram):
        return []
    # torch.export keeps what is called "custom" in an archive.
    return list((program.graph_module.meta.get("custom") or {}).get(_UNUSED, []))


def forget_replaced(program: ExportedProgram, names: set[str]) -> None:
    """Take buffers of these names, which inputs have replaced, out of a program.

    torch.export sees a forward assign to them, and so writes the new values into the buffers all the same.
    """
    stored = {spec.arg.name for spec in program.graph_signature.input_specs if spec.target in names}
    replaced = [node for node in program.graph.nodes if node.name in stored]
    for node in replaced:
        for user in list(node.users):
            if user.target is torch.ops.aten.copy_.default and user.args[0] is node and not user.users:
                program.graph.erase_node(user)
    _forget(program, [node for node in replaced if not node.users])


def layer_name(node: Node) -> str:
    """Dotted name of the parameter that the virtual weight of a node replaces."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else node.name
    fused = node.target is not torch.ops.roast.gather.default
    if fused and "virtual" not in path.split("."):
        return f"{path}.weight" if path else "weight"
    return path.replace(".virtual.", ".").removeprefix("virtual.")


def _with_casts(program: ExportedProgram) -> ExportedProgram:
    """Autocast's own decisions as nodes. torch forgets which module a node of such a block came from."""
    names = _weights(program)
    custom = program.graph_module.meta.get("custom")
    found: ExportedProgram = program.run_decompositions({})
    if custom:
        found.graph_module.meta["custom"] = custom
    for part in parts_of(found):
        for node in part.module.graph.nodes:
            if node.target in _ROAST and weight_of(node) in names:
                set_name(node, names[weight_of(node)])
    return found


def weight_of(node: Node) -> tuple[tuple[int, ...], float]:
    """Record and scale of the virtual weight that a node uses."""
    fields, scale = node.args[-2:]
    return tuple(fields), scale  # type: ignore[arg-type, return-value]


def set_name(node: Node, name: str) -> None:
    """The node as if the weight had been read in the module that owns it."""
    owner, _, parameter = name.rpartition(".")
    path = f"{owner}.virtual.{parameter}".removeprefix(".")
    node.meta["nn_module_stack"] = {"roast": (path, "VirtualWeight")}


def _drop_unused(program: ExportedProgram, names: WeightNames) -> None:
    read = {node for node in program.graph.nodes if node.op == "placeholder" and node.users}
    known = {**names, **_weights(program)}
    for part in reversed(list(parts_of(program))):
        part.module.graph.eliminate_dead_code()
        part.module.recompile()
    used = _weights(program)
    # A weight whose rows are read has another record there than in the model.
    unused = {name for weight, name in known.items() if weight not in used} - set(used.values())
    if unused:
        custom = program.graph_module.meta.setdefault("custom", {})
        custom[_UNUSED] = sorted(unused.union(custom.get(_UNUSED, [])))
    _forget(program, [node for node in read if not node.users])


def _weights(program: ExportedProgram) -> dict[tuple[tuple[int, ...], float], str]:
    """The virtual weights that a program reads, with a name of each."""
    nodes = [node for part in parts_of(program) for node in part.module.graph.nodes]
    return {weight_of(node): layer_name(node) for node in nodes if node.target in _ROAST}


def _forget(program: ExportedProgram, placeholders: list[Node]) -> None:
    """Stored tensors that only unused layers read are no part of the model any more."""
    signature = program.graph_signature
    for node in placeholders:
        spec = next(spec for spec in signature.input_specs if spec.arg.name == node.name)
        if spec.target is None:
            continue  # an input of the model, which whoever calls it goes on giving
        signature.input_specs.remove(spec)
        program.graph.erase_node(node)
        if all(other.target != spec.target for other in signature.input_specs):
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    if placeholders:
        program.graph_module.recompile()
