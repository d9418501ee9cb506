"""Encoders of transformers on text, small and from their configurations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architecture import ALL_FORMS, Arguments, Draw, architecture

WORDS = 120


def sentences(draw: Draw, batch: int, length: int) -> Arguments:
    """What a tokenizer gives: ids and a mask, padded on the right."""
    mask = draw.mask(batch, length)
    return {"input_ids": draw.ids(WORDS, batch, length, first=5) * mask + (1 - mask), "attention_mask": mask}


def pairs(draw: Draw, batch: int, length: int) -> Arguments:
    return {**sentences(draw, batch, length), "token_type_ids": draw.ids(2, batch, length)}


SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def make(config: str, model: str, **options: Any) -> nn.Module:
    """A model of transformers by the names of its configuration and its class."""
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


@architecture("bert", pairs, forms=ALL_FORMS)
def bert() -> nn.Module:
    return make("BertConfig", "BertModel", **SMALL)


@architecture("bert_classifier", sentences)
def bert_classifier() -> nn.Module:
    return make("BertConfig", "BertForSequenceClassification", **SMALL, num_labels=3)


@architecture("roberta", sentences, forms=ALL_FORMS)
def roberta() -> nn.Module:
    return make("RobertaConfig", "RobertaForMaskedLM", **SMALL)


@architecture("distilbert", sentences, forms=ALL_FORMS)
def distilbert() -> nn.Module:
    return make(
        "DistilBertConfig",
        "DistilBertForTokenClassification",
        vocab_size=WORDS,
        dim=48,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=40,
        num_labels=5,
    )


@architecture("albert", pairs, forms=ALL_FORMS)
def albert() -> nn.Module:
    return make("AlbertConfig", "AlbertModel", **SMALL, embedding_size=24)


@architecture("electra", sentences, forms=ALL_FORMS)
def electra() -> nn.Module:
    return make("ElectraConfig", "ElectraForPreTraining", **SMALL, embedding_size=24)


@architecture("deberta_v2", sentences)
def deberta_v2() -> nn.Module:
    return make(
        "DebertaV2Config",
        "DebertaV2Model",
        **SMALL,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    )


@architecture("mpnet", sentences)
def mpnet() -> nn.Module:
    return make("MPNetConfig", "MPNetModel", **SMALL)


@architecture("xlnet", sentences)
def xlnet() -> nn.Module:
    return make(
        "XLNetConfig",
        "XLNetForSequenceClassification",
        vocab_size=WORDS,
        d_model=48,
        n_layer=2,
        n_head=4,
        d_inner=64,
    )


@architecture("funnel", sentences, sizes=((2, 8), (3, 12), (1, 6)))
def funnel() -> nn.Module:
    return make(
        "FunnelConfig",
        "FunnelModel",
        vocab_size=WORDS,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=48,
        n_head=4,
        d_head=12,
        d_inner=64,
    )


@architecture("modernbert", sentences, sizes=((2, 24), (3, 30), (1, 12)))
def modernbert() -> nn.Module:
    return make(
        "ModernBertConfig",
        "ModernBertModel",
        **{**SMALL, "num_hidden_layers": 3},
        local_attention=8,
        global_attn_every_n_layers=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )


@architecture("camembert", sentences)
def camembert() -> nn.Module:
    return make("CamembertConfig", "CamembertForQuestionAnswering", **SMALL)


@architecture("squeezebert", sentences)
def squeezebert() -> nn.Module:
    return make("SqueezeBertConfig", "SqueezeBertModel", **SMALL, embedding_size=48)


@architecture("convbert", sentences)
def convbert() -> nn.Module:
    return make(
        "ConvBertConfig", "ConvBertModel", **SMALL, embedding_size=24, head_ratio=2, conv_kernel_size=3
    )


@architecture("roformer", sentences)
def roformer() -> nn.Module:
    return make("RoFormerConfig", "RoFormerModel", **SMALL)


@architecture("fnet", lambda d, b, n: {"input_ids": d.ids(WORDS, b, n)})
def fnet() -> nn.Module:
    options = {key: value for key, value in SMALL.items() if key != "num_attention_heads"}
    return make("FNetConfig", "FNetModel", **options)


@architecture("longformer", sentences, sizes=((2, 16), (3, 24), (1, 8)))
def longformer() -> nn.Module:
    return make("LongformerConfig", "LongformerModel", **SMALL, attention_window=8)


class Sentence(nn.Module):
    """Mean pooling over the tokens that count, then a unit vector: what sentence-transformers does."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, p=2, dim=1)


@architecture("sentence_encoder", sentences, forms=ALL_FORMS)
def sentence_encoder() -> nn.Module:
    return Sentence(bert())
