"""Keep torch.onnx's optimiser from taking small numbers for 0, and numbers near 1 for 1.

onnxscript's rewrite rules compare a constant of the model with the one in their pattern within 1e-8, and so
turn `variance + 1e-8` into `variance`. Here a constant counts as equal only if float32 cannot tell it apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnxscript import rewriter

RELATIVE = 2.0**-26
"""A quarter of float32's rounding unit at 1: numbers this close are one float32."""


def exact_rewrites() -> None:
    """Set the tolerances of all default rewrite rules, once and for the process."""
    for pattern in _constants(getattr(rewriter, "_DEFAULT_REWRITE_RULES", ())):
        pattern._rel_tol, pattern._abs_tol = RELATIVE, 0.0


def _constants(rules: Any) -> Iterator[Any]:
    for rule in rules:
        for node in getattr(rule, "_target_pattern", ()):
            for value in node.inputs:
                if hasattr(value, "_abs_tol"):
                    yield value
