"""A virtual weight that only feeds a product becomes part of it: RoastLinear, RoastLinearBias.

Case 1: MatMul(x, Transpose(W)), W a RoastGather of shape (out, in)
Case 2: Gemm(x, W, bias), transB = 1, alpha = beta = 1, x of rank 2
Case 3: MatMul(x, W), or Gemm with transB = 0: the same with the mapping of the transposed weight
Case 4: as 1 to 3, where W is a Reshape of a RoastGather of more axes to (out, the others)
Each with the Add of a bias [out] behind it, if there is one.

A gather that something else reads stays for that reader. Everything else is left as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from roast_export import onnx_ops
from roast_export.mapping import Mapping


def fuse_linear(model: ir.Model) -> int:
    """Rewrite `model` in place, branches and loop bodies too; returns the number of products fused."""
    count = 0
    for node in list(model.graph.all_nodes()):
        weight = _weight_of(node)
        if weight is None:
            continue
        gather, mapping = weight
        bias, last = _bias_of(node, mapping.shape[0])
        operator = "RoastLinear" if bias is None else "RoastLinearBias"
        inputs = [node.inputs[0], gather.inputs[0], *([bias] if bias is not None else [])]
        scale = gather.attributes["scale"].as_float()
        fused = ir.node(
            operator,
            inputs,
            onnx_ops.attributes(mapping, scale, operator),
            domain=onnx_ops.DOMAIN,
            name=gather.name,
        )
        _take_over(fused, node, last)
        count += 1
    for graph in [model.graph, *model.graph.subgraphs()]:
        _remove_unused(graph)
    return count


def transposed(mapping: Mapping) -> Mapping | None:
    """The mapping of the transposed matrix; None where the view is not the matrix itself."""
    if len(mapping.shape) != 2 or mapping.matrix != mapping.shape:
        return None
    flipped = (mapping.shape[1], mapping.shape[0])
    return replace(mapping, shape=flipped, matrix=flipped, transposed=not mapping.transposed)


def _weight_of(node: ir.Node) -> tuple[ir.Node, Mapping] | None:
    """The gather behind a product, and the mapping of its weight as (out, in)."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or node.inputs[1] is None:
        return None
    across = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    if node.op_type == "Gemm" and not _is_plain_gemm(node):
        return None
    source = node.inputs[1].producer()
    if source is not None and source.op_type == "Transpose" and source.domain == "":
        if source.attributes.get_ints("perm", (1, 0)) != (1, 0):
            return None
        across = not across
        source = source.inputs[0].producer() if source.inputs[0] is not None else None
    flattened = source is not None and _flattens(source)
    if source is not None and flattened:
        source = source.inputs[0].producer() if source.inputs[0] is not None else None
    if source is None or (source.domain, source.op_type) != (onnx_ops.DOMAIN, "RoastGather"):
        return None
    mapping, _ = onnx_ops.mapping_of(ir.to_proto(source))
    if flattened:
        mapping = as_matrix(mapping)
    if len(mapping.shape) != 2:
        return None
    found = mapping if across else transposed(mapping)
    return (source, found) if found is not None else None


def _flattens(node: ir.Node) -> bool:
    """Whether a node makes a matrix of all axes of a tensor but the first."""
    before, after = node.inputs[0], node.outputs[0].shape
    if (node.domain, node.op_type) != ("", "Reshape") or before is None or before.shape is None:
        return False
    return after is not None and len(after) == 2 and after[0] == before.shape[0]


def as_matrix(mapping: Mapping) -> Mapping:
    """The same weight with all axes but the first as one."""
    return replace(mapping, shape=(mapping.shape[0], math.prod(mapping.shape[1:])))


def _is_plain_gemm(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    columns = node.outputs[0].shape
    return (
        (bias is None or (columns is not None and _is_vector(bias, columns[-1])))
        and node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
        and node.attributes.get_int("transA", 0) == 0
    )


def _bias_of(node: ir.Node, out_features: int) -> tuple[ir.Value | None, ir.Node]:
    """The bias, and the node whose result the fused one takes over."""
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2], node
    users = [user for user, _ in node.outputs[0].uses()]
    here = len(users) == 1 and users[0].graph is node.graph
    if here and users[0].op_type == "Add" and not node.outputs[0].is_graph_output():
        other = [value for value in users[0].inputs if value is not node.outputs[0]]
        if len(other) == 1 and other[0] is not None and _is_vector(other[0], out_features):
            return other[0], users[0]
    return None, node


def _is_vector(value: ir.Value, length: int | ir.SymbolicDim) -> bool:
    """A stored float vector: the bias of a layer, in a place known before the product runs."""
    tensor = value.const_value
    return tensor is not None and tuple(tensor.shape) == (length,) and tensor.dtype == ir.DataType.FLOAT


def _take_over(fused: ir.Node, product: ir.Node, last: ir.Node) -> None:
    graph = last.graph
    assert graph is not None
    assert product.graph is graph
    old, new = last.outputs[0], fused.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    graph.insert_before(last, fused)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(last, safe=True)
    if product is not last:
        graph.remove(product, safe=True)


def _remove_unused(graph: ir.Graph) -> None:
    """Gathers, transposes and reshapes that nothing reads any more."""
    for node in reversed(list(graph)):
        mine = (node.domain, node.op_type) in (
            (onnx_ops.DOMAIN, "RoastGather"),
            ("", "Transpose"),
            ("", "Reshape"),
        )
        if mine and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
