"""Dtypes that ONNX can say and ONNX Runtime cannot compute with."""

from __future__ import annotations

import onnx_ir as ir
from torch import Tensor
from torch.export import ExportedProgram

from roast_export.errors import ExportError

MOVES = {
    "Cast", "Concat", "Constant", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that onnxruntime's CPU provider has for bfloat16: they move values and compute none."""


def refuse_bfloat16(model: ir.Model) -> None:
    """onnxruntime has no arithmetic in bfloat16 on a CPU: say so before a session does, with a way out.

    Raises:
        ExportError: a node of the main graph computes a bfloat16 value.
    """
    for node in model.graph:
        narrow = any(value.dtype == ir.DataType.BFLOAT16 for value in node.outputs)
        if narrow and node.domain == "" and node.op_type not in MOVES:
            raise ExportError(
                f"this model computes {node.op_type} in bfloat16, and ONNX Runtime does not on a CPU; export "
                "or save model.float() instead, whose virtual weights are the same without the last rounding"
            )


def refuse_complex_inputs(program: ExportedProgram) -> None:
    """ONNX has no complex numbers.

    Raises:
        ExportError: an input is complex.
    """
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in inputs and isinstance(value, Tensor) and value.is_complex():
            raise ExportError(
                f"the input {node.name!r} is complex, and ONNX has no complex numbers; let the model take "
                "its real and imaginary parts as two inputs (torch.complex joins them), or use --to pt2"
            )
