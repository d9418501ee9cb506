"""What holds tensors among arguments and outputs: lists, dicts, NamedTuples, dataclasses, pytree nodes."""

from __future__ import annotations

import copy
import enum
from collections import deque
from collections.abc import Mapping as Lookup
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

CONSTANTS = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.SymInt, torch.SymFloat, torch.SymBool, slice, range, type(Ellipsis),
)  # fmt: skip
"""What is no tensor, and holds none."""


def items_of(value: Any) -> list[tuple[Any, Any]] | None:
    """(key, item) of what a container holds; None if it is no container known here."""
    if isinstance(value, Lookup):
        return list(value.items())
    if _is_named_tuple(value):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple | deque):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if type(value) in pytree.SUPPORTED_NODES:
        return list(enumerate(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    return None


def with_items(value: Any, parts: list[tuple[Any, Any]]) -> Any:
    """A container like `value` that holds other items."""
    items = [item for _, item in parts]
    if isinstance(value, Lookup):
        made = copy.copy(value)
        for key, item in parts:
            made[key] = item  # type: ignore[index]
        return made
    if _is_named_tuple(value):
        return type(value)(*items)
    if isinstance(value, list | tuple | deque):
        return type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        alike = copy.copy(value)
        for key, item in parts:
            object.__setattr__(alike, key, item)
        return alike
    node = pytree.SUPPORTED_NODES[type(value)]
    return node.unflatten_fn(items, node.flatten_fn(value)[1])


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")
