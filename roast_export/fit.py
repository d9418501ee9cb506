"""How near compress() came to the dense weights, for as long as the arrays are as it made them."""

from __future__ import annotations

import statistics
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.modules import Fit, VirtualWeight, virtual_weights
from roast_export.projection import rms

LARGE_ERROR = 0.3
"""Relative error of the median weight beyond which a model is no longer what it was (docs/design.md)."""


def measured(weights: list[VirtualWeight], targets: list[Tensor]) -> list[VirtualWeight]:
    """The same weights, over one array, with what they miss of their targets noted on them."""
    checksum = _checksum(weights[0].memory)
    for weight, target in zip(weights, targets, strict=True):
        missed = weight().detach().to(target) - target
        weight.fit = Fit(rms(missed) / rms(target), checksum)
    return weights


def relative_errors(model: nn.Module) -> dict[str, float]:
    """|W - target| / |target| of each virtual weight that compress() approximated, by parameter name.

    A weight whose array has changed since, as training does, is left out. Tied names are all there.
    """
    stored: dict[str, float] | None = getattr(model, "roast_errors", None)
    if stored is not None:
        return dict(stored)
    checksums: dict[int, int] = {}
    found: dict[str, float] = {}
    for name, weight in virtual_weights(model).items():
        if weight.fit is None:
            continue
        key = id(weight.memory)
        if key not in checksums:
            checksums[key] = _checksum(weight.memory)
        if checksums[key] == weight.fit.array:
            found[name] = weight.fit.error
    return found


def advice(errors: dict[str, float]) -> str | None:
    """What to do next with a model of such errors, in one sentence; None where they are small."""
    if not errors or statistics.median(errors.values()) <= LARGE_ERROR:
        return None
    beyond = sum(error > LARGE_ERROR for error in errors.values())
    median = statistics.median(errors.values())
    return (
        f"{beyond} of {len(errors)} virtual weights differ from the dense ones by more than {LARGE_ERROR} "
        f"of their size (relative error, median {median:.2f}): fine-tune this model, or distil the dense "
        "model into it, before you ship it"
    )


def _checksum(memory: Tensor) -> int:
    values: Any = memory.detach().cpu().contiguous().view(torch.uint8).numpy()
    return zlib.crc32(values)
