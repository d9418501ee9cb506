"""What model.safetensors and config.json hold of a compressed model.

| in the folder | holds |
|---|---|
| `<module>.virtual.<name>.memory` | an array, under the name of the first weight that reads it |
| `<module>.virtual.<name>._extra_state` | the record and the scale of each virtual weight, int64 |
| `<module>.<name>` of that first weight | nothing: float32[0] |
| `quantization_config` of config.json | which weights read which array |

The empty tensor has a reason. A transformers that does not know this package passes over the
`quantization_config` with a warning, and draws weights that it does not find at random. It stops at
a tensor of the wrong shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.errors import LoadError
from roast_export.modules import virtual_weights

METHOD = "roast"
"""The `quant_method` of config.json, by which transformers finds the code that loads the folder."""

VERSION = 1
MEMORY, RECORD = "memory", "_extra_state"


@dataclass(frozen=True)
class Layout:
    """Which virtual weights read which array, by dotted names of the parameters they replace."""

    arrays: tuple[tuple[str, ...], ...]
    """The names of the weights that read one array; the array is stored under the first."""
    reads_padding: tuple[str, ...] = ()
    """Embedding tables whose padding row holds values, which a fresh module would read as zeros."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "arrays": [list(names) for names in self.arrays],
            "reads_padding": list(self.reads_padding),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Layout:
        """Raises LoadError if the entry is of another version or not of this form."""
        if stored.get("version") != VERSION:
            raise LoadError(
                f"config.json has version {stored.get('version')!r} of the roast layout, this package reads "
                f"{VERSION}; upgrade roast-export"
            )
        arrays, padding = stored.get("arrays"), stored.get("reads_padding", [])
        if not _are_names(padding) or not isinstance(arrays, list) or not all(map(_are_names, arrays)):
            raise LoadError("quantization_config in config.json is damaged; copy the folder again")
        return cls(tuple(map(tuple, arrays)), tuple(padding))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def layout_of(model: nn.Module) -> Layout:
    """The layout of a compressed model."""
    arrays: dict[int, list[str]] = {}
    for name, weight in virtual_weights(model).items():
        arrays.setdefault(id(weight.memory), []).append(name)
    padding = [
        f"{path}.weight"
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding) and hasattr(module, "virtual") and module.padding_idx is None
    ]
    return Layout(tuple(map(tuple, arrays.values())), tuple(padding))


def entry(name: str, what: str) -> str:
    """The key of a state dict for the array or the record of the weight `name`."""
    path, _, last = name.rpartition(".")
    return ".".join(part for part in (path, "virtual", last, what) if part)


def stored_state(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The model's state dict with each array once, and the empty tensors of the table above."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for first, *others in layout.arrays:
        for name in others:
            del state[entry(name, MEMORY)]
        state[first] = torch.empty(0)
    return state


def complete_state(state: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The reverse: arrays under every name, without the empty tensors."""
    full = dict(state)
    for first, *others in layout.arrays:
        array = full.get(entry(first, MEMORY))
        if array is not None:
            full |= {key: array for name in others if (key := entry(name, MEMORY)) not in full}
        if isinstance(full.get(first), Tensor) and full[first].numel() == 0:
            del full[first]
    return full
