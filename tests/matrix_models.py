"""The four models of the matrix: digits, an encoder layer of BERT's size, a recommender, a small CNN."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import roast_export

SAMPLES = Path(__file__).parent.parent / "samples"


@dataclass(frozen=True)
class Subject:
    """A compressed model, what it is called with, and what of that is dynamic."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]]


def sample(name: str) -> Any:
    """A program of samples/ as a module."""
    spec = importlib.util.spec_from_file_location(f"sample_{name}", SAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits() -> Subject:
    torch.manual_seed(0)
    model = roast_export.compress(sample("digits").Classifier().eval(), 20)
    return Subject(model, {"x": torch.rand(3, 64)}, {"x": {0: "batch"}})


def encoder() -> Subject:
    """One layer, 768 wide, 12 heads, 3072 between; a small vocabulary."""
    from transformers import BertConfig

    bert = sample("bert")
    config = BertConfig(
        num_hidden_layers=1, vocab_size=1000, max_position_embeddings=64, attn_implementation="eager"
    )
    model, _ = bert.compressed(config, 100)
    axes = {0: "batch", 1: "sequence"}
    return Subject(model, bert.examples(config, 8), {"input_ids": axes, "attention_mask": axes})


def recommender() -> Subject:
    """All 26 tables, a 200th as long: samples/recommender.py proves them in full."""
    sizes = sample("recommender")
    rows = [max(3, n // 200) for n in sizes.ROWS]
    torch.manual_seed(0)
    model = sizes.Recommender(sizes.tables(rows, 20)).eval()
    features, ids, _ = sizes.clicks(rows, 4, torch.Generator().manual_seed(0))
    dynamic = {"features": {0: "batch"}, "ids": {0: "batch"}}
    return Subject(model, {"features": features, "ids": ids}, dynamic)


class Cnn(nn.Module):
    """Images float32[batch, 3, 32, 32] in, scores float32[batch, 10] out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.classifier = nn.Sequential(nn.Linear(64 * 8 * 8, 96), nn.ReLU(), nn.Linear(96, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image).flatten(1))


def cnn() -> Subject:
    """With statistics in its BatchNorm that are not those of a fresh one."""
    torch.manual_seed(0)
    model = Cnn()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    image = torch.randn(2, 3, 32, 32)
    return Subject(roast_export.compress(model.eval(), 20), {"image": image}, {"image": {0: "batch"}})


MODELS: dict[str, Callable[[], Subject]] = {
    "encoder": encoder,
    "recommender": recommender,
    "digits": digits,
    "cnn": cnn,
}
