"""A live module whose control flow torch.export cannot trace, as far as TorchScript's proof needs it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from roast_export.calls import Inputs, PlainModel, arguments, run
from roast_export.errors import ExportError
from roast_export.modules import RoastEmbedding, RoastLinear, virtual_weights
from roast_export.program import Dims, VirtualLayer


@dataclass
class Untraced:
    """What ExportedProgram is to other models."""

    model: nn.Module
    example: dict[str, Tensor]
    """Tensors by the names of forward's arguments."""
    dims: dict[str, dict[int, str]]
    """Dynamic dimensions, with their names."""

    @property
    def layers(self) -> list[VirtualLayer]:
        arrays = {id(tensor): name for name, tensor in self.model.named_parameters()}
        found = []
        for name, weight in virtual_weights(self.model).items():
            owner = self.model.get_submodule(name.rpartition(".")[0])
            kinds = {RoastLinear: "linear", RoastEmbedding: "embedding"}
            kind = next((kind for base, kind in kinds.items() if isinstance(owner, base)), "gather")
            memory, array = weight.memory.detach(), arrays[id(weight.memory)]
            found.append(VirtualLayer(name, name, kind, weight.mapping, weight.scale, memory, array))
        return found

    @property
    def state_dict(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @property
    def kept_bytes(self) -> int:
        arrays = {layer.array for layer in self.layers}
        return sum(t.numel() * t.element_size() for n, t in self.state_dict.items() if n not in arrays)

    @property
    def signature(self) -> dict[str, tuple[str, Dims]]:
        return {
            name: (
                str(value.dtype).removeprefix("torch."),
                [self.dims.get(name, {}).get(axis, length) for axis, length in enumerate(value.shape)],
            )
            for name, value in self.example.items()
        }

    @property
    def output_names(self) -> list[str]:
        outputs = run(self.model, (), self.example)
        if isinstance(outputs, dict):
            return [str(name) for name in outputs]
        n = len(pytree.tree_leaves(outputs))
        return ["output"] if n == 1 else [f"output_{k}" for k in range(n)]


def untraced(model: nn.Module, inputs: Inputs, dims: dict[str, dict[int, str]] | None) -> Untraced:
    """The model as its source has it.

    Raises:
        ExportError: the model takes constants or nested arguments, which only a trace can fold.
    """
    if isinstance(model, PlainModel):
        if not model.as_it_is:
            raise ExportError(
                "torch.export cannot trace this model, and TorchScript takes its source only with tensors "
                f"for arguments: {' '.join(model.facts) or 'an argument holds several tensors'}"
            )
        model = model.__dict__["original"]
    return Untraced(model, arguments(model, inputs), dims or {})
