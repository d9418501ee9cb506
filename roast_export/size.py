"""The size gate: how many bytes a file may take beside its arrays and its parameters.

Tensors are bounded apart from the graph. A graph of many nodes takes many bytes, and a model at a high ratio
has few others; were there one limit for both, a dense weight could hide in what the nodes are given.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from torch.export import ExportedProgram

from roast_export.onnx_ops import graphs_of, nodes_of
from roast_export.program import Program
from roast_export.subgraphs import parts_of

SLACK = 1.02
TENSOR_BYTES = 16 * 1024
"""Tensors: SLACK * stored + TENSOR_BYTES."""

GRAPH_BYTES = 64 * 1024
LAYER_BYTES = 1024
NODE_BYTES = 512
"""The rest: GRAPH_BYTES + LAYER_BYTES for each layer + NODE_BYTES for each node of the traced graph."""

SMALL_TENSOR = 256
"""Bytes up to which a tensor is part of the graph, as shapes, axes and scalars are."""

RULE = "tensors: 1.02 * (arrays + kept) + 16 KiB; the rest: 64 KiB + 1 KiB per layer + 512 B per node"


@dataclass(frozen=True)
class Limits:
    """The largest number of bytes of both kinds."""

    tensors: int
    graph: int

    def complaint(self, file_bytes: int, tensor_bytes: int | None) -> str:
        """What is too large, or "". tensor_bytes: None where a format does not tell the two apart."""
        if tensor_bytes is None:
            total = self.tensors + self.graph
            return f"has {file_bytes} bytes, more than {total}" if file_bytes > total else ""
        if tensor_bytes > self.tensors:
            return f"has {tensor_bytes} bytes of tensors, more than {self.tensors}"
        graph = file_bytes - tensor_bytes
        return f"has {graph} bytes beside its tensors, more than {self.graph}" if graph > self.graph else ""


def limits(stored: int, layers: int, nodes: int, code: int = 0) -> Limits:
    """The limits of a file with `stored` bytes of arrays and parameters. code: see Artifact.code_limit."""
    return Limits(
        int(SLACK * stored + TENSOR_BYTES), GRAPH_BYTES + LAYER_BYTES * layers + NODE_BYTES * nodes + code
    )


def nodes_of_program(program: Program) -> int:
    """Operators of a traced graph and of the graphs inside it; 0 of a model that has no trace."""
    if not isinstance(program, ExportedProgram):
        return 0
    nodes = (node for part in parts_of(program) for node in part.module.graph.nodes)
    return sum(node.op == "call_function" for node in nodes)


def onnx_tensor_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of the tensors of a graph, whether they are initializers, constants or long lists."""
    graphs = list(graphs_of(proto.graph))
    stored = [_bytes(tensor) for graph in graphs for tensor in graph.initializer]
    stored += [tensor.ByteSize() for graph in graphs for tensor in graph.sparse_initializer]
    inner = (node for function in proto.functions for node in function.node)
    for node in [*nodes_of(proto.graph), *inner]:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                stored.append(_bytes(attribute.t))
            elif attribute.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                stored.append(attribute.ByteSize())
    return sum(size for size in stored if size > SMALL_TENSOR)


def _bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) or tensor.ByteSize()
