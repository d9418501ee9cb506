"""One-node ONNX models of the ai.roast operators, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from roast_export.mapping import Mapping

DOMAIN = "ai.roast"
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.uint8): TensorProto.UINT8,
}


def attributes(mapping: Mapping, scale: float = 1.0, drawn: bool = False) -> dict[str, Any]:
    """The attributes of docs/operators.md."""
    values: dict[str, Any] = {
        "shape": list(mapping.shape),
        "view": list(mapping.view),
        "perm": [1, 3, 0, 2] if mapping.transposed else [0, 2, 1, 3],
        "tile": list(mapping.tile),
        "origin": list(mapping.origin),
        "hash1": mapping.hash1.to_list(),
        "hash2": mapping.hash2.to_list(),
        "sign_hash": mapping.sign_hash.to_list(),
        "range": mapping.range,
        "align": mapping.align,
        "n_memory": mapping.n_memory,
        "unit": 1,
        "scale": float(scale),
    }
    if drawn:
        values.update(
            element=int(mapping.element),
            seed=mapping.seed,
            sign=int(mapping.sign),
            sign_seed=mapping.sign_seed,
            sign_skip=mapping.sign_skip,
        )
    return values


def one_node(
    op: str,
    values: dict[str, Any],
    arrays: dict[str, np.ndarray],
    as_inputs: tuple[str, ...] = (),
    rank: int | None = None,
) -> bytes:
    """A model whose one node `op` reads `arrays` in their order and writes W.

    Arrays named in `as_inputs` become graph inputs of any shape, the others initializers.
    Attributes are written as they are, so that a test can write wrong ones; rank is that of W.
    """
    node = helper.make_node(op, list(arrays), ["W"], name="fc1.weight", domain=DOMAIN)
    for name, value in values.items():
        # An empty list does not show its type.
        kind = onnx.AttributeProto.INTS if value == [] else None
        node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
    rank = len(values.get("shape", [1])) if rank is None else rank
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(name, _TYPES[arrays[name].dtype], [None] * arrays[name].ndim)
            for name in as_inputs
        ],
        [helper.make_tensor_value_info("W", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(a, name) for name, a in arrays.items() if name not in as_inputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()
