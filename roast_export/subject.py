"""What a proof compares: the PyTorch model on one side, the exported file on the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from roast_export.artifact import Artifact
from roast_export.compare import Limits
from roast_export.program import Inputs, Program, VirtualLayer


@dataclass
class Subject:
    """What is compared with what."""

    model: nn.Module
    program: Program
    file: Artifact
    layers: list[VirtualLayer]
    inputs: Inputs
    limits: Limits | None = None
    """The bound on outputs that the user sets; without one it is measured (bounds.py)."""
    allow_unproved: bool = False
    """Whether a dynamic dimension that no case varies is told in the report, and no failure."""

    @property
    def virtual_elements(self) -> int:
        return sum(layer.mapping.numel for layer in self.layers)
