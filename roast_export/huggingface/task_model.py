"""A transformers model as a module of one task: named tensors in, a dict of tensors out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class TaskModel(nn.Module):
    """What every task without a cache needs: the outputs of its name, and nothing else."""

    def __init__(self, model: nn.Module, outputs: Sequence[str], **constants: Any) -> None:
        """constants: arguments of the model that are the same in every call, such as use_cache=False."""
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.constants = {name: value for name, value in constants.items() if name in parameters_of(model)}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        found = self.model(
            **given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                pixel_values=pixel_values,
                input_values=input_values,
                input_features=input_features,
            ),
            **self.constants,
            return_dict=True,
        )
        return {name: found[name] for name in self.outputs}


def given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def parameters_of(model: nn.Module) -> set[str]:
    """Names of the arguments that the model's forward takes."""
    return set(inspect.signature(model.forward).parameters)
