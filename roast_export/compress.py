"""compress(model, ratio): an ordinary model in, the same model over one small shared array out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from roast_export import placement, projection
from roast_export.copying import copy_without, held_elsewhere
from roast_export.errors import InputError
from roast_export.fit import measured
from roast_export.huggingface.pretrained import adopt
from roast_export.modules import NARROW, VirtualWeight, install, virtual_weights
from roast_export.placement import Placed
from roast_export.wrappers import bare

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Group:
    """One parameter and every dotted name it has; tied parameters have several."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    rows: bool
    """Whether an embedding looks rows up in it."""
    filters: bool = False
    """Whether it is one filter for each output, as in a convolution and nn.Bilinear."""
    recurrent: bool = False
    """Whether a small recurrent layer has it: its rows are expanded in another order."""
    turned: bool = False
    """Whether it is the weight of transposed convolutions alone."""
    written: bool = False
    """Whether a layer writes to it in forward (max_norm)."""

    @property
    def bank(self) -> bool:
        """Whether it is several matrices in one parameter, such as experts and the gates of a small LSTM."""
        shape = self.parameter.shape
        several = len(shape) > 2 and not self.filters
        return (several or self.recurrent) and shape[-1] >= placement.ALIGN


def compress(
    model: nn.Module,
    ratio: float = 100,
    *,
    seed: int = 0,
    min_params: int = 2048,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    local: bool = False,
    init: Literal["project", "fresh"] = "project",
    memory_dtype: torch.dtype | None = None,
) -> nn.Module:
    """A copy of `model` whose large parameters are virtual. The argument is not changed.

    Of a model in DataParallel or torch.compile, and of parts in torch.compile, what is inside is copied.

    ratio: elements that become virtual, divided by elements of the array(s). At 1 no value changes, up to
        2 each parameter has a stretch of the array to itself, above places are hashed.
    include, exclude: shell patterns on dotted parameter names ("encoder.*.weight"); exclude wins.
    local: one array for each parameter instead of one for all.
    init: "project" starts at the least-squares approximation of the present weights, "fresh" draws the
        array anew (for training from scratch). Both keep the RMS of each parameter.
    memory_dtype: dtype of the array, float32 or float16, which halves the file. By default float16 for a
        float16 model, else float32, also for a bfloat16 model: no runtime reads arrays of bfloat16.
        Weights have the dtype that they have in `model`.

    Raises:
        InputError: ratio below 1, a pattern that fits nothing, a parameter of another dtype than float32,
            float16 and bfloat16, or not finite, or nothing left to compress.
    """
    if not ratio >= 1:
        raise InputError(f"ratio {ratio} must be at least 1")
    if init not in ("project", "fresh"):
        raise InputError(f"init {init!r} must be 'project' or 'fresh'")
    if memory_dtype not in (None, torch.float32, torch.float16):
        raise InputError(f"memory_dtype {memory_dtype} must be float32 or float16")
    with bare(model) as model:
        if virtual_weights(model):
            raise InputError("this model is compressed already; compress the dense model instead")
        groups, kept = _choose(model, min_params, _patterns(include), _patterns(exclude))
        if not groups:
            raise InputError(
                "no parameter is left to compress (2 or more dimensions, floating point, at least "
                f"{min_params} elements, not excluded); lower min_params or change the patterns"
            )
        compressed, stand_ins = copy_without(model, [group.parameter for group in groups])
    compressed.__dict__["_roast_kept"] = kept
    shares = [[group] for group in groups] if local else [groups]
    generator = torch.Generator().manual_seed(seed)
    virtual: dict[str, VirtualWeight] = {}
    for share in shares:
        weights = _weights(share, ratio, seed, init, generator, memory_dtype)
        for group, weight in zip(share, weights, strict=True):
            virtual.update(dict.fromkeys(group.names, weight))
    _install(compressed, virtual, {name: group.parameter for group in groups for name in group.names})
    _check_holders(compressed, groups, stand_ins)
    adopt(compressed)
    logger.info("%d parameters became virtual in %d array(s)", len(groups), len(shares))
    return compressed


def _weights(
    share: list[_Group],
    ratio: float,
    seed: int,
    init: str,
    generator: torch.Generator,
    memory_dtype: torch.dtype | None,
) -> list[VirtualWeight]:
    """Virtual weights for the parameters that share one array."""
    targets = [group.parameter.detach().float().cpu() for group in share]
    mappings = placement.place(
        [
            Placed(
                tuple(group.parameter.shape),
                group.rows,
                (seed, *group.names[0].encode()),
                group.bank,
                group.turned,
            )
            for group in share
        ],
        ratio,
    )
    if init == "fresh":
        array, scales = projection.fresh(mappings, targets, generator)
    else:
        array, scales = projection.project(mappings, targets)
    dtypes = [group.parameter.dtype for group in share]
    if memory_dtype is None:
        memory_dtype = torch.float16 if set(dtypes) == {torch.float16} else torch.float32
    if memory_dtype == torch.float16:
        # At an RMS near 1 float16 neither overflows nor turns subnormal; the scales carry the size.
        size = projection.power_of_two(projection.rms(array) or 1.0)
        array, scales = array / size, [scale * size for scale in scales]
    memory = nn.Parameter(
        array.to(dtype=memory_dtype, device=share[0].parameter.device),
        requires_grad=any(group.parameter.requires_grad for group in share),
    )
    weights = [
        VirtualWeight(memory, mapping, scale, dtype)
        for mapping, scale, dtype in zip(mappings, scales, dtypes, strict=True)
    ]
    return measured(weights, targets) if init == "project" else weights


def scale_gradients(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Divide each array slot's gradient by the sum of squared scales of the weights that read it.

    A slot that many weights share collects the sum of their gradients; this makes its step their
    average, after the gradient scaling of STABLE-RPS (Desai, Shrivastava, 2023, arXiv:2310.11611).
    The factor is ours: with W = scale * memory, a step of 1 / sum(scale^2) moves the weights by the
    scale-weighted mean of what plain descent would move them. Remove the handles to undo.
    """
    handles = []
    for memory, density in _densities(model):
        factor = 1.0 / density.clamp(min=1e-12)
        handles.append(memory.register_hook(lambda grad, factor=factor: grad * factor.to(grad)))
    return handles


def _densities(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """For each array, sum of scale^2 over the weights that read each slot: float32[n_memory]."""
    totals: dict[int, tuple[nn.Parameter, Tensor]] = {}
    unique = {id(weight): weight for weight in virtual_weights(model).values()}
    for weight in unique.values():
        empty = torch.zeros(weight.mapping.n_memory)
        total = totals.setdefault(id(weight.memory), (weight.memory, empty))[1]
        total += weight.scale**2 * projection.readers(weight.mapping)
    return list(totals.values())


def _patterns(given: str | Sequence[str] | None) -> Sequence[str]:
    return [given] if isinstance(given, str) else (given or ())


def _choose(
    model: nn.Module, min_params: int, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[_Group], dict[str, str]]:
    """The parameters to compress, and the reason for each name that stays as it is."""
    found: dict[int, _Group] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{path}.{attribute}" if path else attribute
            group = found.get(id(parameter), _Group(parameter, (), False))
            rows = group.rows or isinstance(module, nn.Embedding | nn.EmbeddingBag)
            filters = group.filters or isinstance(module, _ConvNd | nn.Bilinear)
            recurrent = group.recurrent or _is_small_recurrent(module, parameter)
            turned = (group.turned or not group.names) and isinstance(module, _ConvTransposeNd)
            written = group.written or getattr(module, "max_norm", None) is not None
            found[id(parameter)] = _Group(
                parameter, (*group.names, name), rows, filters, recurrent, turned, written
            )
    names = [name for group in found.values() for name in group.names]
    for pattern in [*include, *exclude]:
        if not any(fnmatchcase(name, pattern) for name in names):
            example = names[0] if names else "nothing"
            raise InputError(f"the pattern {pattern!r} fits no parameter; names look like {example!r}")
    groups: list[_Group] = []
    kept: dict[str, str] = {}
    for group in found.values():
        reason = _reason(group, min_params, include, exclude)
        if reason is None:
            groups.append(group)
        else:
            kept.update(dict.fromkeys(group.names, reason))
    return groups, kept


def _is_small_recurrent(module: nn.Module, parameter: nn.Parameter) -> bool:
    if not isinstance(module, nn.RNNBase) or parameter.dim() != 2:
        return False
    return parameter.shape[0] * module.hidden_size < placement.SMALL_RECURRENT


def _reason(group: _Group, min_params: int, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Why a parameter stays dense; None if it can become virtual."""

    def fits(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in group.names for pattern in patterns)

    parameter = group.parameter
    if isinstance(parameter, UninitializedParameter):
        raise InputError(
            f"{group.names[0]} has no shape yet, as its module is lazy; call the model once on an example"
        )
    if not parameter.is_floating_point():
        return "not floating point"
    if parameter.dim() < 2:
        return "one dimension (bias or norm)"
    if group.written:
        return "written to in forward (max_norm)"
    if fits(exclude):
        return "excluded"
    if include and not fits(include):
        return "not included"
    if parameter.numel() < min_params:
        return f"under {min_params} elements"
    if not bool(parameter.any()):
        return "all zero"
    if parameter.dtype not in (torch.float32, *NARROW):
        raise InputError(f"{group.names[0]} is {parameter.dtype}; compress model.float(), or exclude it")
    if not bool(parameter.isfinite().all()):
        raise InputError(f"{group.names[0]} holds NaN or infinity; repair or exclude it")
    return None


def _check_holders(model: nn.Module, groups: list[_Group], stand_ins: list[nn.Parameter]) -> None:
    """Refuse parameters that a module holds a second time, beside its own: it would read the dense weight."""
    # A closure still holds the parameter of the model that was copied.
    names = {id(group.parameter): group.names[0] for group in groups}
    names |= {id(new): group.names[0] for group, new in zip(groups, stand_ins, strict=True)}
    for place, parameter in held_elsewhere(model, [*stand_ins, *(group.parameter for group in groups)]):
        name = names[id(parameter)]
        raise InputError(
            f"the attribute {place} holds {name} a second time, where it would stay dense; remove {place} "
            f"before compressing, or exclude {name}"
        )


def _install(model: nn.Module, virtual: dict[str, VirtualWeight], dense: dict[str, nn.Parameter]) -> None:
    for name in virtual:
        table = model.get_submodule(name.rpartition(".")[0])
        padding = getattr(table, "padding_idx", None)
        if isinstance(table, nn.Embedding) and padding is not None and dense[name][padding].any():
            # A virtual padding row reads as zeros; one that holds values must go on holding them.
            table.padding_idx = None
    install(model, virtual)
