"""Vision transformers and their relatives, written by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, CONFIGURED, Arguments, Draw, architecture

BATCHES = ((2, 0), (3, 0), (1, 0))
SIDES = ((2, 32), (3, 48), (1, 24))


def picture(draw: Draw, batch: int, _: int) -> Arguments:
    return (draw.floats(batch, 3, 32, 32),)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * self.scale
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            windows = mask.shape[0]
            scores = scores.view(b // windows, windows, self.heads, n, n) + mask[None, :, None]
            scores = scores.view(-1, self.heads, n, n)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, dim))


@architecture("vit_by_hand", picture, sizes=BATCHES, forms=ALL_FORMS, fixed=CONFIGURED)
class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 48, 8, 8)
        self.cls_token, self.pos_embed = (
            nn.Parameter(torch.zeros(1, 1, 48)),
            nn.Parameter(torch.randn(1, 17, 48)),
        )
        self.norms = nn.ModuleList([nn.LayerNorm(48) for _ in range(4)])
        self.attention = nn.ModuleList([Attention(48, 3) for _ in range(2)])
        self.mlps = nn.ModuleList([feed_forward(48, 96) for _ in range(2)])
        self.head = nn.Linear(48, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for k in range(2):
            x = x + self.attention[k](self.norms[2 * k](x))
            x = x + self.mlps[k](self.norms[2 * k + 1](x))
        return self.head(x[:, 0])


class SwinBlock(nn.Module):
    """Windowed attention with a relative position bias; every second block shifts its windows."""

    def __init__(self, dim: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, 2), feed_forward(dim, 2 * dim)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, 2) * 0.1)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", apart[:, :, 0] * (2 * window - 1) + apart[:, :, 1])
        self.register_buffer("mask", self.shift_mask() if shift else None)

    def cut(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, c)

    def shift_mask(self) -> Tensor:
        number, region = torch.zeros(1, self.side, self.side, 1), 0
        parts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for rows in parts:
            for columns in parts:
                number[:, rows, columns] = region
                region += 1
        flat = self.cut(number).squeeze(-1)
        return (flat[:, None] != flat[:, :, None]).float() * -100.0

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = self.norm1(x).view(b, self.side, self.side, c)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        bias = self.table[self.index.view(-1)].view(self.window**2, self.window**2, -1)
        y = self.attn(self.cut(y), bias.permute(2, 0, 1).contiguous().unsqueeze(0), self.mask)
        w = self.side // self.window
        y = (
            y.view(-1, w, w, self.window, self.window, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(b, self.side, self.side, c)
        )
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y.reshape(b, n, c)
        return x + self.mlp(self.norm2(x))


@architecture("swin_by_hand", picture, sizes=BATCHES, fixed=CONFIGURED)
class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.stage1 = nn.Sequential(SwinBlock(32, 8, 4, 0), SwinBlock(32, 8, 4, 2))
        self.norm, self.reduction = nn.LayerNorm(128), nn.Linear(128, 64, bias=False)
        self.stage2, self.head = SwinBlock(64, 4, 4, 0), nn.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.patch(x).flatten(2).transpose(1, 2)).view(-1, 8, 8, 32)
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = self.reduction(self.norm(torch.cat(parts, -1).view(-1, 16, 128)))
        return self.head(self.stage2(x).mean(1))


class NextBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(functional.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


@architecture("convnext_by_hand", lambda d, b, n: (d.floats(b, 3, n, n),), sizes=SIDES, forms=ALL_FORMS)
def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 4),
        NextBlock(24),
        nn.Conv2d(24, 48, 2, 2),
        NextBlock(48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.LayerNorm(48),
        nn.Linear(48, 40),
    )


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)
        self.tokens, self.channels = feed_forward(16, 64), feed_forward(48, 96)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


@architecture("mlp_mixer", picture, sizes=BATCHES, fixed=CONFIGURED, forms=ALL_FORMS)
class MlpMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 48, 8, 8), nn.Sequential(MixerBlock(), MixerBlock())
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(dim=1))


@architecture("perceiver", picture, sizes=BATCHES, fixed=CONFIGURED)
class Perceiver(nn.Module):
    """A few latents read all pixels by cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, 64) * 0.1)
        self.pixels = nn.Linear(3, 64)
        self.position = nn.Parameter(torch.randn(1024, 64) * 0.1)
        self.cross = nn.MultiheadAttention(64, 2, batch_first=True)
        self.own, self.head = nn.TransformerEncoderLayer(64, 2, 96, batch_first=True), nn.Linear(64, 18)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pixels(image.flatten(2).mT) + self.position
        latents = self.latents.expand(image.size(0), *self.latents.shape)
        latents = latents + self.cross(latents, x, x, need_weights=False)[0]
        return self.head(self.own(latents).mean(1))


@architecture(
    "masked_autoencoder",
    lambda d, b, n: (d.floats(b, 16, 48), d.unit(b, 16)),
    sizes=BATCHES,
    fixed=CONFIGURED,
)
class MaskedAutoencoder(nn.Module):
    """Patches are shuffled by noise that comes in; a quarter is kept, and the rest is made up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(48, 64), nn.Parameter(torch.randn(1, 1, 64))
        self.encoder = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, norm_first=True)
        self.out = nn.Linear(64, 48)

    def forward(self, patches: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        shuffle = torch.argsort(noise, dim=1)
        restore = torch.argsort(shuffle, dim=1)
        x = self.embed(patches)
        kept = torch.gather(x, 1, shuffle[:, :4].unsqueeze(-1).repeat(1, 1, x.shape[2]))
        kept = self.encoder(kept)
        full = torch.cat([kept, self.token.repeat(x.shape[0], 12, 1)], 1)
        full = torch.gather(full, 1, restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        return self.out(self.decoder(full)), restore


def words(draw: Draw, batch: int, length: int) -> Arguments:
    return {"image": draw.floats(batch, 3, 32, 32), "question": draw.ids(120, batch, length)}


@architecture("visual_question", words)
class VisualQuestion(nn.Module):
    """A picture and a question: two inputs of different kinds that meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.table, self.gru = nn.Embedding(120, 48), nn.GRU(48, 64, batch_first=True)
        self.visual, self.answer = nn.Linear(192, 64), nn.Linear(64, 40)

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        seen = torch.tanh(self.visual(self.cnn(image).flatten(1)))
        _, hidden = self.gru(self.table(question))
        return self.answer(seen * torch.tanh(hidden[-1]))
