"""State spaces, linear attention and other sequence layers that are not attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, STEPS, architecture


@architecture("retention", lambda d, b, n: (d.ids(100, b, n),), forms=ALL_FORMS)
class Retention(nn.Module):
    """RetNet's parallel form: a decay matrix in place of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 48)
        self.qkv, self.gate, self.out = nn.Linear(48, 144), nn.Linear(48, 48), nn.Linear(48, 100)
        self.norm = nn.GroupNorm(3, 48)
        self.register_buffer("decay", torch.log(1 - 2.0 ** (-5 - torch.arange(3.0))))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 3, 16).permute(2, 0, 3, 1, 4)
        at = torch.arange(n)
        apart = (at[:, None] - at[None, :]).clamp(min=0)
        decay = torch.exp(self.decay[:, None, None] * apart) * (at[:, None] >= at[None, :])
        y = ((q @ k.transpose(-1, -2)) * decay * 0.25) @ v
        y = self.norm(y.transpose(1, 2).reshape(b * n, c)).view(b, n, c)
        return self.out(functional.silu(self.gate(x)) * y)


@architecture(
    "selective_scan", lambda d, b, n: (d.floats(b, 6, 32),), sizes=((2, 0), (3, 0), (1, 0)), fixed=STEPS
)
class SelectiveScan(nn.Module):
    """Mamba's recurrence as a loop over six steps."""

    def __init__(self, steps: int = 6) -> None:
        super().__init__()
        self.steps = steps
        self.in_proj, self.out_proj = nn.Linear(32, 128, bias=False), nn.Linear(64, 32, bias=False)
        self.conv1d = nn.Conv1d(64, 64, 4, groups=64, padding=3)
        self.x_proj, self.dt_proj = nn.Linear(64, 4 + 2 * 8, bias=False), nn.Linear(4, 64)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, 9).float().repeat(64, 1)))
        self.D = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        u = functional.silu(self.conv1d(u.transpose(1, 2))[..., : self.steps].transpose(1, 2))
        delta, b, c = self.x_proj(u).split([4, 8, 8], -1)
        delta = functional.softplus(self.dt_proj(delta))
        decay = torch.exp(delta.unsqueeze(-1) * -torch.exp(self.A_log))
        drive = delta.unsqueeze(-1) * b.unsqueeze(2) * u.unsqueeze(-1)
        state, found = torch.zeros_like(drive[:, 0]), []
        for t in range(self.steps):
            state = decay[:, t] * state + drive[:, t]
            found.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return self.out_proj((torch.stack(found, 1) + u * self.D) * functional.silu(z))


@architecture("cumulative_scan", lambda d, b, n: (d.floats(b, n, 32),))
class CumulativeScan(nn.Module):
    """A diagonal recurrence in closed form, by cumsum: any length."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        log_decay = functional.logsigmoid(self.gate(x) + 3).cumsum(1)
        value = self.up(x) * torch.exp(-log_decay)
        return self.down(value.cumsum(1) * torch.exp(log_decay))


@architecture("linear_attention", lambda d, b, n: (d.floats(b, n, 48),), forms=ALL_FORMS)
class LinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(48, 144, bias=False), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 3, 16).transpose(1, 2) for t in self.to_qkv(x).chunk(3, -1))
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        context = torch.einsum("bhnd,bhne->bhde", k, v)
        norm = 1 / torch.einsum("bhnd,bhd->bhn", q, k.sum(2))
        y = torch.einsum("bhnd,bhde,bhn->bhne", q, context, norm)
        return self.to_out(y.transpose(1, 2).reshape(b, n, 48))


@architecture("fourier_mixing", lambda d, b, n: (d.floats(b, n, 48),), sizes=((2, 16), (3, 12), (1, 20)))
class FourierMixing(nn.Module):
    """FNet: the real part of a Fourier transform mixes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
        return self.norm2(x + self.ffn(x))


@architecture(
    "gated_mlp",
    lambda d, b, n: (d.floats(b, 12, 32),),
    sizes=((2, 0), (3, 0), (1, 0)),
    fixed="its gate has a weight for each of the twelve tokens",
)
class GatedMlp(nn.Module):
    """gMLP: a spatial gate over a fixed number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 128), nn.Linear(64, 32)
        self.gate_norm, self.spatial = nn.LayerNorm(64), nn.Conv1d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = functional.gelu(self.up(self.norm(x))).chunk(2, -1)
        return x + self.down(u * self.spatial(self.gate_norm(v)))
