"""What the array of a compressed model holds at first: weights approximated, or drawn anew."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from roast_export import torch_ops
from roast_export.mapping import UNUSED, Mapping, Sign

ROUNDS = 3
"""Alternating least squares over array and scales; each round after the first lowers the error by 0.01 %."""


def fresh(
    mappings: list[Mapping], targets: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    """A drawn array float32[n_memory], and scales that give each weight the RMS of its target."""
    overall = _overall_rms(targets)
    array = torch.randn(mappings[0].n_memory, generator=generator) * overall
    return array, [rms(target) / overall for target in targets]


def project(mappings: list[Mapping], targets: list[Tensor]) -> tuple[Tensor, list[float]]:
    """The array of `least_squares`, and scales that give each weight the RMS of its target.

    The nearest weight is smaller than its target, by the root of the ratio where all slots have as many
    readers: signals would die in a deep network (docs/design.md).
    """
    if _has_one_reader_each(mappings):
        return _exact(mappings, targets)
    array, scales = least_squares(mappings, targets)
    for k, (mapping, target) in enumerate(zip(mappings, targets, strict=True)):
        size = rms(torch_ops.gather(array, mapping.to_list(), 1.0))
        scales[k] = rms(target) / size if size else scales[k]
    return array, scales


def _has_one_reader_each(mappings: list[Mapping]) -> bool:
    """Whether no slot is read twice."""
    if sum(mapping.numel for mapping in mappings) > mappings[0].n_memory:
        return False
    total = torch.zeros(mappings[0].n_memory)
    for mapping in mappings:
        total += readers(mapping)
    return bool((total <= 1).all())


def _exact(mappings: list[Mapping], targets: list[Tensor]) -> tuple[Tensor, list[float]]:
    """An array that holds every target: scales that are powers of two change no bit of a normal float32."""
    array = torch.zeros(mappings[0].n_memory)
    scales = [power_of_two(rms(target)) for target in targets]
    for mapping, target, scale in zip(mappings, targets, scales, strict=True):
        array += torch_ops.gather_backward(target / scale, mapping.to_list(), 1.0)
    return array, scales


def power_of_two(size: float) -> float:
    """The power of two nearest to a size, in powers; float32 holds it as a normal number."""
    return 2.0 ** min(max(round(math.log2(size)), -100), 100)


def least_squares(mappings: list[Mapping], targets: list[Tensor]) -> tuple[Tensor, list[float]]:
    """min over array and scales of sum |target - scale * sign * array[index]|^2, alternating.

    Each target counts relative to its own RMS; otherwise a layer of large weights takes the array.
    """
    overall, sizes = _overall_rms(targets), [rms(target) for target in targets]
    targets = [target / size for target, size in zip(targets, sizes, strict=True)]
    scales = [1.0] * len(targets)
    counts = [readers(mapping) for mapping in mappings]
    array = torch.zeros(mappings[0].n_memory)
    for step in range(ROUNDS):
        sums, density = torch.zeros_like(array), torch.zeros_like(array)
        for mapping, target, scale, count in zip(mappings, targets, scales, counts, strict=True):
            sums += torch_ops.gather_backward(target, mapping.to_list(), scale)
            density += scale**2 * count
        array = sums / density.clamp(min=1e-30)
        if step == ROUNDS - 1 or not array.any():
            break
        for k, (mapping, target) in enumerate(zip(mappings, targets, strict=True)):
            unscaled = torch_ops.gather(array, mapping.to_list(), 1.0)
            energy = float(unscaled.square().sum())
            fit = float((unscaled * target).sum()) / energy if energy else 0.0
            scales[k] = fit if fit > 0 else scales[k]
    shrink = rms(array) / overall or 1.0
    return array / shrink, [scale * size * shrink for scale, size in zip(scales, sizes, strict=True)]


def readers(mapping: Mapping) -> Tensor:
    """How many weights read each slot: float32[n_memory]."""
    unsigned = replace(mapping, sign=Sign.NONE, sign_hash=UNUSED, sign_seed=0, sign_skip=0)
    ones = torch.ones(mapping.shape)
    return torch_ops.gather_backward(ones, unsigned.to_list(), 1.0)


def rms(tensor: Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
    return float(norm / tensor.numel() ** 0.5)


def _overall_rms(targets: list[Tensor]) -> float:
    total = sum(rms(target) ** 2 * target.numel() for target in targets)
    return float((total / sum(target.numel() for target in targets)) ** 0.5)
