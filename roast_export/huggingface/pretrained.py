"""What a compressed transformers model does otherwise than a dense one.

`compress` hands its result to `adopt`, which gives every PreTrainedModel in it a class of its own: the
same name, the same methods, and the ones below before them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from roast_export.errors import InputError
from roast_export.huggingface.stored import complete_state, layout_of, stored_state
from roast_export.modules import virtual_weights


class _Pretrained:
    """Methods of PreTrainedModel that have to know of virtual weights."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, state_dict: Any = None, **options: Any
    ) -> None:
        """As in transformers. A given `state_dict` is passed over: the model's own values are saved."""
        model = cast(Any, self)
        if getattr(model, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, *args, state_dict=state_dict, **options)  # type: ignore[misc]
            return
        layout = layout_of(model)
        model.config.quantization_config = layout.to_dict()
        # Renames and merges of transformers are for names of dense weights.
        options["save_original_format"] = False
        state = stored_state(model, layout)
        super().save_pretrained(save_directory, *args, state_dict=state, **options)  # type: ignore[misc]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Takes what `save_pretrained` stored too, as Trainer gives it back on resuming."""
        state = complete_state(state_dict, layout_of(cast(nn.Module, self)))
        tied: dict[str, str] = getattr(self, "all_tied_weights_keys", None) or {}
        state |= {a: state[b] for a, b in tied.items() if a not in state and b in state}
        return super().load_state_dict(state, *args, **options)  # type: ignore[misc]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as layers see them; an array of float16 makes no float16 model."""
        named = cast(nn.Module, self).named_parameters()
        own = (p.dtype for name, p in named if p.is_floating_point() and ".virtual." not in f".{name}")
        return next(own, torch.float32)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Without the virtual ones, which `adopt` took out: tied virtual weights are one weight already."""
        return dict(cast(Any, self).all_tied_weights_keys)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **options: Any) -> Any:
        """Raises InputError where a table that would grow is virtual."""
        model = cast(Any, self)
        if new_num_tokens is None and not args and not options:
            return model.get_input_embeddings()
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            if table is not None and hasattr(table, "virtual"):
                name = next(path for path, module in model.named_modules() if module is table)
                raise InputError(
                    f"{name}.weight is virtual: its rows are read from the shared array, and no row can be "
                    "added; call resize_token_embeddings on the dense model, then compress it"
                )
        return super().resize_token_embeddings(new_num_tokens, *args, **options)  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self).__mro__[2],), self.__dict__


_made: dict[type, type] = {}


def _class_for(base: type) -> type:
    """The class of a compressed `base`. Its name stays: transformers writes it into config.json."""
    if base not in _made:
        body = {"__module__": base.__module__, "__qualname__": base.__qualname__}
        _made[base] = type(base.__name__, (_Pretrained, base), body)
    return _made[base]


def _rebuild(base: type) -> Any:
    return object.__new__(_class_for(base))


def adopt(model: nn.Module) -> nn.Module:
    """Give every transformers model in `model` the methods above, in place. Other models stay as they are."""
    if "transformers" not in sys.modules:
        return model
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel) and not isinstance(module, _Pretrained):
            module.__class__ = _class_for(type(module))
            virtual = virtual_weights(module)
            tied = getattr(module, "all_tied_weights_keys", None) or {}
            module.all_tied_weights_keys = {
                a: b for a, b in tied.items() if a not in virtual and b not in virtual
            }
    return model


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str], **options: Any) -> None:
    """Write a compressed transformers model as a folder; `model.save_pretrained` does the same.

    options: as `PreTrainedModel.save_pretrained` takes them.

    Raises:
        InputError: this is no transformers model, or nothing in it is virtual.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"{type(model).__name__} is no transformers model; roast_export.save takes any model"
        )
    if not virtual_weights(model):
        raise InputError("nothing in this model is virtual; compress it first, or use model.save_pretrained")
    cast(Any, adopt(model)).save_pretrained(folder, **options)
