"""Ports of HashedNets and other hash embeddings whose hash the mapping does not have.

HashLinear hashes text ("row_column" with xxHash): its indices exist as a table only, which the state
dict does not hold. It can be kept dense, from a live or pickled module. The others are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from roast_export.import_report import ImportedLayer
from roast_export.importing import Converted, Surroundings, alternatives, float32, refusal

REASONS = {
    "RobeEmbedding": "its hash multiplies and shifts (hash_coeffs), which the mapping does not have",
    "HashNetEmbedding": "its hash multiplies and shifts (hash_coeffs), which the mapping does not have",
    "SharedWeight": "its weight is the sum of two maps, which this version does not have",
}


def matches(module: nn.Module) -> bool:
    """Whether this is a HashedNets port or one of the embeddings known to be out of reach."""
    return _format(module) is not None


def elements(module: Any) -> int:
    return 0


def convert(module: Any, around: Surroundings) -> Converted:
    """A dense layer if that was asked for, else a refusal with the costs.

    Raises:
        LoadError: the index table is missing.
    """
    found = _format(module)
    if found != "HashLinear":
        return refusal(around, module, _shape(module), REASONS[str(found)])
    memory = float32(around, module.h_weight, "h_weight", 1)
    index = getattr(module, "idxW", None)
    if not isinstance(index, Tensor):
        raise around.refuse(
            "its index table idxW is an attribute, not in a state dict; load the pickled module"
        )
    sign = getattr(module, "xiW", None)
    shape = tuple(index.shape)
    size = index.nbytes + (0 if sign is None else sign.nbytes)
    reason = "its indices come from xxHash of text: a table without a formula"
    if not (around.keep_dense or around.facts.dense):
        cost = alternatives(shape, memory.numel(), signs=sign is not None)
        return refusal(around, module, shape, f"{reason}; {cost}", size)
    with torch.no_grad():
        weight = memory[index] if sign is None else memory[index] * sign
        bias = _bias(module)
    made = nn.Linear(shape[1], shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    layer = ImportedLayer(around.name, "HashLinear", shape, "dense", reason, table_bytes=size)
    return Converted(layer, made.train(module.training))


def names_in_state(keys: set[str]) -> list[str]:
    """Names of the HashLinear layers of a state dict."""
    return [key.removesuffix("h_weight").rstrip(".") for key in keys if key.split(".")[-1] == "h_weight"]


def keys_of(name: str, keys: set[str]) -> set[str]:
    """Entries of a state dict that belong to one layer."""
    prefix = f"{name}." if name else ""
    return keys & {f"{prefix}{key}" for key in ("h_weight", "h_bias", "xiW", "xiB")}


def stand_in(name: str, tensors: dict[str, Tensor], dense: nn.Module, around: Surroundings) -> nn.Module:
    """Raises LoadError: the state dict lacks the index table."""
    raise around.refuse("its index table idxW is an attribute, not in a state dict; load the pickled module")


def _format(module: nn.Module) -> str | None:
    name = type(module).__name__
    if name == "HashLinear" and isinstance(getattr(module, "h_weight", None), Tensor):
        return name
    if name in ("RobeEmbedding", "HashNetEmbedding") and isinstance(getattr(module, "table", None), Tensor):
        return name
    if name in ("HashLinear", "HashConv2d") and isinstance(getattr(module, "shared_weight", None), Tensor):
        return "SharedWeight"
    return None


def _shape(module: Any) -> tuple[int, ...]:
    found = getattr(module, "weight_shape", None)
    table = getattr(module, "table", None)
    return tuple(found) if found else tuple(table.shape) if isinstance(table, Tensor) else ()


def _bias(module: Any) -> Tensor | None:
    stored = getattr(module, "h_bias", None)
    if not isinstance(stored, Tensor):
        return None
    index, sign = getattr(module, "idxB", None), getattr(module, "xiB", None)
    bias = stored.detach() if index is None else stored.detach()[index]
    return bias * sign if isinstance(sign, Tensor) and index is not None else bias
