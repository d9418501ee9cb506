"""The states in which a model is traced and run: in evaluation mode, and with torch quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
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
        logging.getLogger(name).setLevel(logging.CRITICAL)
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


EXPERTS = "batched_mm"
"""Of transformers' mixtures of experts: the one form that has no operators of its own and no loop.

It reads the weights of the experts that each token takes, which read_rows.py then expands alone.
"""


@contextmanager
def traceable_experts(model: nn.Module) -> Iterator[None]:
    """Mixtures of experts of transformers in torch's own operators, and back in the form that they had."""
    changed = []
    for module in model.modules():
        if not hasattr(module, "set_experts_implementation"):
            continue
        form = module.config._experts_implementation  # type: ignore[union-attr]
        if form in ("eager", "grouped_mm") and module._can_set_experts_implementation():  # type: ignore[operator]
            module.set_experts_implementation(EXPERTS)  # type: ignore[operator]
            changed.append((module, form))
    try:
        yield
    finally:
        for module, form in reversed(changed):
            module.set_experts_implementation(form)


@contextmanager
def checked_lengths(program: Any) -> Iterator[None]:
    """Kernels that refuse lengths which do not fit, while a program or its module runs at other lengths.

    torch's fused attention for the CPU does not compare the lengths of keys and values, and oneDNN's LSTM
    does not compare the width of its input with its weights: both read past the end of the shorter one.
    """
    with warnings.catch_warnings():
        # flags sets all settings of oneDNN, also those that this machine does not have.
        warnings.simplefilter("ignore")
        off = torch.backends.mkldnn.flags(enabled=False) if _has_lstm(program) else nullcontext()
        with off, sdpa_kernel(SDPBackend.MATH):
            yield


def _has_lstm(program: Any) -> bool:
    return isinstance(program, ExportedProgram) and any(
        node.target is torch.ops.aten.lstm.input for node in program.graph.nodes
    )
