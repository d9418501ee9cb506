"""Modules that only pass their calls on to one module inside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile."""
    while True:
        if isinstance(model, PARALLEL):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


@contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """The model inside wrappers, without those of torch.compile around its parts; as it was afterwards.

    The other wrappers of parts stay: code of the model may go through their attribute `module`.
    """
    inner = unwrapped(model)
    changed: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []
    for module in list(inner.modules()):
        for name, part in module._modules.items():
            if isinstance(part, torch._dynamo.OptimizedModule):
                changed.append((module._modules, name, part))
    for modules, name, part in changed:
        modules[name] = unwrapped(part)
    try:
        yield inner
    finally:
        for modules, name, part in changed:
            modules[name] = part
