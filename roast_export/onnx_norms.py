"""Batch normalisation by the statistics of the batch in ONNX.

torch.onnx writes the form for inference in its place, and hands the running statistics on as they came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def norms(standard: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations for torch.onnx. standard: the onnxscript opset of the file.

    The running variance takes the unbiased variance of the batch, the output the biased one; source:
    torch.nn.BatchNorm1d.
    """

    def number(value: float, like: Any) -> Any:
        return standard.CastLike(standard.Constant(value_float=value), like)

    def by_channel(value: Any, rank: int) -> Any:
        return standard.Unsqueeze(value, standard.Constant(value_ints=[0, *range(2, rank)]))

    def moved(running: Any, batch: Any, momentum: float) -> Any:
        kept = standard.Mul(running, number(1.0 - momentum, running))
        return standard.Add(kept, standard.Mul(batch, number(momentum, batch)))

    def functional(
        x: Any,
        weight: Any,
        bias: Any,
        running_mean: Any,
        running_var: Any,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Any:
        rank = len(x.shape)
        axes = standard.Constant(value_ints=[0, *range(2, rank)])
        if not training:
            mean, variance = by_channel(running_mean, rank), by_channel(running_var, rank)
        else:
            mean = standard.ReduceMean(x, axes, keepdims=1)
            centred = standard.Sub(x, mean)
            variance = standard.ReduceMean(standard.Mul(centred, centred), axes, keepdims=1)
        deviation = standard.Sqrt(standard.Add(variance, number(eps, variance)))
        found = standard.Div(standard.Sub(x, mean), deviation)
        if weight is not None:
            found = standard.Mul(found, by_channel(weight, rank))
        if bias is not None:
            found = standard.Add(found, by_channel(bias, rank))
        flat_mean, flat_variance = standard.Squeeze(mean, axes), standard.Squeeze(variance, axes)
        reciprocal = standard.Squeeze(standard.Reciprocal(deviation), axes)
        if not training:
            return found, flat_mean, reciprocal, running_mean, running_var
        channels = standard.Size(flat_mean)
        count = standard.CastLike(standard.Div(standard.Size(x), channels), flat_variance)
        unbiased = standard.Div(
            standard.Mul(flat_variance, count), standard.Sub(count, number(1.0, flat_variance))
        )
        return (
            found,
            flat_mean,
            reciprocal,
            moved(running_mean, flat_mean, momentum),
            moved(running_var, unbiased, momentum),
        )

    return {torch.ops.aten._native_batch_norm_legit_functional.default: functional}
