"""Causal language models of transformers, small and from their configurations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architecture import ALL_FORMS, Arguments, Draw, architecture
from tests.zoo.encoders import WORDS, make, sentences

SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in SMALL.items() if k != key}


def prompt(draw: Draw, batch: int, length: int) -> Arguments:
    return {"input_ids": draw.ids(WORDS, batch, length, first=5)}


@architecture("gpt2", sentences, forms=ALL_FORMS)
def gpt2() -> nn.Module:
    """With its cache, as from_pretrained gives it."""
    return make(
        "GPT2Config", "GPT2LMHeadModel", vocab_size=WORDS, n_embd=48, n_layer=2, n_head=4, n_positions=64
    )


@architecture("gpt_neox", sentences)
def gpt_neox() -> nn.Module:
    return make("GPTNeoXConfig", "GPTNeoXForCausalLM", **without("num_key_value_heads"), use_cache=False)


@architecture("gpt_neo", sentences)
def gpt_neo() -> nn.Module:
    return make(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        vocab_size=WORDS,
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        max_position_embeddings=64,
        use_cache=False,
    )


@architecture("opt", sentences, forms=ALL_FORMS)
def opt() -> nn.Module:
    return make(
        "OPTConfig",
        "OPTForCausalLM",
        vocab_size=WORDS,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        word_embed_proj_dim=48,
        max_position_embeddings=64,
        use_cache=False,
    )


@architecture("bloom", sentences)
def bloom() -> nn.Module:
    return make(
        "BloomConfig",
        "BloomForCausalLM",
        vocab_size=WORDS,
        hidden_size=48,
        n_layer=2,
        n_head=4,
        use_cache=False,
    )


@architecture("llama", prompt, forms=ALL_FORMS)
def llama() -> nn.Module:
    """Called with ids alone, its cache left on."""
    return make("LlamaConfig", "LlamaForCausalLM", **SMALL)


@architecture("mistral", sentences, sizes=((2, 8), (3, 12), (1, 5)), forms=ALL_FORMS)
def mistral() -> nn.Module:
    """A window shorter than the sentence: padded rows see nothing."""
    return make("MistralConfig", "MistralForCausalLM", **SMALL, sliding_window=4, use_cache=False)


@architecture("qwen2", sentences, forms=ALL_FORMS)
def qwen2() -> nn.Module:
    return make("Qwen2Config", "Qwen2ForCausalLM", **SMALL, use_cache=False)


@architecture("qwen3", sentences)
def qwen3() -> nn.Module:
    return make("Qwen3Config", "Qwen3ForCausalLM", **SMALL, head_dim=12, use_cache=False)


@architecture("gemma", sentences)
def gemma() -> nn.Module:
    return make("GemmaConfig", "GemmaForCausalLM", **SMALL, head_dim=12, use_cache=False)


@architecture("gemma3", sentences)
def gemma3() -> nn.Module:
    return make(
        "Gemma3TextConfig", "Gemma3ForCausalLM", **SMALL, head_dim=12, sliding_window=4, use_cache=False
    )


@architecture("phi", sentences)
def phi() -> nn.Module:
    return make("PhiConfig", "PhiForCausalLM", **SMALL, use_cache=False)


def mixture() -> nn.Module:
    return make(
        "MixtralConfig",
        "MixtralForCausalLM",
        **SMALL,
        num_local_experts=4,
        num_experts_per_tok=2,
        use_cache=False,
    )


@architecture("mixtral_as_it_comes", sentences)
def mixtral_as_it_comes() -> nn.Module:
    """Its experts are an operator of transformers, which no other program has: it is traced in another."""
    return mixture()


@architecture("mixtral", sentences)
def mixtral() -> nn.Module:
    model = mixture()
    model.set_experts_implementation("batched_mm")
    return model


@architecture("mamba", prompt)
def mamba() -> nn.Module:
    return make(
        "MambaConfig",
        "MambaForCausalLM",
        vocab_size=WORDS,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=1,
        use_cache=False,
    )


@architecture("rwkv", prompt, sizes=((2, 8), (3, 12), (1, 5)))
def rwkv() -> nn.Module:
    return make(
        "RwkvConfig",
        "RwkvForCausalLM",
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        context_length=32,
        use_cache=False,
    )


class WithCache(nn.Module):
    """One step of a decoder: the cache of two layers goes in and comes out as plain tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for k in range(len(past) // 2):
            cache.update(past[2 * k], past[2 * k + 1], k)
        found = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        layers = found.past_key_values.layers
        return found.logits, [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def step(heads: int) -> Any:
    def inputs(draw: Draw, batch: int, length: int) -> Arguments:
        past = [draw.floats(batch, heads, length, 12) for _ in range(4)]
        return {"input_ids": draw.ids(WORDS, batch, 1, first=5), "past": past}

    return inputs


@architecture("llama_with_cache", step(2))
def llama_with_cache() -> nn.Module:
    return WithCache(make("LlamaConfig", "LlamaForCausalLM", **SMALL))


@architecture("gpt2_with_cache", step(4))
def gpt2_with_cache() -> nn.Module:
    return WithCache(gpt2())


class Last(nn.Module):
    """Scores of the next token only, at the last place that is not padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        last = attention_mask.sum(1) - 1
        return logits[torch.arange(logits.size(0)), last]


@architecture("next_token", sentences)
def next_token() -> nn.Module:
    return Last(qwen2())
