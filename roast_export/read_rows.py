"""In a traced graph, rows that are picked out of a virtual weight become roast::embedding.

Case 1: index(W, [ids]), ids of integers: a negative one counts from the end
Case 2: index_select(W, 0, ids)
Case 3: embedding(W, ids), W two-dimensional
W is gather(array), or that gather cast to another dtype. Of a weight of more axes, such as one expert after
the other, W[id] is several rows of a table: those of row id. Only they are expanded.

A weight that something else reads too is expanded anyway, and stays as it is. So does one whose rows do not
lie in the array as runs: to expand it whole is faster than to look up its elements one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from roast_export.mapping import Element, Mapping, Sign
from roast_export.subgraphs import parts_of

_ATEN = torch.ops.aten
_CASTS = {_ATEN.to.dtype, _ATEN._to_copy.default}
_ASSERTION = _ATEN._assert_tensor_metadata.default


@dataclass(frozen=True)
class _Pick:
    """One reading of rows. ids: integers of any shape."""

    node: Node
    ids: Node
    from_end: bool
    """Whether negative ids count from the end."""
    cast: Node | None
    """Between the gather and the reading."""


def read_rows(program: ExportedProgram) -> int:
    """Rewrite `program` in place, its inner graphs too; returns the number of readings of rows."""
    renamed: dict[str, str] = {}
    for part in parts_of(program):
        renamed |= _read(part.module)
    for spec in program.graph_signature.output_specs:
        spec.arg.name = renamed.get(spec.arg.name, spec.arg.name)
    return len(renamed)


def as_table(mapping: Mapping) -> Mapping:
    """The record of the same weight as a table, of which weight[id] is one row or several.

    A table is read fastest where its rows are those of the matrix that the tiles lie in. Otherwise they are
    those along the last axis.
    """
    first, *others = mapping.shape
    longest, rows = mapping.matrix[0], first * math.prod(others[:-1])
    if longest % first == 0 and longest < rows:
        rows = longest
    return replace(mapping, shape=(rows, mapping.numel // rows))


def lies_in_rows(table: Mapping) -> bool:
    """Whether rows of a table are runs of the array, with signs that need no stream of random numbers."""
    hashed = table.element is Element.HASH and table.sign is not Sign.MT19937
    return hashed and not table.transposed and table.matrix == table.shape


def _read(module: GraphModule) -> dict[str, str]:
    """Names of the nodes that were replaced, and those of the nodes in their place."""
    renamed: dict[str, str] = {}
    for gather in list(module.graph.nodes):
        if gather.target is not torch.ops.roast.gather.default:
            continue
        _, fields, _ = gather.args
        picks = _picks(gather) if lies_in_rows(as_table(Mapping.from_list(list(fields)))) else []
        for node in [user for weight in _places(gather, picks) for user in weight.users]:
            if node.target is _ASSERTION:
                module.graph.erase_node(node)
        for pick in picks:
            rows = _rows(module.graph, gather, pick)
            renamed[pick.node.name] = rows.name
            pick.node.replace_all_uses_with(rows)
            module.graph.erase_node(pick.node)
            if pick.cast is not None and not pick.cast.users:
                module.graph.erase_node(pick.cast)
        if not gather.users:
            module.graph.erase_node(gather)
    if renamed:
        module.recompile()
    return renamed


def _places(gather: Node, picks: list[_Pick]) -> list[Node]:
    """The nodes that are the weight as rows of it are read."""
    return list(dict.fromkeys([gather, *(p.cast for p in picks if p.cast is not None)])) if picks else []


def _picks(gather: Node) -> list[_Pick]:
    """What reads the weight, if all of it are readings of rows."""
    found: list[_Pick | None] = []
    for user in _readers(gather):
        if user.target in _CASTS and user.args[0] is gather:
            found += [_pick(inner, user, user) for inner in _readers(user)]
        else:
            found.append(_pick(user, gather, None))
    picks = [pick for pick in found if pick is not None]
    return picks if len(picks) == len(found) else []


def _readers(node: Node) -> list[Node]:
    """What reads a value, without torch.export's assertions of its dtype."""
    return [user for user in node.users if user.target is not _ASSERTION]


def _pick(node: Node, weight: Node, cast: Node | None) -> _Pick | None:
    ids: Any = None
    if node.target is _ATEN.index.Tensor and node.args[0] is weight and len(node.args[1]) == 1:  # type: ignore[arg-type]
        ids = node.args[1][0]  # type: ignore[index]
    elif node.target is _ATEN.index_select.default and node.args[:2] == (weight, 0):
        ids = node.args[2]
    elif node.target is _ATEN.embedding.default and node.args[0] is weight:
        ids = node.args[1]
    value = ids.meta.get("val") if isinstance(ids, Node) else None
    # A mask of booleans, which uint8 is too, picks another number of rows in each run.
    if (
        not isinstance(value, Tensor)
        or value.dtype not in (torch.int64, torch.int32)
        or "val" not in node.meta
    ):
        return None
    return _Pick(node, ids, node.target is _ATEN.index.Tensor, cast)


def _rows(graph: Graph, gather: Node, pick: _Pick) -> Node:
    """The node that has what the reading has, before the same place."""
    memory, fields, scale = gather.args
    mapping = Mapping.from_list(list(fields))  # type: ignore[arg-type]
    table = as_table(mapping)
    first, *others = mapping.shape
    each = table.shape[0] // first
    # Where the new nodes come from is told by the reading, but for the weight's own.
    origin = {key: value for key, value in pick.node.meta.items() if key not in ("val", "from_node")}

    def node(target: Any, *args: Any, **kwargs: Any) -> Node:
        made = graph.call_function(target, args, kwargs)
        values = torch.fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with pick.ids.meta["val"].fake_mode:
            made.meta = {**origin, "val": target(*values[0], **values[1])}
        return made

    with graph.inserting_before(pick.node):
        ids = pick.ids
        if ids.meta["val"].dtype != torch.int64:
            ids = node(_ATEN.to.dtype, ids, torch.int64)
        if pick.from_end:
            below = node(_ATEN.lt.Scalar, ids, 0)
            ids = node(_ATEN.where.self, below, node(_ATEN.add.Tensor, ids, first), ids)
        if each > 1:
            begins = node(_ATEN.unsqueeze.default, node(_ATEN.mul.Tensor, ids, each), -1)
            inside = node(_ATEN.arange.default, each, dtype=torch.int64, device=torch.device("cpu"))
            ids = node(_ATEN.add.Tensor, begins, inside)
        rows = node(torch.ops.roast.embedding.default, memory, ids, table.to_list(), scale)
        if gather.meta.get("nn_module_stack"):
            rows.meta["nn_module_stack"] = gather.meta["nn_module_stack"]
        if rows.meta["val"].shape != pick.node.meta["val"].shape:
            lengths = [_length(graph, pick.ids, axis, node) for axis in range(pick.ids.meta["val"].dim())]
            rows = node(_ATEN.reshape.default, rows, [*lengths, *others])
        if pick.cast is not None:
            rows = node(_ATEN.to.dtype, rows, pick.node.meta["val"].dtype)
    return rows


def _length(graph: Graph, ids: Node, axis: int, node: Any) -> Any:
    """A length of the ids: a number, or the node that computes it."""
    length = ids.meta["val"].shape[axis]
    return length if isinstance(length, int) else node(_ATEN.sym_size.int, ids, axis)
