"""An exported ExecuTorch program as the proof sees it.

A .pte keeps no names of weights or inputs: what the traced model has stands for them, and weights are
compared through outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from roast_export import runtime_executorch, runtime_executorch_arm64
from roast_export.artifact import Artifact, Tell
from roast_export.report import Check
from roast_export.runtimes import Runtime
from roast_export.subject import Subject
from roast_export.to_executorch import LAYER_BYTES

MAGIC = b"ET12"
NATIVE = b"roast::"


@dataclass
class PteFile(Artifact):
    """See Artifact."""

    @property
    def code_limit(self) -> int:
        return (LAYER_BYTES[self.portable] - LAYER_BYTES[False]) * len(self.layers)

    def runtimes(self) -> list[Runtime]:
        known = [*runtime_executorch.runtimes(), *runtime_executorch_arm64.runtimes()]
        return [runtime for runtime in known if runtime.native != self.portable]

    def structure_checks(self, subject: Subject) -> Iterator[Check]:
        # to_executorch.py has looked for expanded weights; the size gate does too.
        return iter(())

    def parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        return iter(())

    def weight_checks(self, subject: Subject, usable: list[Runtime], tell: Tell) -> Iterator[Check]:
        return iter(())


def open_pte(path: Path) -> PteFile:
    """The file at `path`."""
    return PteFile(
        path=path,
        target="executorch",
        layers=[],
        inputs={},
        outputs=[],
        array_bytes=0,
        portable=NATIVE not in path.read_bytes(),
        names_weights=False,
        warnings=["a .pte has no names: weights are compared through outputs"],
    )
