"""Models of an encoder and a decoder: one file encodes, others give the logits of the next tokens.

With a cache there are two decoders, as in optimum's files: `decoder_model` takes the first tokens and the
encoder's output, and `decoder_with_past_model` goes on from keys and values alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.huggingface.cached_model import (
    STEPS,
    KeysAndValues,
    as_cache,
    cache_argument,
    check_plain,
    named,
)
from roast_export.huggingface.task_model import given


class EncoderModel(nn.Module):
    """What the decoder looks at: one vector for each input token, patch or frame."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """int64[batch, encoded] or float32[batch, mels, frames] to float32[batch, encoded, dim]."""
        arguments = given(input_ids=input_ids, attention_mask=attention_mask, input_features=input_features)
        found = self.encoder(**arguments, return_dict=True)
        return {"last_hidden_state": found["last_hidden_state"]}


class DecoderModel(nn.Module):
    """Logits of the tokens after `input_ids`, which begin a text."""

    def __init__(self, model: nn.Module, *, keeps: bool = False) -> None:
        """keeps: the keys and values of the tokens, and those of the encoder's output, are outputs too."""
        super().__init__()
        self.model = model
        self.keeps = keeps

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """int64[batch, decoded], float32[batch, encoded, dim] and int64[batch, encoded] to logits.

        Logits are float32[batch, decoded, vocabulary].
        """
        if not self.keeps:
            return _decoded(self.model, input_ids, encoder_hidden_states, encoder_attention_mask)
        from transformers import DynamicCache, EncoderDecoderCache

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = _decoded(self.model, input_ids, encoder_hidden_states, encoder_attention_mask, cache)
        return logits | _own(cache) | named(cache.cross_attention_cache, "present.{layer}.encoder")


class NextDecoderModel(nn.Module):
    """Logits of tokens after others, whose keys and values are inputs and outputs."""

    def __init__(self, model: nn.Module, width: int) -> None:
        """width: elements of each vector that the encoder gives."""
        super().__init__()
        self.model = model
        self.width = width
        self.first: dict[str, Any] = {}
        """What a call after the first tokens gets, from which `roast_probes` goes on."""

    def roast_probes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Calls one after the other, each with the keys and values that the one before gave."""
        inputs = self.first
        for step in range(STEPS):
            yield f"step {step + 1} of a chain", inputs
            with torch.no_grad():
                found = self(**inputs)
            inputs = following(inputs, found)

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: KeysAndValues,
        encoder_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """int64[batch, new], keys and values, and int64[batch, encoded] to float32[batch, new, vocabulary].

        past_key_values: each layer's "decoder.key" and "decoder.value" float[batch, heads, past, head_dim],
            and "encoder.key" and "encoder.value" of length `encoded`.
        """
        from transformers import EncoderDecoderCache

        own, cross = (
            as_cache(
                [{what: layer[f"{of}.{what}"] for what in ("key", "value")} for layer in past_key_values]
            )
            for of in ("decoder", "encoder")
        )
        cache = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(range(len(past_key_values)), True)
        keys = past_key_values[0]["encoder.key"]
        # Layers take keys and values in the place of these, and look at their shape alone.
        states = keys.new_zeros(()).expand(keys.shape[0], keys.shape[2], self.width)
        logits = _decoded(self.model, input_ids, states, encoder_attention_mask, cache)
        return logits | _own(cache)


def _decoded(
    model: nn.Module, ids: Tensor, states: Tensor, mask: Tensor | None, cache: Any = None
) -> dict[str, Tensor]:
    """The logits; `cache` is brought up to date in place."""
    from transformers.modeling_outputs import BaseModelOutput

    # transformers broadcasts rows; then lengths would seem independent.
    torch._check(states.shape[0] == ids.shape[0])
    arguments: dict[str, Any] = given(attention_mask=mask)
    if cache is not None:
        arguments[cache_argument(model)] = cache
    found = model(
        decoder_input_ids=ids,
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        use_cache=cache is not None,
        return_dict=True,
        **arguments,
    )
    return {"logits": found["logits"]}


def _own(cache: Any) -> dict[str, Tensor]:
    return named(cache.self_attention_cache, "present.{layer}.decoder")


def following(inputs: dict[str, Any], found: dict[str, Tensor]) -> dict[str, Any]:
    """The inputs of the call for the most likely next token. inputs: of a call of either decoder."""
    count = sum(name.endswith(".decoder.key") for name in found)
    earlier = inputs.get("past_key_values", [{}] * count)
    made = {
        "input_ids": found["logits"][:, -1:].argmax(-1),
        "past_key_values": [
            earlier[k] | {what: found[name] for what in PAST if (name := f"present.{k}.{what}") in found}
            for k in range(count)
        ],
    }
    return made | given(encoder_attention_mask=inputs.get("encoder_attention_mask"))


PAST = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
"""What is kept of each layer: of the tokens so far, and of the encoder's output."""


def check_keeps(model: nn.Module, inputs: dict[str, Tensor], without: str) -> None:
    """Raises InputError if a decoder keeps other things than keys and values. without: the task for it."""
    from transformers import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad():
        _decoded(
            model,
            inputs["input_ids"],
            inputs["encoder_hidden_states"],
            inputs.get("encoder_attention_mask"),
            cache,
        )
    check_plain(model, cache.self_attention_cache.layers, without)
    check_plain(model, cache.cross_attention_cache.layers, without)
