"""What the zoo knows about an architecture, and the register of all of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = (
    "convolutional",
    "vision",
    "pretrained_vision",
    "text",
    "encoders",
    "decoders",
    "sequence_to_sequence",
    "speech",
    "recommender",
    "graph",
    "recurrent",
    "experts",
    "generative",
    "state_space",
)
"""Files of this package that register architectures."""

ALL_FORMS = ("onnx", "ort", "torchscript", "pt2")

FEATURES = "every axis but the batch is a number of features"
FLATTENED = "a linear layer takes the flattened image"
CONFIGURED = "the model is made for one image size"
STEPS = "the number of steps is a setting of the model"
"""Reasons for `fixed` that several rows have."""


class Draw:
    """Random example values from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def floats(self, *shape: int) -> Tensor:
        """Normal values: float32[shape]."""
        return torch.randn(shape, generator=self.generator)

    def unit(self, *shape: int) -> Tensor:
        """Uniform values in [0, 1): float32[shape]."""
        return torch.rand(shape, generator=self.generator)

    def ids(self, n: int, *shape: int, first: int = 0) -> Tensor:
        """Uniform integers: int64[shape], each in [first, n)."""
        return torch.randint(first, n, shape, generator=self.generator)

    def mask(self, batch: int, length: int) -> Tensor:
        """1 for a token, 0 for padding: int64[batch, length]. Row k is padded by k places, on the right."""
        kept = torch.clamp(length - torch.arange(batch), min=1)
        return (torch.arange(length) < kept[:, None]).long()


Arguments = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One row of the zoo.

    build: makes the dense model; it is called with torch's seed set to 0.
    inputs: arguments of forward for one (batch, length) of `sizes`, in order or by name.
    sizes: the first is the example of the export, the others are tried on the exported file, which
        must take three of them.
    forms: targets of `roast-export` that are tried.
    flags: further arguments of the command line, for every form.
    fixed: why the architecture takes one length, where its sizes differ in their batch alone.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Draw, int, int], Arguments]
    sizes: Sequence[tuple[int, int]] = ((2, 8), (3, 12), (1, 5))
    forms: Sequence[str] = ("onnx",)
    flags: Sequence[str] = ()
    ratio: float = 4
    min_params: int = 1024
    save: dict[str, Any] = field(default_factory=dict)
    fixed: str | None = None


REGISTER: dict[str, Architecture] = {}


def architecture(
    name: str, inputs: Callable[[Draw, int, int], Arguments], **options: Any
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """A decorator that registers a class or a function that makes a model. options: as Architecture."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        assert name not in REGISTER, f"two architectures are called {name}"
        family = build.__module__.rpartition(".")[2].replace("_", " ")
        REGISTER[name] = Architecture(name, family, build, inputs, **options)
        return build

    return register


def architectures() -> dict[str, Architecture]:
    """All of them by name, in the order of the files."""
    for family in FAMILIES:
        importlib.import_module(f"tests.zoo.{family}")
    return REGISTER
