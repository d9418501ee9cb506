"""In a traced graph, a virtual weight that only feeds aten.linear becomes roast::linear.

Case 1: linear(x, gather(array), bias), W two-dimensional.
A gather that something else reads stays for that reader. fuse.py does the same, and products written
otherwise, in ONNX.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from roast_export.subgraphs import parts_of


def fuse_program(program: ExportedProgram) -> int:
    """Rewrite `program` in place, its inner graphs too; returns the number of products that were fused."""
    count = sum(_fuse(part.module) for part in parts_of(program))
    if count:
        for spec in program.graph_signature.output_specs:
            spec.arg.name = _renamed(program, spec.arg.name)
    return count


def _fuse(module: GraphModule) -> int:
    graph, count = module.graph, 0
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.linear.default or node.kwargs:
            continue
        x, weight, bias = (*node.args, None)[:3]
        if weight.target is not torch.ops.roast.gather.default or weight.meta["val"].dim() != 2:
            continue
        memory, mapping, scale = weight.args
        with graph.inserting_before(node):
            fused = graph.call_function(
                torch.ops.roast.linear.default, (x, memory, bias, mapping, scale), name=f"{node.name}_roast"
            )
        # The layer's name comes from where the weight was read; "from_node" would tell of the old node.
        fused.meta = {key: value for key, value in node.meta.items() if key != "from_node"}
        fused.meta["nn_module_stack"] = weight.meta.get("nn_module_stack")
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        if not weight.users:
            graph.erase_node(weight)
        count += 1
    if count:
        module.recompile()
    return count


def _renamed(program: ExportedProgram, name: str) -> str:
    """An output of the graph by its present name."""
    names = {node.name for node in program.graph.nodes}
    return name if name in names else f"{name}_roast"
