"""A copy of a model that goes without some of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

DEPTH = 4
"""How many containers deep an attribute of a module is searched for parameters."""


def copy_without(
    model: nn.Module, parameters: Sequence[nn.Parameter]
) -> tuple[nn.Module, list[nn.Parameter]]:
    """A deep copy, and what stands in it for each of the parameters: the same without values.

    Tensors that a forward computed and left on a module, as weight_norm does, lose their history: torch
    copies none that has one.
    """
    stand_ins = [
        nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in parameters
    ]
    memo: dict[int, Any] = {id(computed): computed.detach().clone() for computed in _computed(model)}
    memo.update((id(old), new) for old, new in zip(parameters, stand_ins, strict=True))
    return copy.deepcopy(model, memo), stand_ins


def held_elsewhere(
    model: nn.Module, parameters: Iterable[nn.Parameter]
) -> Iterator[tuple[str, nn.Parameter]]:
    """Where modules hold some of these parameters in attributes, lists, closures: names of the attributes."""
    wanted = {id(parameter): parameter for parameter in parameters}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if name in ("_parameters", "_modules"):
                continue
            for found in _within(value, DEPTH, set()):
                if id(found) in wanted:
                    yield f"{path}.{name}" if path else name, wanted[id(found)]


def _within(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    """`value`, and what containers, objects and closures in it hold; modules are looked at by themselves."""
    if depth < 0 or id(value) in seen or isinstance(value, nn.Module | type | ModuleType | str | bytes):
        return
    seen.add(id(value))
    yield value
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set):
        inner = value
    elif isinstance(value, FunctionType):
        inner = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    elif isinstance(value, Tensor):
        inner = ()
    elif hasattr(value, "__dict__"):
        inner = list(vars(value).values())
    for item in inner:
        yield from _within(item, depth - 1, seen)


def _is_filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Tensors with a history among the attributes and buffers of modules."""
    for module in model.modules():
        for value in (*module.__dict__.values(), *module._buffers.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                    yield tensor
