"""Small transformers models with random weights, as folders, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

TEXT = """a an the is was in on of and to it she he they we you i not how do my what when where who
cat dog man sun day old new red two four light street model guitar report week energy fire account stock"""
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = len(SPECIAL) + len(WORDS) + 26

BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def seeded(cls, config):
    """A model of transformers with weights drawn from a fixed seed; norms and biases vary too."""
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def bert(cls="BertForSequenceClassification", **options):
    return seeded(getattr(transformers, cls), transformers.BertConfig(**BERT | options))


def dense_folder(model, path: Path, *, tokenizer: bool = False) -> Path:
    model.save_pretrained(path)
    if tokenizer:
        write_tokenizer(path)
    return path


def write_tokenizer(path: Path) -> None:
    """A tokenizer of whole words and single letters, made by the tokenizers library."""
    vocabulary = {
        word: k for k, word in enumerate([*SPECIAL, *WORDS, *(f"##{chr(97 + k)}" for k in range(26))])
    }
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(path)


def sentence_folder(path: Path, **pooling: bool) -> Path:
    """A sentence-transformers pipeline: transformer, pooling, normalisation."""
    dense_folder(bert("BertModel"), path, tokenizer=True)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    (path / "modules.json").write_text(
        json.dumps(
            [
                {"idx": int(k), "name": k, "path": place, "type": f"sentence_transformers.models.{kind}"}
                for k, place, kind in modules
            ]
        )
    )
    (path / "1_Pooling").mkdir()
    (path / "2_Normalize").mkdir()
    stated = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True} | pooling
    (path / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    return path
