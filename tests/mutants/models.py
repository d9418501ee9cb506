"""The models whose exported files are mutated: one of each kind, most of them from the zoo."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tests.zoo.architecture import Architecture, architectures

FROM_ZOO = (
    "mobilenet_v3", "resnet", "unet", "siamese", "autoencoder", "vit_by_hand", "bert_classifier",
    "gpt2", "top_k_mixture", "dlrm_bags", "lstm_tagger", "attention_lstm", "conv_tasnet", "deep_sets",
)  # fmt: skip

RATIOS = {"mobilenet_v3": 20.0}


class Tiny(nn.Module):
    """A perceptron whose outputs are about 1e-6."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(24, 64), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.outer(torch.relu(self.inner(x)))) * 1e-6


class Audio(nn.Module):
    """Strided convolutions over a waveform and a normalisation over time, as in wav2vec2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 32, 10, 5, bias=False)
        self.norm = nn.GroupNorm(32, 32)
        self.second = nn.Conv1d(32, 48, 3, 2)
        self.head = nn.Linear(48, 40)

    def forward(self, wave: Tensor) -> Tensor:
        x = nn.functional.gelu(self.norm(self.first(wave[:, None])))
        x = nn.functional.gelu(self.second(x)).transpose(1, 2)
        return self.head(x).log_softmax(-1)


OWN = (
    Architecture(
        "tiny_outputs", "own", Tiny, lambda d, b, n: (d.floats(b, 24),), sizes=((2, 0), (5, 0), (1, 0))
    ),
    Architecture(
        "audio", "own", Audio, lambda d, b, n: (d.floats(b, n),), sizes=((2, 160), (3, 240), (1, 100))
    ),
)


def models() -> dict[str, Architecture]:
    """Architectures by name."""
    zoo = architectures()
    found = {entry.name: entry for entry in OWN}
    for name in FROM_ZOO:
        found[name] = replace(zoo[name], ratio=RATIOS.get(name, zoo[name].ratio))
    return found
