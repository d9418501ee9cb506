"""Folders of transformers models, dense or compressed, as modules.

transformers calls a plugin for the `quant_method` in config.json; ours makes the modules virtual before
the weights are loaded. So `AutoModel.from_pretrained` of transformers reads our folders too, after
`register()`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from roast_export.errors import LoadError
from roast_export.huggingface.folder import Folder, open_folder
from roast_export.huggingface.pretrained import adopt
from roast_export.huggingface.stored import MEMORY, METHOD, RECORD, Layout, entry
from roast_export.mapping import Mapping
from roast_export.modules import VirtualWeight, install, read_extra_state


def from_pretrained(
    folder: str | os.PathLike[str], *, trust: bool = False, attention: str = "eager", **options: Any
) -> nn.Module:
    """The model in a folder with config.json and model.safetensors, on the CPU and in evaluation mode.

    trust: weights in pickled files (pytorch_model.bin) may be opened too.
    attention: `attn_implementation` of transformers. With "eager" a row whose mask is empty has the same
        values in every runtime; with "sdpa" PyTorch gives such rows zeros and exported graphs do not.
    options: as `PreTrainedModel.from_pretrained` takes them (`dtype=`, `device_map=`).

    Raises:
        LoadError: there is no such folder, it is damaged, its model needs code of its own, or weights are
            missing that transformers would draw at random.
    """
    opened = open_folder(Path(folder))
    return load_folder(opened, trust=trust, attention=attention, **options)


def load_folder(folder: Folder, *, trust: bool, attention: str, **options: Any) -> nn.Module:
    """`from_pretrained` of a folder that has been looked into."""
    register()
    cls = folder.model_class()
    folder.check_weights(trust)
    try:
        model, info = cls.from_pretrained(
            folder.path,
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=None if trust else True,
            **options,
        )
    except LoadError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise LoadError(
            f"{folder.path} cannot be loaded as {cls.__name__}: {message}; copy the folder again"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        # A base model taken out of one with a head. Nothing that is exported reads the pooler.
        model.pooler, missing = None, []
    if missing:
        raise LoadError(
            f"{folder.path} lacks {len(missing)} of the weights of {cls.__name__}, such as {missing[0]}, and "
            "transformers would draw them at random; save the trained model with save_pretrained"
        )
    model.eval()
    return model  # type: ignore[no-any-return]


@cache
def register() -> None:
    """Teach transformers to load compressed folders: AutoModel.from_pretrained and its kin."""
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(METHOD)
    class RoastConfig(QuantizationConfigMixin):  # type: ignore[misc]
        """The entry of config.json, as it stands there."""

        def __init__(self, **stored: Any) -> None:
            self.__dict__.update(stored)

    @register_quantizer(METHOD)
    class RoastLoader(HfQuantizer):  # type: ignore[misc]
        """Makes modules virtual while transformers loads a folder, and leaves no trace afterwards."""

        def _process_model_before_weight_loading(
            self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
        ) -> None:
            layout = Layout.from_dict(self.quantization_config.to_dict())
            self.found = prepare(model, layout, checkpoint_files or [])

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
            share(model, self.found)
            # What transformers refuses of quantised models (training, dtypes) holds for ours.
            del model.hf_quantizer, model.quantization_method
            model.is_quantized = False
            model.config.quantization_config = self.quantization_config.to_dict()
            return model

        def update_weight_conversions(self, weight_conversions: Any, model: Any) -> list[Any]:
            return []

        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True


def prepare(model: Any, layout: Layout, files: Sequence[str]) -> list[list[VirtualWeight]]:
    """Make the modules of a model without values virtual, by the records in its files.

    Of the weights that share an array only the first owns it while transformers loads: it takes every
    parameter for one that it must find in the files. Returns the weights of each array, for `share`.
    """
    stored = {key: value for file in files for key, value in _virtual_entries(file)}
    virtual: dict[str, VirtualWeight] = {}
    found: list[list[VirtualWeight]] = []
    for names in layout.arrays:
        own = {name: here for name in names if (here := _name_in(model, name)) is not None}
        if not own:
            continue
        if names[0] not in own:
            raise LoadError(
                f"{type(model).__name__} lacks {names[0]}, under which the array is stored; {_WHOLE}"
            )
        # With its values: transformers runs init code of modules before it is done with loading.
        memory = nn.Parameter(_stored(stored, entry(names[0], MEMORY)))
        weights = []
        for name, here in own.items():
            fields, scale = read_extra_state(_stored(stored, entry(name, RECORD)))
            dtype = model.get_parameter(here).dtype
            weights.append(VirtualWeight(memory, Mapping.from_list(fields), scale, dtype))
            virtual[here] = weights[-1]
        for weight in weights[1:]:
            weight.__dict__["memory"] = weight._parameters.pop("memory")
        found.append(weights)
    for name in layout.reads_padding:
        if (here := _name_in(model, name)) is not None:
            model.get_submodule(here.rpartition(".")[0]).padding_idx = None
    install(model, virtual)
    adopt(model)
    ignored = set(model._keys_to_ignore_on_load_unexpected or ())
    model._keys_to_ignore_on_load_unexpected = ignored | {
        rf"{re.escape(names[0])}$" for names in layout.arrays
    }
    return found


def share(model: nn.Module, found: list[list[VirtualWeight]]) -> None:
    """Give every weight the array that its first reader has loaded, and tied weights one object."""
    same: dict[tuple[int, tuple[int, ...], float], VirtualWeight] = {}
    for first, *others in found:
        for weight in others:
            del weight.__dict__["memory"]
            weight.memory = first.memory
        for weight in (first, *others):
            same.setdefault((id(first.memory), tuple(weight.fields), weight.scale), weight)
    for module in model.modules():
        weights: dict[str, Any] = getattr(getattr(module, "virtual", None), "_modules", {})
        for name, weight in weights.items():
            weights[name] = same[id(weight.memory), tuple(weight.fields), weight.scale]


_WHOLE = "load the class that config.json names, and take its base_model"


def _virtual_entries(file: str) -> Iterator[tuple[str, Tensor]]:
    """Records and arrays of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a dict
            if key.endswith((f".{RECORD}", f".{MEMORY}")):
                yield key, opened.get_tensor(key)


def _stored(entries: dict[str, Tensor], key: str) -> Tensor:
    if key not in entries:
        raise LoadError(f"model.safetensors lacks {key}, which config.json names; copy the folder again")
    return entries[key]


def _name_in(model: Any, name: str) -> str | None:
    """The name of a weight in this model, which may be the base of the saved one, or have it for a base."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        path, _, attribute = candidate.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        if attribute in module._parameters:
            return candidate
    return None
