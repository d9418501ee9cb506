"""Networks on graphs and point sets. An input's "batch" is its number of nodes, its "length" of edges."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, Arguments, Draw, architecture

SIZES = ((10, 24), (14, 31), (6, 9))


def graph(draw: Draw, nodes: int, edges: int) -> Arguments:
    return draw.floats(nodes, 32), draw.ids(nodes, 2, edges)


@architecture("gcn", graph, sizes=SIZES, forms=ALL_FORMS)
class Gcn(nn.Module):
    """Kipf and Welling's, by index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64, bias=False), nn.Linear(64, 40, bias=False)

    def spread(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        ones = torch.ones(edge_index.shape[1], dtype=x.dtype)
        degree = torch.ones(x.shape[0], dtype=x.dtype).index_add(0, target, ones)
        norm = degree.rsqrt()
        weights = (norm[source] * norm[target]).unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, target, x[source] * weights) + x * (norm**2).unsqueeze(-1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = functional.relu(self.spread(self.first(x), edge_index))
        return self.spread(self.second(x), edge_index)


@architecture("gat", graph, sizes=SIZES, forms=ALL_FORMS)
class Gat(nn.Module):
    """Attention over edges, normalised with scatter operations."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(32, 64, bias=False)
        self.att_src, self.att_dst = nn.Parameter(torch.randn(4, 16)), nn.Parameter(torch.randn(4, 16))
        self.out = nn.Linear(64, 20)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        nodes = x.size(0)
        h = self.lin(x).view(-1, 4, 16)
        source, target = edge_index
        score = (h * self.att_src).sum(-1)[source] + (h * self.att_dst).sum(-1)[target]
        score = functional.leaky_relu(score, 0.2)
        index = target.unsqueeze(-1).expand_as(score)
        top = torch.full((nodes, 4), -1e30).scatter_reduce(0, index, score, "amax", include_self=True)
        weight = (score - top[target]).exp()
        total = torch.zeros(nodes, 4).scatter_add(0, index, weight)
        message = h[source] * (weight / (total[target] + 1e-16)).unsqueeze(-1)
        gathered = torch.zeros(nodes, 4, 16).index_add(0, target, message)
        return self.out(functional.elu(gathered.flatten(1)))


@architecture("graphsage", graph, sizes=SIZES, forms=ALL_FORMS)
class GraphSage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin_l = nn.ModuleList([nn.Linear(32, 48), nn.Linear(48, 48)])
        self.lin_r = nn.ModuleList([nn.Linear(32, 48, bias=False), nn.Linear(48, 48, bias=False)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        for left, right in zip(self.lin_l, self.lin_r, strict=True):
            total = x.new_zeros(x.shape).scatter_add_(0, target[:, None].expand(-1, x.shape[1]), x[source])
            count = x.new_zeros(x.shape[0]).scatter_add_(0, target, x.new_ones(target.shape[0]))
            x = left(total / count.clamp(min=1).unsqueeze(-1)) + right(x)
            x = functional.normalize(x.relu(), p=2.0, dim=-1)
        return x


def molecules(draw: Draw, nodes: int, edges: int) -> Arguments:
    return {
        "atoms": draw.ids(20, nodes),
        "bonds": draw.ids(nodes, 2, edges),
        "graph_of": torch.sort(draw.ids(3, nodes)).values,
    }


@architecture("gin", molecules, sizes=SIZES)
class Gin(nn.Module):
    """Isomorphism network over molecules; three graphs are pooled apart."""

    def __init__(self) -> None:
        super().__init__()
        self.atom = nn.Embedding(64, 48)
        self.mlps = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(48, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 48))
                for _ in range(2)
            ]
        )
        self.eps = nn.Parameter(torch.zeros(2))
        self.out = nn.Linear(48, 12)

    def forward(self, atoms: Tensor, bonds: Tensor, graph_of: Tensor) -> Tensor:
        x = self.atom(atoms)
        for k, part in enumerate(self.mlps):
            summed = torch.zeros_like(x).index_add_(0, bonds[1], x[bonds[0]])
            x = part((1 + self.eps[k]) * x + summed).relu()
        return self.out(torch.zeros(3, 48).index_add(0, graph_of, x))


@architecture("dense_graph", lambda d, b, n: (d.floats(b, n, 32), d.unit(b, n, n) > 0.6))
class DenseGraph(nn.Module):
    """A batch of graphs as adjacency matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ModuleList([nn.Linear(32, 64), nn.Linear(64, 64)])
        self.readout = nn.Linear(64, 16)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        a = adjacency.float() + torch.eye(x.shape[1])
        a = a / a.sum(-1, keepdim=True)
        for layer in self.w:
            x = torch.relu(layer(a @ x))
        return self.readout(x.max(1).values)


@architecture(
    "pointnet", lambda d, b, n: (d.floats(b, 3, n),), sizes=((2, 32), (3, 50), (1, 20)), forms=ALL_FORMS
)
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.ReLU())
        self.fc_t = nn.Linear(64, 9)
        self.points = nn.Sequential(
            nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 128, 1), nn.BatchNorm1d(128)
        )
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 40))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.size(0)
        t = self.fc_t(torch.max(self.transform(x), 2)[0])
        t = t.view(-1, 3, 3) + torch.eye(3).repeat(batch, 1, 1)
        x = torch.bmm(x.transpose(2, 1), t).transpose(2, 1)
        pooled = torch.max(self.points(x), 2, keepdim=True)[0].view(-1, 128)
        return functional.log_softmax(self.head(pooled), dim=-1), t


@architecture(
    "deep_sets", lambda d, b, n: {"points": d.floats(b, n, 16), "mask": d.mask(b, n).bool()}, forms=ALL_FORMS
)
class DeepSets(nn.Module):
    """Two inputs share the length of the set; masked elements do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64))
        self.rho = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, points: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).to(points.dtype)
        return self.rho((self.phi(points) * weights).sum(1) / weights.sum(1).clamp(min=1e-6))


@architecture("set_transformer", lambda d, b, n: (d.floats(b, n, 32),))
class SetTransformer(nn.Module):
    """Induced attention: a learned query set stands for the points."""

    def __init__(self) -> None:
        super().__init__()
        self.induced, self.seed = nn.Parameter(torch.randn(1, 8, 64)), nn.Parameter(torch.randn(1, 2, 64))
        self.project = nn.Linear(32, 64)
        self.first = nn.MultiheadAttention(64, 4, batch_first=True)
        self.second = nn.MultiheadAttention(64, 4, batch_first=True)
        self.pool = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        inner, _ = self.first(self.induced.repeat(x.size(0), 1, 1), x, x)
        x, _ = self.second(x, inner, inner)
        return self.pool(self.seed.expand(x.size(0), -1, -1), x, x)[0]
