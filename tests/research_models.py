"""Models as research code leaves them: the same class names, attributes, keys, dtypes and draws.

Written from docs/checkpoints.md, not from the research code; tests/test_from_fakeroast.py shows that
the tables are those that the research code makes (tests/vectors/research.json).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = 2038074743
DRAWN = 1 << 29


def coefficients(seed: int, bits: int = 64) -> list[int]:
    if bits == 64:
        drawn = torch.randint(1, P // 2 - 1, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
    else:
        drawn = [int(x) % (P // 2 - 2) + 1 for x in raw32(seed, 4)]
    return [2 * x + 1 for x in drawn]


def raw32(seed: int, n: int) -> list[int]:
    """The raw 32-bit stream, as numpy's legacy generator gives it."""
    return np.frombuffer(np.random.RandomState(seed).bytes(4 * n), "<u4").tolist()


def index_table(
    kind: str,
    layer: str,
    shape: tuple[int, ...],
    n_memory: int,
    seed: int,
    offset: int = 0,
    block: tuple[int, int] = (16, 8),
    bits: int = 64,
    coefs: list[int] | None = None,
) -> Tensor:
    """IDX: int64[shape]. block: (block_k, block_n); an embedding takes the second."""
    if kind == "random":
        if bits == 64:
            drawn = torch.randint(0, DRAWN, shape, generator=torch.Generator().manual_seed(seed))
            return drawn % n_memory
        drawn = torch.tensor(raw32(seed, math.prod(shape)), dtype=torch.int64).reshape(shape)
        return drawn % DRAWN % n_memory
    a0, a1, a2, _ = coefs or coefficients(seed, bits)
    if kind in ("hashednet", "pareto"):
        place = torch.arange(math.prod(shape)) + offset
        x, inner = (place, 0 * place) if kind == "hashednet" else (place // n_memory, place % n_memory)
        return (((x * a0 + x * x * a1 + a2) % P % n_memory + inner) % n_memory).reshape(shape)
    matrix = torch.arange(math.prod(shape)).reshape(shape[0], -1)
    rows, cols = matrix.shape if layer == "embedding" else (matrix.shape[1], matrix.shape[0])
    height, width = (1, block[1]) if layer == "embedding" else block
    r, c = torch.arange(rows)[:, None], torch.arange(cols)[None, :]
    start = ((r // height + offset) * a0 + (c // width + offset + rows) * a1 + a2) % P
    view = start % (n_memory - height * width) + r % height * width + c % width
    return (view if layer == "embedding" else view.T).reshape(shape).contiguous()


def sign_table(shape: tuple[int, ...], seed: int, skip: int = 0) -> Tensor:
    """G: float32[shape] of +-1, drawn after `skip` 32-bit draws."""
    generator = torch.Generator().manual_seed(seed)
    torch.randint(0, 2, (skip,), generator=generator)
    return torch.randint(0, 2, shape, dtype=torch.float, generator=generator) * 2 - 1


class FakeRoast(nn.Module):
    """The helper of every FakeRoast layer: array, indices, signs."""

    def __init__(self, layer, shape, weight, is_global, kind, seed, offset, **options):
        super().__init__()
        self.weight, self.wsize = weight, weight.numel()
        self.W_shape, self.seed, self.is_global, self.init_scale = shape, seed, is_global, 0.04
        bits = options.get("bits", 64)
        table = index_table(kind, layer, shape, self.wsize, seed, offset, **options)
        skip = table.numel() * (bits // 32) if kind == "random" else 0
        self.IDX = nn.Parameter(table, requires_grad=False)
        self.G = nn.Parameter(sign_table(shape, seed, skip), requires_grad=False)

    def forward(self):
        return self.weight[self.IDX] * self.G


class _Layer(nn.Module):
    def _help(self, layer, shape, weight, is_global, kind, seed, offset, scale, bias, options):
        if weight is None:
            weight = nn.Parameter(torch.randn(max(200, math.prod(shape) // 10)) * 0.04)
        mode = "random" if kind == "random" else "mapper"
        self.matrix_mode, self.seed, self.is_global, self.scale = mode, seed, is_global, scale
        self.WHelper = FakeRoast(layer, shape, weight, is_global, kind, seed, offset, **options)
        self.bias = nn.Parameter(torch.randn(shape[0]) * 0.1) if bias else None


class FakeRoastLinear(_Layer):
    def __init__(
        self, i, o, weight=None, *, kind="random", seed=1024, offset=0, scale=0.7, bias=True, **options
    ):
        super().__init__()
        self.idim, self.odim = i, o
        is_global = weight is not None
        self._help("linear", (o, i), weight, is_global, kind, seed, offset, scale, bias, options)

    def forward(self, x):
        return F.linear(x, self.WHelper() * self.scale, self.bias)


class FakeRoastConv2d(_Layer):
    def __init__(
        self, i, o, kernel, weight=None, *, kind="random", seed=2023, offset=0, scale=0.7, bias=True,
        stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", **options,
    ):  # fmt: skip
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.in_channels, self.out_channels, self.kernel_size = i, o, kernel
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.padding_mode, self.is_bias = padding_mode, bias
        shape = (o, i // groups, *kernel)
        self._help("conv", shape, weight, weight is not None, kind, seed, offset, scale, bias, options)

    def forward(self, x):
        w = self.WHelper() * self.scale
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class FakeRoastEmbedding(_Layer):
    def __init__(
        self, rows, dim, weight=None, *, kind="random", seed=2023, offset=0, scale=0.7, padding_idx=None,
        max_norm=None, **options,
    ):  # fmt: skip
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, dim
        self.padding_idx, self.max_norm = padding_idx, max_norm
        shape = (rows, dim)
        self._help("embedding", shape, weight, weight is not None, kind, seed, offset, scale, False, options)
        del self.seed

    def forward(self, x):
        return self.WHelper.weight[self.WHelper.IDX[x]] * self.WHelper.G[x] * self.scale


class FakeRoastLSTM(nn.Module):
    def __init__(self, i, hidden, weight=None, *, kind="random", seed=2023, **options):
        super().__init__()
        self.input_dim, self.n_hidden, self.scale = i, hidden, 1.3
        weight = nn.Parameter(torch.randn(200) * 0.2) if weight is None else weight
        self.W = nn.Parameter(torch.randn(i, 4 * hidden) * 0.2)
        self.WHelper2 = FakeRoast("linear", (hidden, 4 * hidden), weight, False, kind, seed, 0, **options)
        self.bias = nn.Parameter(torch.randn(4 * hidden) * 0.1)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], self.n_hidden)
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (x[:, t] @ self.W + h @ self.WHelper2() + self.bias).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


class Net(nn.Module):
    """A version 2 model: one array for an embedding, a convolution and two layers, offsets running.

    The research roaster walks attributes by name: conv, first, last, table; then their children.
    """

    def __init__(self, kind="pareto", slots=700, bits=64, *, local=False):
        super().__init__()
        array = None if local else nn.Parameter(torch.randn(slots) * 0.04)
        self.roast_array = array
        options = {"kind": kind} if kind == "pareto" else {"kind": kind, "bits": bits}
        sizes = {"conv": 8 * 3 * 9, "first": 40 * 24, "last": 17 * 40}
        offsets, total = {}, 0
        for name, size in sizes.items():
            offsets[name], total = total, total + size
        # Registered in another order than they were compressed in.
        self.table = FakeRoastEmbedding(50, 24, array, offset=total, scale=1.1, **options)
        self.first = FakeRoastLinear(24, 40, array, seed=1026, offset=offsets["first"], scale=0.9, **options)
        self.conv = FakeRoastConv2d(
            3, 8, 3, array, seed=1025, offset=offsets["conv"], scale=0.5, padding=1, stride=2, **options
        )
        self.norm = nn.LayerNorm(40)
        self.last = FakeRoastLinear(40, 17, array, seed=1027, offset=offsets["last"], bias=False, **options)

    def forward(self, ids, image):
        x = torch.relu(self.norm(self.first(self.table(ids).mean(1))))
        return self.last(x) + self.conv(image).mean((1, 2, 3))[:, None]


class DenseNet(nn.Module):
    """The ordinary model that `Net` was made from: what a factory builds for a bare state dict."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 24)
        self.first = nn.Linear(24, 40)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.LayerNorm(40)
        self.last = nn.Linear(40, 17, bias=False)

    forward = Net.forward


SCALES = {"table": 1.1, "first": 0.9, "conv": 0.5, "last": 0.7}
NET_FACTS = {"layers": {name: {"scale": scale} for name, scale in SCALES.items()}}


def net_inputs(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 50, (batch, 6), generator=generator)
    return {"ids": ids, "image": torch.randn(batch, 3, 8, 8, generator=generator)}


class RzLinear(nn.Module):
    """The Triton layer's attributes; forward is the reference in plain torch."""

    def __init__(self, i, o, weight, *, seed=1024, init_factor=0.25, bias=True):
        super().__init__()
        self._input_dim, self._output_dim, self._seed, self._init_factor = i, o, seed, init_factor
        self._hashed_weight = weight
        drawn = torch.randint(0, 45007, (7,), generator=torch.Generator().manual_seed(seed))
        self._random_numbers = torch.cat([torch.tensor([45007]), drawn]).to(torch.int32)
        self._bias = nn.Parameter(torch.randn(o) * 0.1) if bias else None

    def dense(self):
        p, r1, r2, r3, r4, r5, _, r7 = self._random_numbers.tolist()
        r, c = torch.arange(self._input_dim)[:, None], torch.arange(self._output_dim)[None, :]
        i, j = r // 32, c // 64
        start = (i * r3 + j * r2 + r1) % p * p + (i * r7 + j * r5 + r4) % p
        return self._hashed_weight[start % (len(self._hashed_weight) - 2048) + r % 32 * 64 + c % 64]

    def forward(self, x):
        y = (x @ self.dense()) * self._init_factor
        return y if self._bias is None else y + self._bias


def robe_rows(ids, weight, numbers, offset, chunk, dim):
    r0, r1, r2, r3 = (int(x) for x in numbers[:4])
    col = torch.arange(dim)
    start = ((ids[..., None] + offset) * r3 + col // chunk * r2 + r1) % r0 % (len(weight) - chunk + 1)
    return weight[start + col % chunk]


def robe_numbers(seed: int, n: int) -> nn.Parameter:
    drawn = np.random.RandomState(seed).randint(0, P, n)
    return nn.Parameter(torch.tensor([P, *drawn.tolist()]), requires_grad=False)


class HashedEmbeddingBag(nn.Module):
    """ROBE's GPU class; its kernel is replaced by plain torch."""

    def __init__(self, rows, dim, _weight, val_offset, *, seed=1024, uma_chunk_size=1, padding_idx=None):
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, dim
        self.mode, self.norm, self.val_offset = "sum", None, val_offset
        self.uma_chunk_size, self.padding_idx = uma_chunk_size, padding_idx
        self.hashed_weight = _weight
        self.weight = _weight
        self.random_numbers = robe_numbers(seed, 50)

    def forward(self, indices, offsets=None):
        rows = robe_rows(
            indices, self.weight, self.random_numbers, self.val_offset or 0, self.uma_chunk_size,
            self.embedding_dim,
        )  # fmt: skip
        if self.padding_idx is not None:
            rows = rows * (indices != self.padding_idx)[..., None]
        if offsets is None:
            return rows
        ends = [*offsets.tolist()[1:], len(indices)]
        return torch.stack([rows[a:b].sum(0) for a, b in zip(offsets.tolist(), ends, strict=True)])


class HashedEmbeddingCPU(nn.Module):
    """UMA's CPU class: Z stands in its helper tables."""

    def __init__(self, rows, dim, _weight, val_offset, seed=1024, chunk=1):
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, dim
        self.val_offset, self.seed, self.weight = val_offset, seed, _weight
        self.random_numbers = robe_numbers(seed, 10)
        col = torch.arange(dim)
        tables = (col // chunk, col % chunk, torch.full((dim,), int(self.random_numbers[3])))
        names = ("helper_Eidx_base", "helper_Eidx_offset", "helper_E1sR")
        for name, table in zip(names, tables, strict=True):
            setattr(self, name, nn.Parameter(table, requires_grad=False))

    def forward(self, indices):
        chunk = int(self.helper_Eidx_offset.max()) + 1
        return robe_rows(
            indices, self.weight, self.random_numbers, self.val_offset, chunk, self.embedding_dim
        )


class HashLinear(nn.Module):
    """The HashedNets port: an index table that is an attribute, signs and bias hashed as well."""

    def __init__(self, i, o, slots):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.h_weight = nn.Parameter(torch.randn(slots, generator=generator))
        self.h_bias = nn.Parameter(torch.randn(4, generator=generator))
        self.idxW = torch.randint(0, slots, (o, i), generator=generator)
        self.idxB = torch.randint(0, 4, (o,), generator=generator)
        signs = torch.randint(0, 2, (o, i), generator=generator) * 2.0 - 1
        self.xiW = nn.Parameter(signs, requires_grad=False)
        self.xiB = nn.Parameter(signs[:, 0].clone(), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.h_weight[self.idxW] * self.xiW, self.h_bias[self.idxB] * self.xiB)
