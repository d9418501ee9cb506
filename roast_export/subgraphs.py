"""The graphs inside a traced graph: the branches of torch.cond, the bodies of loops, and blocks.

A block (torch.no_grad, torch.autocast) is written into the graph that holds it. Branches and bodies stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

_HIGHER = torch.ops.higher_order


@dataclass(frozen=True)
class Part:
    """One graph of a program.

    path: how the nodes of this graph are told from those of others: "" for the top graph, else
        "true_graph_0/" and so on.
    outer: placeholders of this graph that are values of the top graph, as the nodes there.
    """

    path: str
    module: GraphModule
    outer: dict[Node, Node]

    def outermost(self, node: Node) -> Node:
        """The node of the top graph that a node of this graph stands for; itself if there is none."""
        return self.outer.get(node, node)


def parts_of(program: ExportedProgram) -> Iterator[Part]:
    """The top graph, and every graph in it, each behind the one that calls it."""
    yield from _parts("", program.graph_module, {})


def _parts(path: str, module: GraphModule, outer: dict[Node, Node]) -> Iterator[Part]:
    part = Part(path, module, outer)
    yield part
    for node in module.graph.nodes:
        for name, inner in _called(module, node):
            placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
            # Whatever the operator, its last argument holds the values that are the same in every call.
            fixed = node.args[-1] if isinstance(node.args[-1], list | tuple) else ()
            known = zip(placeholders[len(placeholders) - len(fixed) :], fixed, strict=True)
            inside = {place: part.outermost(v) for place, v in known if isinstance(v, Node)}
            yield from _parts(f"{path}{name}/", inner, inside)


def _called(module: GraphModule, node: Node) -> Iterator[tuple[str, GraphModule]]:
    """The graphs that a node of the graph runs, by their names in its module."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return
    for argument in node.args:
        if isinstance(argument, Node) and argument.op == "get_attr":
            inner = getattr(module, str(argument.target), None)
            if isinstance(inner, GraphModule):
                yield str(argument.target), inner


def inline_blocks(program: ExportedProgram) -> int:
    """Write every block that changes nothing on a CPU in place of its call; returns how many there were.

    Without gradients torch.no_grad and torch.enable_grad change nothing, and neither does autocast that
    is off, unless it is off inside a block where it is on. A block where autocast is on is left.
    """
    count = _inline(program.graph_module, program, autocast=False)
    if count:
        program.graph_module.recompile()
    return count


def has_autocast(program: ExportedProgram) -> bool:
    """Whether a block is left in which operators choose their own type."""
    kinds = (_HIGHER.wrap_with_autocast, _enter_autocast)
    return any(node.target in kinds for part in parts_of(program) for node in part.module.graph.nodes)


def _inline(module: GraphModule, program: ExportedProgram, *, autocast: bool) -> int:
    count = 0
    for node in list(module.graph.nodes):
        on = node.target is _HIGHER.wrap_with_autocast and node.args[0] == "cpu" and bool(node.args[2])
        for _, inner in _called(module, node):
            count += _inline(inner, program, autocast=autocast or on)
            inner.recompile()
        if node.target is _HIGHER.wrap_with_set_grad_enabled:
            _write_out(module, node, node.args[1], node.args[2:])
        elif node.target is _HIGHER.wrap_with_autocast and not on and not autocast:
            _write_out(module, node, node.args[4], node.args[5:])
        else:
            continue
        count += 1
    return count + _drop_switches(module, autocast)


def _drop_switches(module: GraphModule, autocast: bool) -> int:
    """torch writes a block inside a block as a switch at its begin and one at its end."""
    on, drop = [autocast], []
    for node in module.graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            drop.append(node)
        elif node.target is _enter_autocast:
            on.append(on[-1] if node.args[0] != "cpu" else bool(node.args[2]))
            if on[-1] == on[-2] is False or node.args[0] != "cpu":
                drop.append(node)
        elif node.target is _exit_autocast:
            on.pop()
            drop += [node] * (node.args[0] in drop)
    for node in reversed(drop):
        module.graph.erase_node(node)
    return len(drop)


def _write_out(module: GraphModule, call: Node, body: Any, arguments: tuple[Any, ...]) -> None:
    """The nodes of `body` in place of its call; what read the k-th result reads the value itself."""
    graph, inner = module.graph, getattr(module, body.target)
    values: dict[Node, Any] = {}
    results: Any = ()
    with graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                values[node] = arguments[len(values)]
            elif node.op == "output":
                results = torch.fx.map_arg(node.args[0], values.__getitem__)
            else:
                values[node] = graph.node_copy(node, values.__getitem__)
                if node.op == "get_attr":
                    values[node].target = _adopted(module, inner, str(node.target))
    for user in list(call.users):
        # A call gives a tuple, of which each result is taken by a getitem.
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(call)
    if not body.users:
        graph.erase_node(body)
        delattr(module, body.target)


def _adopted(module: GraphModule, inner: GraphModule, name: str) -> str:
    """The attribute `name` of a body, moved to the module that it is written into under a free name."""
    free, k = name, 0
    while hasattr(module, free):
        free, k = f"{name}_{k}", k + 1
    setattr(module, free, getattr(inner, name))
    return free
