"""What a proof compares: the PyTorch model on one side, the exported file on the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn
from torch.export import ExportedProgram

from roast_export import onnx_ops
from roast_export.errors import RoastError
from roast_export.program import Inputs, VirtualLayer


@dataclass
class Subject:
    """What is compared with what."""

    model: nn.Module
    program: ExportedProgram
    path: Path
    proto: onnx.ModelProto
    layers: list[VirtualLayer]
    inputs: Inputs
    atol: float
    rtol: float

    @property
    def virtual_elements(self) -> int:
        return sum(layer.mapping.numel for layer in self.layers)

    @property
    def materialized(self) -> bool:
        return any(p.key == "roast.weights" and p.value == "materialized" for p in self.proto.metadata_props)


def read(path: Path) -> onnx.ModelProto:
    """The model at `path`. Raises RoastError if it is none."""
    try:
        proto = onnx.load(path, load_external_data=True)
    except FileNotFoundError:
        raise RoastError(f"{path} does not exist") from None
    except Exception as error:
        raise RoastError(f"{path} is not an ONNX model: {str(error).splitlines()[0]}") from error
    if not any(node.domain == onnx_ops.DOMAIN for node in proto.graph.node):
        raise RoastError(
            f"{path} has no node of the domain {onnx_ops.DOMAIN}; it was not written by roast-export"
        )
    return proto


def roast_nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.domain == onnx_ops.DOMAIN]
