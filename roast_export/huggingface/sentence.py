"""Sentence embeddings: the modules that a sentence-transformers pipeline puts after its transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.errors import LoadError
from roast_export.huggingface.folder import SENTENCE, read_json
from roast_export.huggingface.task_model import given

MODES = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
"""Ways of pooling, in the order in which sentence-transformers joins them where there are several."""

ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": nn.Identity,
    "torch.nn.modules.activation.Tanh": nn.Tanh,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.modules.activation.GELU": nn.GELU,
    "torch.nn.modules.activation.Sigmoid": nn.Sigmoid,
}


_ELSE = "export with --task feature-extraction and do its work in your program"


class SentenceModel(nn.Module):
    """Token embeddings, and one embedding for each sentence."""

    def __init__(self, model: nn.Module, after: list[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.after = nn.ModuleList(after)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """int64[batch, sequence] each, to float32[batch, sequence, dim] and float32[batch, dim]."""
        arguments = given(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        tokens = self.model(**arguments, return_dict=True)["last_hidden_state"]
        pooling, *rest = self.after
        sentence = pooling(tokens, attention_mask)
        for module in rest:
            sentence = module(sentence)
        return {"token_embeddings": tokens, "sentence_embedding": sentence}


class Pooling(nn.Module):
    """One vector of each sequence, from the tokens that its mask counts."""

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """float32[batch, sequence, dim] and int64[batch, sequence] to float32[batch, dim * modes]."""
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return torch.cat([self._pooled(mode, tokens, weight) for mode in self.modes], dim=-1)

    def _pooled(self, mode: str, tokens: Tensor, weight: Tensor) -> Tensor:
        if mode == "max":
            return tokens.masked_fill(weight == 0, -1e9).amax(1)
        if mode in ("cls", "lasttoken"):
            # The first or the last token that counts: a product with a mask, since lengths differ by row.
            place = weight.cumsum(1) * weight
            wanted = torch.ones_like(place[:, :1]) if mode == "cls" else place.amax(1, keepdim=True)
            return (tokens * (place == wanted).to(tokens.dtype)).sum(1)
        if mode == "weightedmean":
            weight = weight * torch.arange(1, tokens.shape[1] + 1, device=tokens.device).view(1, -1, 1)
        total = weight.sum(1).clamp(min=1e-9)
        return (tokens * weight).sum(1) / (total.sqrt() if mode == "mean_sqrt_len" else total)


class Normalize(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, p=2.0, dim=-1)


def modules_after(pipeline: Path) -> list[nn.Module]:
    """The modules of a pipeline after the transformer; mean pooling where there are none.

    Raises:
        LoadError: a module is of a kind that is not known here.
    """
    found: list[nn.Module] = []
    for stated in read_json(pipeline / SENTENCE, list)[1:]:
        kind = str(stated.get("type", "")).rpartition(".")[2]
        folder = pipeline / str(stated.get("path", ""))
        if kind == "Pooling" and not found:
            found.append(_pooling(folder))
        elif kind == "Normalize":
            found.append(Normalize())
        elif kind == "Dense" and found:
            found.append(_dense(folder))
        elif kind != "Dropout":
            raise LoadError(
                f"{pipeline / SENTENCE} has a module {stated.get('type')!r}, which is not known here; {_ELSE}"
            )
    return found or [Pooling(("mean",))]


def _pooling(folder: Path) -> Pooling:
    stated = read_json(folder / "config.json")
    if isinstance(stated.get("pooling_mode"), str):
        modes: tuple[str, ...] = (stated["pooling_mode"],)
    else:
        chosen = {key.removeprefix("pooling_mode_") for key, value in stated.items() if value is True}
        chosen = {name.removesuffix("_tokens").removesuffix("_token") for name in chosen}
        modes = tuple(mode for mode in MODES if mode in chosen)
    if not modes or any(mode not in MODES for mode in modes):
        raise LoadError(f"{folder / 'config.json'} names no way of pooling of {', '.join(MODES)}")
    return Pooling(modes)


def _dense(folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    stated: dict[str, Any] = read_json(folder / "config.json")
    activation = ACTIVATIONS.get(stated.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation is None or not (folder / "model.safetensors").is_file():
        raise LoadError(
            f"{folder} holds a Dense module without model.safetensors or with an unknown activation; {_ELSE}"
        )
    layer = nn.Linear(stated["in_features"], stated["out_features"], bias=stated.get("bias", True))
    layer.load_state_dict(
        {k.removeprefix("linear."): v for k, v in load_file(folder / "model.safetensors").items()}
    )
    return nn.Sequential(layer, activation())
