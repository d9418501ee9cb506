"""The states in which a model is traced and run: in evaluation mode, and with torch quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import transformer


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and back in the modes it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's export chatter off the screen; what matters comes as an exception."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "torch.export", "torch.onnx")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of nn.TransformerEncoder is one opaque operator that nothing can export.
    torch.backends.mha.set_fastpath_enabled(False)
    detect = transformer._detect_is_causal_mask
    # nn.Transformer compares a mask's values with a causal one, which no trace can follow, to choose a faster
    # kernel. A mask that is not called causal is applied as it is.
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        transformer._detect_is_causal_mask = detect
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def checked_lengths() -> Iterator[None]:
    """Attention that refuses keys and values of different lengths.

    torch's fused kernel for the CPU does not compare them, and reads past the end of the shorter one.
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield
