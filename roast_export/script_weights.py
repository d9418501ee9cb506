"""Virtual weights as TorchScript sees them: one small module each, in a native and a portable form.

Both are what VirtualWeight is to Python, with methods that torch.jit compiles once for all layers.
The native form calls the operators of the library; the portable form is aten alone (torch_mapping.py).
"""

import torch
from torch import Tensor, nn

from roast_export import torch_mapping
from roast_export.errors import ExportError
from roast_export.mapping import Element, Mapping
from roast_export.torch_ops import packed_signs

# torch.jit.freeze and its relatives evaluate whatever depends on constants alone, and would store the
# dense weight. A record that is cut at a place known only at run time, min(numel, 0) = 0, is no constant.


class ScriptWeight(nn.Module):
    """One virtual weight whose operators are in the library. mapping: int[], the list of section 5."""

    # What torch.jit.load says where the operators are missing quotes this name and nothing else of ours.
    _jit_override_qualname = "__torch__.import_roast_export_or_load_libroast_torch_first.ScriptWeight"

    memory: Tensor
    mapping: list[int]
    scale: float

    def __init__(self, memory: nn.Parameter, mapping: Mapping, scale: float) -> None:
        super().__init__()
        self.memory = memory
        self.mapping = mapping.to_list()
        self.scale = scale

    def forward(self, like: Tensor) -> Tensor:
        """The weight. like: any tensor that is known at run time only."""
        none = min(like.numel(), 0)
        weight: Tensor = torch.ops.roast.gather(self.memory, self.mapping[none:], self.scale)
        return weight

    @torch.jit.export
    def rows(self, ids: Tensor) -> Tensor:
        rows: Tensor = torch.ops.roast.embedding(self.memory, ids, self.mapping, self.scale)
        return rows

    @torch.jit.export
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = torch.ops.roast.linear(x, self.memory, bias, self.mapping, self.scale)
        return y


class PortableScriptWeight(nn.Module):
    """The same in aten operators, for any libtorch and the lite interpreter.

    signs: uint8[ceil(numel / 8)], packed; empty if the signs are not MT19937's.

    Raises:
        ExportError: the slots are drawn from MT19937, for which aten has no generator.
    """

    memory: Tensor
    signs: Tensor
    mapping: list[int]
    scale: float

    def __init__(self, memory: nn.Parameter, mapping: Mapping, scale: float) -> None:
        super().__init__()
        if mapping.element is not Element.HASH:
            raise ExportError(
                "slots drawn from MT19937 have no portable form; export without --portable and ship "
                "the library"
            )
        self.memory = memory
        self.mapping = mapping.to_list()
        self.scale = scale
        self.register_buffer("signs", packed_signs(mapping))

    def forward(self, like: Tensor) -> Tensor:
        mapping = self.mapping[min(like.numel(), 0) :]
        return torch_mapping.gather(self.memory, mapping, self.scale, self.signs)

    @torch.jit.export
    def rows(self, ids: Tensor) -> Tensor:
        mapping = self.mapping[min(ids.numel(), 0) :]
        return torch_mapping.embedding(self.memory, ids, mapping, self.scale, self.signs)

    @torch.jit.export
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, self.forward(x).flatten(1), bias)
