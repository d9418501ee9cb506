"""A live module in, TorchScript of its source out: for models whose control flow nothing can trace.

| layer | becomes |
|---|---|
| RoastLinear, RoastConv1d, RoastConv2d, RoastEmbedding | a layer of the same forward over a ScriptWeight |
| any other module with virtual weights | refused by name |
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from roast_export import modules
from roast_export.errors import ExportError
from roast_export.modules import VirtualWeight
from roast_export.script_weights import PortableScriptWeight, ScriptWeight


class ScriptLinear(nn.Module):
    """RoastLinear: float32[..., in] to float32[..., out]."""

    def __init__(self, weight: nn.Module, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.virtual = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.virtual.linear(x, self.bias)  # type: ignore[operator]
        return result


class ScriptEmbedding(nn.Module):
    """RoastEmbedding: int64[...] to float32[..., dim]. padding_idx: -1 for none."""

    def __init__(self, weight: nn.Module, padding_idx: int | None) -> None:
        super().__init__()
        self.virtual = weight
        self.padding_idx = -1 if padding_idx is None else padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.virtual.rows(ids)  # type: ignore[operator]
        if self.padding_idx >= 0:
            rows = rows.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
        return rows


class ScriptConv1d(nn.Conv1d):
    """RoastConv1d; options as nn.Conv1d."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name, which users pass
        result: Tensor = self._conv_forward(input, self.virtual(input), self.bias)  # type: ignore[operator]
        return result


class ScriptConv2d(nn.Conv2d):
    """RoastConv2d; options as nn.Conv2d."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name, which users pass
        result: Tensor = self._conv_forward(input, self.virtual(input), self.bias)  # type: ignore[operator]
        return result


def script_model(model: nn.Module, *, portable: bool) -> torch.jit.ScriptModule:
    """The model as TorchScript compiles it from its source. The model itself stays as it is.

    Raises:
        ExportError: a virtual layer has no TorchScript form, or the source is not TorchScript.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, modules._Virtual):
            replacement = _replacement(path, module, portable)
            if not path:
                model = replacement
                continue
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, replacement)
    # A class of its own, because the compiled one is about to get a method.
    model.__class__ = type(type(model).__name__, (type(model),), {})
    try:
        # Layers that were put in place are new, and a new module is in training mode.
        return torch.jit.script(model.eval())
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ExportError(f"this model can be neither traced nor scripted: {' '.join(lines[:3])}") from error


def _replacement(path: str, module: modules._Virtual, portable: bool) -> nn.Module:
    form = PortableScriptWeight if portable else ScriptWeight

    def scripted(weight: VirtualWeight) -> nn.Module:
        return form(weight.memory, weight.mapping, weight.scale)

    if isinstance(module, modules.RoastLinear):
        return ScriptLinear(scripted(module.virtual["weight"]), module.bias)
    if isinstance(module, modules.RoastEmbedding):
        return ScriptEmbedding(scripted(module.virtual["weight"]), module.padding_idx)
    for virtual, plain in ((modules.RoastConv1d, ScriptConv1d), (modules.RoastConv2d, ScriptConv2d)):
        if isinstance(module, virtual):
            conv: nn.Module = plain.__new__(plain)
            conv.__dict__.update({k: copy.copy(v) for k, v in module.__dict__.items() if k[:5] != "_seen"})
            conv.virtual = scripted(module.virtual["weight"])
            return conv
    raise ExportError(
        f"{path or 'the model'} is a {type(module).__name__} in a model that torch.export cannot trace; "
        "move its control flow into torch.cond, or exclude the layer from compression"
    )
