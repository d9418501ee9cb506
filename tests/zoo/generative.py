"""Networks that make images, sounds and codes."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, CONFIGURED, FEATURES, Arguments, Draw, architecture

BATCHES = ((2, 0), (3, 0), (1, 0))


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of a step number: float32[batch, dim]."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], -1)


class TimeBlock(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.time = nn.Linear(64, cout)
        self.norm2, self.conv2 = nn.GroupNorm(4, cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x))) + self.time(functional.silu(t))[:, :, None, None]
        return self.conv2(functional.silu(self.norm2(h))) + self.skip(x)


def noisy(draw: Draw, batch: int, side: int) -> Arguments:
    return {"sample": draw.floats(batch, 3, side, side), "timestep": draw.ids(1000, batch)}


@architecture("diffusion_unet", noisy, sizes=((2, 16), (3, 24), (1, 8)), forms=ALL_FORMS)
class DiffusionUNet(nn.Module):
    """Time embedding, group norms, attention in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64))
        self.conv_in = nn.Conv2d(3, 16, 3, padding=1)
        self.down, self.middle, self.up = TimeBlock(16, 32), TimeBlock(32, 32), TimeBlock(64, 16)
        self.downsample = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.norm, self.qkv, self.proj = nn.GroupNorm(4, 32), nn.Conv2d(32, 96, 1), nn.Conv2d(32, 32, 1)
        self.out = nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))

    def attend(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).unbind(1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c), -1)
        return x + self.proj((v @ weights.transpose(1, 2)).reshape(b, c, h, w))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        t = self.time(timestep_embedding(timestep, 32))
        first = self.down(self.conv_in(sample), t)
        x = self.attend(self.middle(self.downsample(first), t))
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.out(self.up(torch.cat([x, first], 1), t))


class DiTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(48, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(48, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(48, 144), nn.Linear(48, 48)
        self.mlp = nn.Sequential(nn.Linear(48, 96), nn.GELU(approximate="tanh"), nn.Linear(96, 48))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(48, 288))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        b, n, d = x.shape
        s1, g1, a1, s2, g2, a2 = self.modulate(c).unsqueeze(1).chunk(6, -1)
        y = self.norm1(x) * (1 + g1) + s1
        q, k, v = self.qkv(y).view(b, n, 3, 3, d // 3).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + a1 * self.proj(y)
        return x + a2 * self.mlp(self.norm2(x) * (1 + g2) + s2)


@architecture(
    "dit",
    lambda d, b, n: (d.floats(b, 4, 8, 8), d.ids(1000, b), d.ids(11, b)),
    sizes=BATCHES,
    fixed=CONFIGURED,
)
class DiT(nn.Module):
    """A diffusion transformer over latent patches, with class and time as conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, 48, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, 48) * 0.02)
        self.time = nn.Sequential(nn.Linear(32, 48), nn.SiLU(), nn.Linear(48, 48))
        self.label = nn.Embedding(40, 48)
        self.blocks = nn.ModuleList([DiTBlock() for _ in range(2)])
        self.final = nn.Linear(48, 2 * 2 * 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2) + self.position
        c = self.time(timestep_embedding(t, 32)) + self.label(y)
        for block in self.blocks:
            h = block(h, c)
        h = self.final(h).reshape(x.shape[0], 4, 4, 2, 2, 4)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(x.shape[0], 4, 8, 8)


@architecture(
    "autoencoder", lambda d, b, n: (d.unit(b, 784),), sizes=BATCHES, fixed=FEATURES, forms=ALL_FORMS
)
class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 64), nn.ReLU(True), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(True), nn.Linear(64, 784), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@architecture(
    "vae",
    lambda d, b, n: (d.unit(b, 1, 16, 16), d.floats(b, 16)),
    sizes=BATCHES,
    forms=ALL_FORMS,
    fixed=CONFIGURED,
)
class Vae(nn.Module):
    """The noise is an input, as it has to be in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.Flatten()
        )
        self.mu, self.logvar, self.start = nn.Linear(512, 16), nn.Linear(512, 16), nn.Linear(16, 512)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        z = mu + noise * torch.exp(0.5 * logvar)
        return self.decoder(self.start(z).view(-1, 32, 4, 4)), mu, logvar


@architecture("vq_vae", lambda d, b, n: (d.floats(b, 1, n, n),), sizes=((2, 16), (3, 24), (1, 12)))
class VqVae(nn.Module):
    """The nearest code of a table, by distance and argmin."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1))
        self.codes = nn.Embedding(64, 32)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).permute(0, 2, 3, 1)
        flat = z.reshape(-1, 32)
        distance = (
            flat.pow(2).sum(1, keepdim=True)
            + self.codes.weight.pow(2).sum(1)
            - 2 * flat @ self.codes.weight.t()
        )
        found = distance.argmin(1)
        quantised = self.codes(found).view(z.shape).permute(0, 3, 1, 2)
        return self.decoder(quantised), found.view(z.shape[:-1])


@architecture(
    "gan_generator",
    lambda d, b, n: (d.floats(b, 32, 1, 1),),
    sizes=BATCHES,
    fixed=CONFIGURED,
    forms=ALL_FORMS,
)
class GanGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = (32, 48, 32, 16)
        for k, (cin, cout) in enumerate(pairwise(sizes)):
            stride, pad = (1, 0) if k == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(cin, cout, 4, stride, pad, bias=False),
                nn.BatchNorm2d(cout),
                nn.ReLU(True),
            ]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


@architecture("gan_discriminator", lambda d, b, n: (d.floats(b, 3, n, n),), sizes=((2, 32), (3, 48), (1, 40)))
def discriminator() -> nn.Module:
    spectral = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        spectral(nn.Conv2d(16, 32, 4, 2, 1)),
        nn.InstanceNorm2d(32, affine=True),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 32, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 1, 4, 1, 0),
        nn.Flatten(),
    )


@architecture("normalising_flow", lambda d, b, n: (d.floats(b, 16),), sizes=BATCHES, fixed=FEATURES)
class RealNvp(nn.Module):
    """Coupling layers; returns the latent and the log of the determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 16))
                for _ in range(3)
            ]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logdet = x.new_zeros(x.shape[0])
        for k, net in enumerate(self.nets):
            a, b = x.chunk(2, 1) if k % 2 == 0 else x.chunk(2, 1)[::-1]
            shift, scale = net(a).chunk(2, 1)
            b = b * torch.exp(scale.tanh()) + shift
            logdet = logdet + scale.tanh().sum(1)
            x = torch.cat([a, b], 1)
        return x, logdet


@architecture("neural_ode", lambda d, b, n: (d.floats(b, 32),), sizes=BATCHES, fixed=FEATURES)
class NeuralOde(nn.Module):
    """Eight steps of Runge and Kutta through one small network."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        h = 0.125
        for _ in range(8):
            k1 = self.f(x)
            k2 = self.f(x + 0.5 * h * k1)
            x = x + h * k2
        return x


@architecture(
    "nerf",
    lambda d, b, n: (d.floats(b * n, 3), functional.normalize(d.floats(b * n, 3), dim=-1)),
    sizes=((2, 16), (3, 20), (1, 9)),
)
class Nerf(nn.Module):
    """A radiance field with positional encoding: density and colour of points."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(39, 64), nn.Linear(64, 64), nn.Linear(64 + 39, 64)])
        self.density, self.feature = nn.Linear(64, 1), nn.Linear(64, 64)
        self.colour = nn.Sequential(nn.Linear(64 + 15, 32), nn.ReLU(), nn.Linear(32, 3), nn.Sigmoid())

    @staticmethod
    def encode(x: Tensor, levels: int) -> Tensor:
        parts = [x]
        for level in range(levels):
            parts += [torch.sin(2.0**level * x), torch.cos(2.0**level * x)]
        return torch.cat(parts, -1)

    def forward(self, points: Tensor, directions: Tensor) -> Tensor:
        encoded = h = self.encode(points, 6)
        for k, layer in enumerate(self.layers):
            h = torch.relu(layer(h if k < 2 else torch.cat([h, encoded], -1)))
        rgb = self.colour(torch.cat([self.feature(h), self.encode(directions, 2)], -1))
        return torch.cat([rgb, functional.softplus(self.density(h))], -1)
