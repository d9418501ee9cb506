"""Encoder-decoder models of transformers on text."""

from __future__ import annotations

from torch import nn

from tests.zoo.architecture import ALL_FORMS, Arguments, Draw, architecture
from tests.zoo.encoders import WORDS, make, sentences

BART = {
    "vocab_size": WORDS,
    "d_model": 48,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "use_cache": False,
}


def translation(draw: Draw, batch: int, length: int) -> Arguments:
    found = sentences(draw, batch, length)
    assert isinstance(found, dict)
    return {**found, "decoder_input_ids": draw.ids(WORDS, batch, length - 1, first=5)}


@architecture("t5", translation)
def t5() -> nn.Module:
    return make(
        "T5Config",
        "T5ForConditionalGeneration",
        vocab_size=WORDS,
        d_model=48,
        d_kv=12,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        use_cache=False,
    )


@architecture("t5_encoder", sentences, forms=ALL_FORMS)
def t5_encoder() -> nn.Module:
    return make(
        "T5Config",
        "T5EncoderModel",
        vocab_size=WORDS,
        d_model=48,
        d_kv=12,
        d_ff=64,
        num_layers=2,
        num_heads=4,
    )


@architecture("bart", translation)
def bart() -> nn.Module:
    return make("BartConfig", "BartForConditionalGeneration", **BART)


@architecture("pegasus", translation)
def pegasus() -> nn.Module:
    return make("PegasusConfig", "PegasusForConditionalGeneration", **BART)


@architecture("marian", translation)
def marian() -> nn.Module:
    return make("MarianConfig", "MarianMTModel", **BART, pad_token_id=0)
