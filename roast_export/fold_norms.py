"""torch's exporter folds a BatchNorm into the dense layer before it, and keeps the names of the parameters.

What is stored then is no longer what the model has under that name, so it gets a name of its own: the proof
compares stored parameters by their names, bit by bit, and folded ones through outputs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch.export import ExportedProgram
from torch.fx import Node

SUFFIX = ".folded"


def name_folded(model: ir.Model, program: ExportedProgram) -> list[str]:
    """Rename parameters before a BatchNorm that are no longer the model's, in place; returns their names."""
    found = []
    for name in _before_norms(program):
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue
        stored = program.state_dict[name].detach().cpu().numpy()
        if not np.array_equal(value.const_value.numpy(), stored, equal_nan=True):
            del model.graph.initializers[name]
            value.name = name + SUFFIX
            model.graph.initializers[value.name] = value
            found.append(name)
    return found


def _before_norms(program: ExportedProgram) -> list[str]:
    """Parameters of the nodes whose result goes into a batch_norm."""
    stored = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    found: dict[str, None] = {}
    for node in program.graph.nodes:
        into = node.args[0] if "batch_norm" in str(node.target) and node.args else None
        if isinstance(into, Node):
            arguments = [arg.name for arg in into.args if isinstance(arg, Node)]
            found |= {stored[name]: None for name in arguments if name in stored}
    return list(found)
