"""Tensors in storage of their own, so that a file holds what it shows and nothing behind it.

A slice is a view: torch writes the whole storage behind it. The first two rows of a data set would take
all other rows along.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree


def own_inputs(inputs: Any) -> Any:
    """Example inputs whose tensors share storage with nothing, and not with each other.

    They are contiguous and need no gradient. One tensor that was given twice becomes two: a trace would
    otherwise take the two inputs for one.
    """

    def own(leaf: Any) -> Any:
        return leaf.detach().clone(memory_format=torch.contiguous_format) if _is_plain(leaf) else leaf

    return pytree.tree_map(own, inputs)


def own_program(program: ExportedProgram) -> ExportedProgram:
    """The program, with every parameter, buffer and constant in storage of its own size.

    Two names of one tensor stay one tensor.
    """
    copies: dict[Any, Tensor] = {}
    for name, tensor in program.state_dict.items():
        if _is_view(tensor):
            copy = _copied(tensor, copies)
            parameter = isinstance(tensor, torch.nn.Parameter)
            program.state_dict[name] = (
                torch.nn.Parameter(copy, requires_grad=tensor.requires_grad) if parameter else copy
            )
    for name, tensor in program.constants.items():
        if _is_view(tensor):
            program.constants[name] = _copied(tensor, copies)
    return program


def _copied(tensor: Tensor, copies: dict[Any, Tensor]) -> Tensor:
    key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    return copies.setdefault(key, tensor.detach().clone(memory_format=torch.contiguous_format))


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _is_view(value: Any) -> bool:
    if not _is_plain(value) or value.device.type == "meta":
        return False
    return bool(value.untyped_storage().nbytes() != value.numel() * value.element_size())
