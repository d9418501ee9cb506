"""Networks on text, written by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, FEATURES, Arguments, Draw, architecture


class PositionalEncoding(nn.Module):
    def __init__(self, dim: int, length: int = 64) -> None:
        super().__init__()
        at = torch.arange(length).unsqueeze(1)
        steps = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        table = torch.zeros(1, length, dim)
        table[0, :, 0::2], table[0, :, 1::2] = torch.sin(at * steps), torch.cos(at * steps)
        self.register_buffer("pe", table)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.size(1)]


def padded(draw: Draw, batch: int, length: int) -> Arguments:
    mask = draw.mask(batch, length)
    return {"ids": draw.ids(150, batch, length, first=1) * mask, "padding": mask == 0}


@architecture("transformer_encoder", padded)
class Encoder(nn.Module):
    """torch's own encoder with padding; its fused path answers in evaluation mode."""

    def __init__(self, nested: bool = True) -> None:
        super().__init__()
        self.table, self.position = nn.Embedding(150, 48, padding_idx=0), PositionalEncoding(48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.out = nn.Linear(48, 9)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        x = self.encoder(self.position(self.table(ids)), src_key_padding_mask=padding)
        return self.out(x[:, 0])


@architecture("transformer_encoder_not_nested", padded, forms=ALL_FORMS)
def encoder_not_nested() -> nn.Module:
    """What the refusal of transformer_encoder advises."""
    return Encoder(nested=False)


@architecture("transformer", lambda d, b, n: (d.ids(100, b, n), d.ids(100, b, n - 2)))
class Translate(nn.Module):
    """nn.Transformer with a causal target mask made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.position = (
            nn.Embedding(100, 32),
            nn.Embedding(100, 32),
            PositionalEncoding(32),
        )
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.generator = nn.Linear(32, 100)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1))
        x = self.position(self.source(src) * math.sqrt(32))
        y = self.position(self.target(tgt) * math.sqrt(32))
        return self.generator(self.transformer(x, y, tgt_mask=mask))


@architecture(
    "text_cnn", lambda d, b, n: (d.ids(300, b, n),), sizes=((2, 12), (3, 20), (1, 9)), forms=ALL_FORMS
)
class TextCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 32)
        self.convs = nn.ModuleList([nn.Conv2d(1, 24, (k, 32)) for k in (3, 4, 5)])
        self.fc = nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).unsqueeze(1)
        found = [functional.relu(conv(x)).squeeze(3) for conv in self.convs]
        pooled = [functional.max_pool1d(item, item.size(2)).squeeze(2) for item in found]
        return self.fc(torch.cat(pooled, 1))


@architecture("fasttext", lambda d, b, n: (d.ids(500, b * n), torch.arange(0, b * n, n)), forms=ALL_FORMS)
class FastText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.EmbeddingBag(500, 48, mode="mean"), nn.Linear(48, 4)

    def forward(self, text: Tensor, offsets: Tensor) -> Tensor:
        return self.fc(self.embedding(text, offsets))


@architecture("skip_gram", lambda d, b, n: {"centre": d.ids(400, b), "context": d.ids(400, b, n)})
class SkipGram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centre, self.context = nn.Embedding(400, 32), nn.Embedding(400, 32)

    def forward(self, centre: Tensor, context: Tensor) -> Tensor:
        return functional.logsigmoid(
            torch.bmm(self.context(context), self.centre(centre).unsqueeze(2)).squeeze(2)
        )


@architecture("language_model", lambda d, b, n: (d.ids(90, b, n),), forms=ALL_FORMS)
class MiniGpt(nn.Module):
    """A causal transformer in the style of minGPT: a mask in a buffer, tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(90, 48), nn.Embedding(32, 48)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(48), nn.LayerNorm(48), nn.LayerNorm(48)
        self.c_attn, self.c_proj = nn.Linear(48, 144), nn.Linear(48, 48)
        self.mlp = nn.Sequential(nn.Linear(48, 192), nn.GELU(approximate="tanh"), nn.Linear(192, 48))
        self.lm_head = nn.Linear(48, 90, bias=False)
        self.lm_head.weight = self.wte.weight
        self.register_buffer("bias", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def attend(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (part.view(b, t, 4, c // 4).transpose(1, 2) for part in self.c_attn(x).split(48, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = (functional.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, c)
        return self.c_proj(y)

    def forward(self, idx: Tensor) -> Tensor:
        at = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(at)
        x = x + self.attend(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return self.lm_head(self.ln_f(x))


def step(draw: Draw, batch: int, length: int) -> Arguments:
    past = [draw.floats(batch, 4, length, 16) for _ in range(2)]
    return {"token": draw.ids(80, batch, 1), "past_key": past[0], "past_value": past[1]}


@architecture("cached_decoder", step)
class CachedDecoder(nn.Module):
    """One step with rotary positions; keys and values go in and come out longer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(80, 64), nn.RMSNorm(64)
        self.q_proj, self.k_proj = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.v_proj, self.o_proj = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 80, bias=False)
        self.register_buffer(
            "inv_freq", 1.0 / 10000 ** (torch.arange(0, 16, 2).float() / 16), persistent=False
        )

    def rotate(self, x: Tensor, at: Tensor) -> Tensor:
        angles = torch.outer(at.float(), self.inv_freq)
        angles = torch.cat((angles, angles), -1)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

    def forward(self, token: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.table(token)
        h = self.norm(x)
        q, k, v = (
            p(h).unflatten(-1, (4, 16)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        at = torch.arange(past_key.size(2), past_key.size(2) + token.size(1))
        key = torch.cat([past_key, self.rotate(k, at)], 2)
        value = torch.cat([past_value, v], 2)
        y = functional.scaled_dot_product_attention(self.rotate(q, at), key, value)
        return self.head(x + self.o_proj(y.transpose(1, 2).flatten(2))), key, value


@architecture("pointer_network", lambda d, b, n: (d.floats(b, n, 16),))
class PointerNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.start = nn.LSTM(16, 48, batch_first=True), nn.Parameter(torch.randn(48))
        self.w1, self.w2, self.v = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory, (hidden, _) = self.encoder(x)
        scores = self.v(torch.tanh(self.w1(memory) + self.w2(hidden[-1] + self.start).unsqueeze(1))).squeeze(
            -1
        )
        return scores.log_softmax(-1), scores.argmax(-1)


@architecture("memory_network", lambda d, b, n: (d.ids(100, b, n, 6), d.ids(100, b, 6)))
class MemoryNetwork(nn.Module):
    """Sentences are remembered; three hops of attention answer a query."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(100, 32) for _ in range(4)])

    def forward(self, story: Tensor, query: Tensor) -> Tensor:
        u = self.tables[0](query).sum(1)
        for hop in range(3):
            memory, output = self.tables[hop](story).sum(2), self.tables[hop + 1](story).sum(2)
            weights = torch.einsum("bnd,bd->bn", memory, u).softmax(1)
            u = u + torch.einsum("bnd,bn->bd", output, weights)
        return u @ self.tables[3].weight.mT


@architecture(
    "tabular_transformer",
    lambda d, b, n: (d.floats(b, 8), d.ids(20, b, 5)),
    sizes=((3, 0), (5, 0), (1, 0)),
    fixed=FEATURES,
)
class TabularTransformer(nn.Module):
    """FT-Transformer: numbers and categories as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 32)), nn.Parameter(torch.randn(8, 32))
        self.categories, self.cls = nn.Embedding(100, 32), nn.Parameter(torch.randn(1, 1, 32))
        self.register_buffer("shift", torch.arange(5) * 20)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.encoder, self.head = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(32, 3),
        )

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        x = numbers.unsqueeze(-1) * self.weight + self.bias
        x = torch.cat([self.cls.expand(x.size(0), -1, -1), x, self.categories(categories + self.shift)], 1)
        return self.head(self.encoder(x)[:, 0])
