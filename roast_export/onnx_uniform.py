"""Tensors of one value are stored as that value.

torch.onnx folds what a model computes from lengths alone, and so stores the zeros that nn.LSTM starts from at
the example's batch. The larger the batch, the larger the file.

Case 1: an initializer that is neither a parameter nor a constant of the model
Case 2: a Constant
Each of more than SMALL bytes, with equal bits everywhere: ConstantOfShape takes its place.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

SMALL = 256
"""Bytes that stay as they are: what takes their place is no smaller."""


def spread_uniform(model: ir.Model, stored: Collection[str]) -> int:
    """Rewrite `model` in place; returns the number of tensors replaced.

    stored: names of the model's own tensors, which stay.
    """
    count = 0
    for graph in [model.graph, *model.graph.subgraphs()]:
        for value in list(graph.initializers.values()):
            if value.name not in stored and not value.is_graph_output() and _is_uniform(value.const_value):
                _replace(graph, value)
                del graph.initializers[str(value.name)]
                count += 1
        for node in list(graph):
            if (node.domain, node.op_type) == ("", "Constant") and "value" in node.attributes:
                value = node.outputs[0]
                if not value.is_graph_output() and _is_uniform(node.attributes["value"].as_tensor()):
                    value.const_value = node.attributes["value"].as_tensor()
                    _replace(graph, value)
                    graph.remove(node, safe=True)
                    count += 1
    return count


def _is_uniform(tensor: ir.TensorProtocol | None) -> bool:
    if tensor is None or tensor.nbytes <= SMALL or tensor.dtype == ir.DataType.STRING:
        return False
    values = tensor.numpy().reshape(-1)
    return values.tobytes() == np.broadcast_to(values[:1], values.shape).tobytes()


def _replace(graph: ir.Graph, value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    shape = ir.node("Constant", [], {"value_ints": list(tensor.numpy().shape)})
    first = tensor.numpy().reshape(-1)[:1]
    spread = ir.node("ConstantOfShape", [shape.outputs[0]], {"value": ir.tensor(first, dtype=tensor.dtype)})
    shape.outputs[0].name, spread.outputs[0].name = f"{value.name}_shape", f"{value.name}_spread"
    spread.outputs[0].shape, spread.outputs[0].type = value.shape, value.type
    graph.insert_before(graph[0], [shape, spread])
    ir.convenience.replace_all_uses_with(value, spread.outputs[0])
