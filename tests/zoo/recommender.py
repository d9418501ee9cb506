"""Recommenders: large tables, small networks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, FEATURES, Arguments, Draw, architecture

BATCHES = ((4, 0), (7, 0), (1, 0))
FIELDS = (50, 80, 120, 60)


def mlp(*sizes: int, last: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, (cin, cout) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(cin, cout))
        if not last or k < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def clicks(draw: Draw, batch: int, _: int) -> Arguments:
    return draw.floats(batch, 13), torch.stack([draw.ids(n, batch) for n in FIELDS], 1)


def fields(draw: Draw, batch: int, _: int) -> Arguments:
    return (torch.stack([draw.ids(n, batch) for n in FIELDS], 1),)


def bags(draw: Draw, batch: int, _: int) -> Arguments:
    offsets = torch.arange(0, 3 * batch, 3)
    return draw.floats(batch, 13), [draw.ids(n, 3 * batch) for n in FIELDS], [offsets for _ in FIELDS]


@architecture("dlrm", clicks, sizes=BATCHES, fixed=FEATURES, forms=ALL_FORMS)
class Dlrm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.ModuleList([nn.Embedding(n, 32) for n in FIELDS])
        self.bot, self.top = mlp(13, 64, 32), mlp(10 + 32, 64, 1, last=True)

    def forward(self, dense_x: Tensor, lS_i: Tensor) -> Tensor:
        x = self.bot(dense_x)
        parts = torch.stack([x, *(table(lS_i[:, k]) for k, table in enumerate(self.emb))], 1)
        products = torch.bmm(parts, parts.transpose(1, 2))
        rows = torch.tensor([i for i in range(5) for j in range(i)])
        columns = torch.tensor([j for i in range(5) for j in range(i)])
        return torch.sigmoid(self.top(torch.cat([x, products[:, rows, columns]], 1)))


@architecture("dlrm_bags", bags, sizes=BATCHES, fixed=FEATURES)
class DlrmBags(nn.Module):
    """As the reference code has it: a list of id lists and a list of offsets for nn.EmbeddingBag."""

    def __init__(self) -> None:
        super().__init__()
        self.emb_l = nn.ModuleList([nn.EmbeddingBag(n, 32, mode="sum") for n in FIELDS])
        self.bot_l, self.top_l = mlp(13, 64, 32), mlp(5 * 32, 64, 1, last=True)

    def forward(self, dense_x: Tensor, lS_i: list[Tensor], lS_o: list[Tensor]) -> Tensor:
        parts = [self.bot_l(dense_x)]
        for table, ids, offsets in zip(self.emb_l, lS_i, lS_o, strict=True):
            parts.append(table(ids, offsets))
        return torch.sigmoid(self.top_l(torch.cat(parts, 1)))


@architecture(
    "ncf",
    lambda d, b, n: {"user": d.ids(200, b), "item": d.ids(300, b)},
    sizes=BATCHES,
    fixed=FEATURES,
    forms=ALL_FORMS,
)
class Ncf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_user_gmf, self.embed_item_gmf = nn.Embedding(200, 16), nn.Embedding(300, 16)
        self.embed_user_mlp, self.embed_item_mlp = nn.Embedding(200, 32), nn.Embedding(300, 32)
        self.mlp = mlp(64, 64, 32, 16)
        self.predict = nn.Linear(32, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        gmf = self.embed_user_gmf(user) * self.embed_item_gmf(item)
        deep = self.mlp(torch.cat((self.embed_user_mlp(user), self.embed_item_mlp(item)), -1))
        return self.predict(torch.cat((gmf, deep), -1)).view(-1)


class FieldTable(nn.Module):
    """One table for all fields: ids get their field's offset added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(FIELDS), dim)
        offsets = torch.tensor((0, *FIELDS[:-1])).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids + self.offsets.unsqueeze(0))


@architecture("deepfm", fields, sizes=BATCHES, fixed=FEATURES, forms=ALL_FORMS)
class DeepFm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bias = FieldTable(8), nn.Parameter(torch.zeros(8))
        self.embedding = FieldTable(16)
        self.deep = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1)
        )

    def forward(self, ids: Tensor) -> Tensor:
        e = self.embedding(ids)
        pairs = 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True)
        wide = (self.linear(ids).sum(1) + self.bias).sum(1, keepdim=True)
        return torch.sigmoid((wide + pairs + self.deep(e.view(-1, 64))).squeeze(1))


@architecture("wide_and_deep", clicks, sizes=BATCHES, fixed=FEATURES)
class WideAndDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({f"field_{k}": nn.Embedding(n, 24) for k, n in enumerate(FIELDS)})
        self.wide, self.deep = nn.Linear(13, 1), mlp(13 + 96, 64, 32, 1, last=True)

    def forward(self, numbers: Tensor, ids: Tensor) -> dict[str, Tensor]:
        looked = [table(ids[:, k]) for k, table in enumerate(self.tables.values())]
        logit = self.wide(numbers) + self.deep(torch.cat([numbers, *looked], -1))
        return {"logit": logit, "probability": logit.sigmoid()}


@architecture("deep_cross", fields, sizes=BATCHES, fixed=FEATURES)
class DeepCross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = FieldTable(16)
        self.crosses = nn.ModuleList([nn.Linear(64, 64) for _ in range(2)])
        self.deep, self.out = mlp(64, 64, 32), nn.Linear(96, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x0 = x = self.table(ids).flatten(1)
        for layer in self.crosses:
            x = x0 * layer(x) + x
        return self.out(torch.cat([x, self.deep(x0)], 1)).sigmoid()


@architecture("autoint", fields, sizes=BATCHES, fixed=FEATURES)
class AutoInt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = FieldTable(32)
        self.attention = nn.ModuleList([nn.MultiheadAttention(32, 2, batch_first=True) for _ in range(2)])
        self.out = nn.Linear(128, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.attention:
            x = functional.relu(layer(x, x, x, need_weights=False)[0] + x)
        return self.out(x.flatten(1))


def visits(draw: Draw, batch: int, length: int) -> Arguments:
    history = draw.ids(200, batch, length, first=1) * draw.mask(batch, length)
    return {"history": history, "target": draw.ids(200, batch, first=1)}


@architecture("interest_network", visits)
class InterestNetwork(nn.Module):
    """DIN: attention of the candidate over what was visited; id 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(200, 32, padding_idx=0)
        self.score, self.top = mlp(128, 32, 1, last=True), mlp(64, 48, 1, last=True)

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        seen, wanted = self.items(history), self.items(target).unsqueeze(1)
        wanted = wanted.expand(-1, seen.size(1), -1)
        scores = self.score(torch.cat([wanted, seen, wanted - seen, wanted * seen], -1)).squeeze(-1)
        scores = scores.masked_fill(history == 0, float("-inf")).softmax(-1)
        pooled = torch.bmm(scores.unsqueeze(1), seen).squeeze(1)
        return self.top(torch.cat([pooled, wanted[:, 0]], -1)).squeeze(-1)


@architecture(
    "sasrec", lambda d, b, n: (d.ids(200, b, n, first=1),), sizes=((2, 10), (3, 15), (1, 6)), forms=ALL_FORMS
)
class SasRec(nn.Module):
    """Items in order: a causal transformer whose output is scored with the input's table."""

    def __init__(self) -> None:
        super().__init__()
        self.item_emb, self.pos_emb = nn.Embedding(201, 48, padding_idx=0), nn.Embedding(20, 48)
        self.attention = nn.MultiheadAttention(48, 2, batch_first=True)
        self.norm, self.last = nn.LayerNorm(48), nn.LayerNorm(48)
        self.ffn = nn.Sequential(nn.Conv1d(48, 48, 1), nn.ReLU(), nn.Conv1d(48, 48, 1))

    def forward(self, log_seqs: Tensor) -> Tensor:
        length = log_seqs.shape[1]
        x = self.item_emb(log_seqs) * 48**0.5 + self.pos_emb(torch.arange(length, device=log_seqs.device))
        causal = ~torch.tril(torch.ones((length, length), dtype=torch.bool, device=log_seqs.device))
        query = self.norm(x)
        x = query + self.attention(query, x, x, attn_mask=causal)[0]
        x = self.last(x + self.ffn(x.transpose(-1, -2)).transpose(-1, -2))
        return x[:, -1] @ self.item_emb.weight.T


@architecture(
    "two_tower",
    lambda d, b, n: {"user": d.ids(300, b), "item": d.ids(400, b), "features": d.floats(b, 12)},
    sizes=BATCHES,
    fixed=FEATURES,
    forms=ALL_FORMS,
)
class TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user_table, self.item_table = nn.Embedding(300, 32), nn.Embedding(400, 32)
        self.user_tower, self.item_tower = mlp(32, 64, 32, last=True), mlp(44, 64, 32, last=True)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def forward(self, user: Tensor, item: Tensor, features: Tensor) -> Tensor:
        u = functional.normalize(self.user_tower(self.user_table(user)), dim=-1)
        i = functional.normalize(self.item_tower(torch.cat([self.item_table(item), features], -1)), dim=-1)
        return u @ i.T / self.temperature
