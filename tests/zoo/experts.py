"""Mixtures of experts and other networks whose path depends on the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, FEATURES, Arguments, Draw, architecture


def tokens(draw: Draw, batch: int, length: int) -> Arguments:
    return (draw.floats(batch, length, 32),)


@architecture("soft_mixture", tokens, forms=ALL_FORMS)
class SoftMixture(nn.Module):
    """Every expert runs, and their outputs are weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(4)]
        )
        self.gate = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        return (outputs * weights.unsqueeze(-1)).sum(-2)


@architecture("top_k_mixture", tokens, forms=ALL_FORMS)
class TopK(nn.Module):
    """Two of four experts count; all are computed, and a mask chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (
            nn.Parameter(torch.randn(4, 32, 64) / 6),
            nn.Parameter(torch.randn(4, 64, 32) / 8),
        )
        self.router = nn.Linear(32, 4, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(x)
        top, chosen = logits.topk(2, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1))
        hidden = functional.gelu(torch.einsum("btd,edh->bteh", x, self.up))
        outputs = torch.einsum("bteh,ehd->bted", hidden, self.down)
        return torch.einsum("bted,bte->btd", outputs, gates), logits


@architecture("gathered_mixture", tokens, forms=ALL_FORMS)
class Gathered(nn.Module):
    """Each token reads the weights of its own expert out of the bank."""

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.router = nn.Parameter(torch.randn(6, 32, 32) / 6), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        score, expert = self.router(x).softmax(-1).max(-1)
        return torch.einsum("btd,btdh->bth", x, self.bank[expert]) * score.unsqueeze(-1)


@architecture("switch_mixture", tokens)
class Switch(nn.Module):
    """Tokens are sorted to their experts by index; how many an expert gets depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])
        self.router = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 32)
        score, chosen = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            picked = torch.where(chosen == k)[0]
            out = out.index_add(0, picked, expert(flat[picked]) * score[picked, None])
        return out.view_as(x)


@architecture(
    "multi_task", lambda d, b, n: (d.floats(b, 48),), sizes=((3, 0), (5, 0), (1, 0)), fixed=FEATURES
)
class MultiTask(nn.Module):
    """MMoE: shared experts, a gate and a head for each task; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(48, 64) for _ in range(3)])
        self.gates = nn.ModuleDict({task: nn.Linear(48, 3) for task in ("click", "buy")})
        self.heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in ("click", "buy")})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shared = torch.stack([functional.relu(expert(x)) for expert in self.experts], 1)
        mixed = {
            task: (gate(x).softmax(-1).unsqueeze(-1) * shared).sum(1) for task, gate in self.gates.items()
        }
        return {task: head(mixed[task]).squeeze(-1) for task, head in self.heads.items()}


@architecture("hypernetwork", lambda d, b, n: (d.floats(b, 16), d.floats(b, n, 8)))
class HyperNetwork(nn.Module):
    """A network that makes another's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8 * 12))

    def forward(self, condition: Tensor, x: Tensor) -> Tensor:
        return torch.bmm(x, self.make(condition).view(-1, 8, 12)).tanh()
