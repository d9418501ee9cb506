"""Decoders with a cache: keys and values of earlier tokens are tensors that go in and come out.

One file serves the first call, with no earlier tokens, and every later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.errors import InputError
from roast_export.huggingface.task_model import given, parameters_of

STEPS = 3
"""Calls of the chain that a proof runs, after the first."""

KeysAndValues = list[dict[str, Tensor]]
"""For each layer "key" and "value": float[batch, heads, length, head_dim]."""


class CachedModel(nn.Module):
    """A causal language model whose keys and values are inputs and outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.prompt: dict[str, Tensor] = {}
        """A first call without past_key_values, from which `roast_probes` goes on."""

    def roast_probes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Calls one after the other, each with the caches of the one before; and one earlier token alone."""
        inputs = {**self.prompt, "past_key_values": empty_cache(self.model, self.prompt, 0)}
        yield "no earlier tokens", inputs
        for step in range(STEPS):
            inputs = self._next(inputs)
            yield f"step {step + 1} of a chain", inputs
        first = {name: value[:1, -1:] for name, value in self.prompt.items()}
        yield "one token, no earlier ones", {**first, "past_key_values": empty_cache(self.model, first, 0)}
        yield "one earlier token", self._next({**first, "past_key_values": empty_cache(self.model, first, 0)})

    def _next(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The call for the most likely next token."""
        with torch.no_grad():
            found = self(**inputs)
        layers = [
            {what: found[f"present.{k}.{what}"] for what in ("key", "value")}
            for k in range(len(inputs["past_key_values"]))
        ]
        ids, mask = found["logits"][:, -1:].argmax(-1), inputs["attention_mask"]
        made = {
            "input_ids": ids,
            "attention_mask": torch.cat([mask, torch.ones_like(ids)], 1),
            "past_key_values": layers,
        }
        if "position_ids" in inputs:
            made["position_ids"] = inputs["position_ids"][:, -1:] + 1
        return made

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        past_key_values: KeysAndValues,
    ) -> dict[str, Tensor]:
        """Ids int64[batch, new], mask int64[batch, past + new] to logits float32[batch, new, vocabulary]."""
        past = past_key_values[0]["key"].shape[2]
        # transformers takes longer masks and broadcasts rows; then lengths would seem independent.
        torch._check(attention_mask.shape[0] == input_ids.shape[0])
        torch._check(attention_mask.shape[1] == past + input_ids.shape[1])
        arguments = given(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        layers = as_cache(past_key_values)
        arguments[cache_argument(self.model)] = layers
        found = self.model(**arguments, use_cache=True, return_dict=True)
        # The layers are updated in place, whatever the model's output calls them.
        return {"logits": found["logits"], **named(layers, "present.{layer}")}


def cache_argument(model: nn.Module) -> str:
    """The name of the argument: `cache` since transformers 5.20 or so, `past_key_values` before."""
    return "cache" if "cache" in parameters_of(model) else "past_key_values"


def as_cache(layers: KeysAndValues) -> Any:
    """What transformers calls a cache, over tensors of any length, 0 included."""
    from transformers import DynamicCache

    made = DynamicCache()
    made.layers = [_layer_class()() for _ in layers]
    for layer, tensors in zip(made.layers, layers, strict=True):
        layer.keys, layer.values = tensors["key"], tensors["value"]
        layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
        layer.is_initialized = True
    return made


@cache
def _layer_class() -> Any:
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[misc]
        def get_seq_length(self) -> int:
            """Without a question whether there are elements, which a trace would answer for ever."""
            return self.keys.shape[-2]  # type: ignore[no-any-return]

    return Layer


def named(layers: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors of a cache by the names of optimum."""
    return {
        f"{prefix.format(layer=k)}.{what}": tensor
        for k, layer in enumerate(layers.layers)
        for what, tensor in (("key", layer.keys), ("value", layer.values))
    }


def empty_cache(model: nn.Module, inputs: dict[str, Tensor], length: int) -> KeysAndValues:
    """Keys and values as this model makes them, drawn at random: `length` of them.

    Raises:
        InputError: the model keeps something else of earlier tokens.
    """
    with torch.no_grad():
        found = model(**inputs, use_cache=True, return_dict=True)
    layers: Any = getattr(found.get("cache", found.get("past_key_values")), "layers", None)
    check_plain(model, layers, "text-generation")
    generator = torch.Generator().manual_seed(length)

    def drawn(like: Tensor) -> Tensor:
        batch, heads, _, dim = like.shape
        return torch.randn(batch, heads, length, dim, generator=generator).to(like.dtype)

    return [{"key": drawn(layer.keys), "value": drawn(layer.values)} for layer in layers]


def check_plain(model: nn.Module, layers: Any, without: str) -> None:
    """Raises InputError if a cache holds other things than keys and values. without: the task for it."""
    if not layers or not all(_is_plain(layer) for layer in layers):
        raise InputError(
            f"{type(model).__name__} does not keep keys and values of earlier tokens alone; export it "
            f"without the cache: --task {without}"
        )


def _is_plain(layer: Any) -> bool:
    return isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.dim() == 4
