"""Models that are called in unusual ways; test_signatures.py takes each from `save` to a file.

Each has one large layer, and a function that makes its arguments of a seed: (args, kwargs), in the order of
the signature, so that the tensors among them are the file's inputs in that order.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WIDTH = 64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (3, WIDTH)), generator=torch.Generator().manual_seed(seed))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor | None


@dataclass
class Batch:
    x: Tensor
    weight: float
    more: Tensor | None = None


class Kind(enum.Enum):
    ADD = "add"
    MULTIPLY = "multiply"


class Constants(Base):
    def forward(self, x, mask=None, scale=1.0, steps=1, mode="relu", flip=False, dtype=None, kind=Kind.ADD):  # type: ignore[no-untyped-def]
        y = self.layer(x if mask is None else x * mask)
        for _ in range(steps):
            y = torch.tanh(y) if mode == "tanh" else torch.relu(y)
        y = -y if flip else y
        y = y * scale if kind is Kind.MULTIPLY else y + scale
        return y.to(dtype) if dtype is not None else y


class Stars(Base):
    def forward(self, *xs: Tensor, **named: Tensor) -> Tensor:
        return self.layer(sum(xs)) * named["gain"] + named["shift"]  # type: ignore[arg-type]


class Optional(Base):
    def forward(self, x: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        y = self.layer(x)
        return y + (0 if a is None else a) - (0 if b is None else b)


class Kinds(Base):
    """Positional only, by name only, and words that mean something elsewhere."""

    def forward(self, input: Tensor, /, roast_memory: Tensor, *, output: Tensor, args: Tensor) -> Tensor:  # noqa: A002
        return self.layer(input) * roast_memory + output - args.sum()


class Tuples(Base):
    def forward(self, pair: Pair, batch: Batch) -> Pair:
        assert batch.more is not None
        return Pair(self.layer(pair.left) * batch.weight, batch.x - batch.more)


class Made(Base):
    """A dataclass comes back, with a number and nothing in it."""

    def forward(self, x: Tensor) -> Batch:
        return Batch(self.layer(x), 0.5, None)


class Keys(Base):
    """Names that are words of Python, hold dots and spaces, begin with a digit, or meet under one name."""

    def forward(self, x: dict[str, Tensor], x_a_b: Tensor) -> dict[str, Tensor]:
        y = self.layer(x["class"]) + x["a.b"] - x["with space"] * x["1st"] + x_a_b
        return {"class": y, "a.b": y + 1, "with space": y * 2, "x_a_b": y - 1, "0": y.sum()}


class Nested(Base):
    def forward(self, parts: list[Any]) -> dict[str, Any]:
        first, (second, rest) = parts
        y = self.layer(first["x"])
        return {"states": [(y, second), {"deep": [y * rest]}], "nothing": None, "last": (y.mean(),)}


class Same(Base):
    """An input that is an output, an output twice, a view of it, a parameter, nothing, text."""

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        y = self.layer(x)
        return x, y, y, y.view(-1), None, "text", 3, self.layer.bias


class Containers(Base):
    def forward(self, ordered: Any, queue: Any, default: Any) -> Any:
        return OrderedDict(y=self.layer(ordered["x"]), z=queue[0] + queue[1] * default["k"])


class Whole(Base):
    """Inputs without dimensions, and of integers and booleans."""

    def forward(self, x: Tensor, times: Tensor, on: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, self.layer(x) * times, x) + on


class Twice(Base):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(a) * b


class Swapped(Base):
    """An output has an input's name."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"y": self.layer(x), "x": y * 2}


class Normed(nn.Module):
    """A model of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.norm = (
            nn.Embedding(64, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(torch.relu(self.layer(self.table(ids))))


def half(dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: Normed().to(dtype)


def ids(seed: int) -> Tensor:
    return torch.randint(0, 64, (3, 5), generator=torch.Generator().manual_seed(seed))


Call = tuple[tuple[Any, ...], dict[str, Any]]
SIGNATURES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Call], list[str]]] = {
    "constants": (
        Constants,
        lambda s: ((draw(s), None, 3.0, 2, "tanh", True, torch.float64), {"kind": Kind.MULTIPLY}),
        ["x"],
    ),
    "stars": (
        Stars,
        lambda s: ((draw(s), draw(s + 1), draw(s + 2)), {"gain": draw(s + 3), "shift": draw(s + 4)}),
        ["xs_0", "xs_1", "xs_2", "gain", "shift"],
    ),
    "optional": (Optional, lambda s: ((draw(s),), {"b": draw(s + 1)}), ["x", "b"]),
    "kinds": (
        Kinds,
        lambda s: ((draw(s), draw(s + 1)), {"output": draw(s + 2), "args": draw(s + 3)}),
        ["input", "roast_memory", "output", "args"],
    ),
    "tuples": (
        Tuples,
        lambda s: ((Pair(draw(s), None), Batch(draw(s + 1), 2.0, draw(s + 2))), {}),
        ["pair_left", "batch_x", "batch_more"],
    ),
    "made": (Made, lambda s: ((draw(s),), {}), ["x"]),
    "keys": (
        Keys,
        lambda s: (
            (
                {"class": draw(s), "a.b": draw(s + 1), "with space": draw(s + 2), "1st": draw(s + 3)},
                draw(s + 4),
            ),
            {},
        ),
        ["x_class", "x_a_b", "x_with_space", "x_1st", "x_a_b_1"],
    ),
    "nested": (
        Nested,
        lambda s: (([{"x": draw(s)}, (draw(s + 1), draw(s + 2))],), {}),
        ["parts_0_x", "parts_1_0", "parts_1_1"],
    ),
    "same": (Same, lambda s: ((draw(s),), {}), ["x"]),
    "containers": (
        Containers,
        lambda s: (
            (
                OrderedDict(x=draw(s)),
                deque([draw(s + 1), draw(s + 2)]),
                defaultdict(list, k=draw(s + 3)),
            ),
            {},
        ),
        ["ordered_x", "queue_0", "queue_1", "default_k"],
    ),
    "whole": (
        Whole,
        lambda s: ((draw(s), torch.tensor(s + 2), torch.tensor(s % 2 == 0), draw(s + 1) > 0), {}),
        ["x", "times", "on", "where"],
    ),
    "sliced": (
        Twice,
        lambda s: ((draw(s, 3, 128)[:, ::2], draw(s, 1, WIDTH).expand(3, WIDTH)), {}),
        ["a", "b"],
    ),
    "gradients": (Twice, lambda s: ((draw(s).requires_grad_(), draw(s + 1, WIDTH, 3).t()), {}), ["a", "b"]),
    "swapped": (Swapped, lambda s: ((draw(s), draw(s + 1)), {}), ["x", "y"]),
    "float16": (half(torch.float16), lambda s: ((ids(s),), {}), ["ids"]),
    "bfloat16": (half(torch.bfloat16), lambda s: ((ids(s),), {}), ["ids"]),
}
"""The model, its arguments by a seed, and the names of the file's inputs."""
