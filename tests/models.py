"""Models that several test files export."""

import torch
from torch import nn


class Mixed(nn.Module):
    """One layer of every kind, ragged against every tile, with the output tied to the input table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(301, 40, padding_idx=0)
        self.image = nn.Conv2d(4, 26, 3, padding=2, stride=2, dilation=2, groups=2)
        self.text = nn.Conv1d(40, 50, 3, padding=1)
        self.lstm = nn.LSTM(50, 36, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(72, 40, batch_first=True)
        self.attention = nn.MultiheadAttention(40, 4, batch_first=True)
        self.inner = nn.Linear(40, 70)
        self.outer = nn.Linear(70, 40)
        self.flat = nn.Linear(26 * 8 * 8, 40)
        self.out = nn.Linear(40, 301, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids, image):
        x = self.text(self.table(ids).transpose(1, 2)).transpose(1, 2)
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        attended, _ = self.attention(x, x, x)
        x = x + self.outer(torch.relu(self.inner(x + attended)))
        seen = self.flat(torch.relu(self.image(image)).flatten(1))
        return self.out(x + seen[:, None, :])


def mixed_inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 301, (batch, 7), generator=generator)
    return ids, torch.randn(batch, 4, 16, 16, generator=generator)


MIXED_DYNAMIC = {"ids": {0: "batch"}, "image": {0: "batch"}}


class Small(nn.Module):
    """Two linear layers and a table: the quickest model with everything a report speaks of."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 48)
        self.first = nn.Linear(48, 96)
        self.norm = nn.LayerNorm(96)
        self.last = nn.Linear(96, 33)

    def forward(self, ids, extra):
        x = torch.relu(self.norm(self.first(self.table(ids) + extra)))
        return {"scores": self.last(x), "best": self.last(x).argmax(-1)}


def small_inputs(batch=2):
    generator = torch.Generator().manual_seed(2)
    return {
        "ids": torch.randint(0, 50, (batch, 5), generator=generator),
        "extra": torch.randn(batch, 5, 48, generator=generator),
    }


SMALL_DYNAMIC = {"ids": {0: "batch"}, "extra": {0: "batch"}}


class Control(nn.Module):
    """A loop and a branch that depend on values: nothing can trace it, TorchScript can follow it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 48, padding_idx=0)
        self.conv = nn.Conv1d(48, 48, 3, padding=1)
        self.step = nn.Linear(48, 48)
        self.last = nn.Linear(48, 50)

    def forward(self, ids, times: int = 4):
        x = self.conv(self.table(ids).transpose(1, 2)).transpose(1, 2)
        n = 0
        while bool(x.abs().mean() > 0.05) and n < times:
            x = torch.tanh(self.step(x)) * 0.5
            n += 1
        if bool(x.sum() > 0):
            x = x + 1.0
        return self.last(x)
