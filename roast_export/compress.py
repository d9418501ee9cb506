"""compress(model, ratio): an ordinary model in, the same model over one small shared array out."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from roast_export import families, torch_ops
from roast_export.errors import InputError
from roast_export.mapping import UNUSED, Mapping, Sign
from roast_export.modules import VirtualWeight, make_virtual, virtual_weights

logger = logging.getLogger(__name__)

ALIGN = 16
"""Array lengths and tile starts are multiples of this many elements: one 64-byte line of float32."""

MATRIX_TILES = (
    (32, 128, 128),
    (32, 64, 64),
    (16, 64, 64),
    (8, 64, 64),
    (32, 32, ALIGN),
    (16, 16, ALIGN),
    (8, 16, ALIGN),
    (4, 16, ALIGN),
    (1, 16, ALIGN),
)
"""Inputs and outputs of a tile, and what its starts are multiples of (why: docs/design.md)."""

WIDEST = 128
"""Outputs of a tile that pays where a layer has twice as many inputs as there are places for its rows."""

ROW_TILES = ((1, 32, ALIGN), (1, 16, ALIGN))
TILES_PER_ARRAY = 4
"""A tile is at most a quarter of the array, so that tiles have different places to start."""

DRAWS, EVEN = 16, 0.75
"""Hash coefficients are drawn so often, or until the tiles of rows and columns lie so evenly."""

SAMPLE_ROWS, SAMPLE_COLUMNS = 2048, 8

ROUNDS = 3
"""Alternating least squares over array and scales; each round after the first lowers the error by 0.01 %."""


@dataclass(frozen=True)
class _Group:
    """One parameter and every dotted name it has; tied parameters have several."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    rows: bool
    """Whether an embedding looks rows up in it."""
    written: bool = False
    """Whether a layer writes to it in forward (max_norm)."""


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
    memory_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A copy of `model` whose large parameters are virtual. The argument is not changed.

    ratio: elements that become virtual, divided by elements of the array(s).
    include, exclude: shell patterns on dotted parameter names ("encoder.*.weight"); exclude wins.
    local: one array for each parameter instead of one for all.
    init: "project" starts at the least-squares approximation of the present weights, with one scale
        for each parameter; "fresh" draws the array anew and keeps each parameter's RMS (for training
        from scratch).
    memory_dtype: dtype of the array; float16 halves the file, weights are float32 either way.

    Raises:
        InputError: ratio below 1, a pattern that fits nothing, a parameter that is not float32 or not
            finite, or nothing left to compress.
    """
    if not ratio >= 1:
        raise InputError(f"ratio {ratio} must be at least 1")
    if init not in ("project", "fresh"):
        raise InputError(f"init {init!r} must be 'project' or 'fresh'")
    if memory_dtype not in (torch.float32, torch.float16):
        raise InputError(f"memory_dtype {memory_dtype} must be float32 or float16")
    if virtual_weights(model):
        raise InputError("this model is compressed already; compress the dense model instead")
    groups, kept = _choose(model, min_params, _patterns(include), _patterns(exclude))
    if not groups:
        raise InputError(
            "no parameter is left to compress (2 or more dimensions, floating point, at least "
            f"{min_params} elements, not excluded); lower min_params or change the patterns"
        )
    # The copy takes over the parameters that are about to go; they are not worth copying.
    compressed = copy.deepcopy(model, {id(group.parameter): group.parameter for group in groups})
    compressed.__dict__["_roast_kept"] = kept
    shares = [[group] for group in groups] if local else [groups]
    generator = torch.Generator().manual_seed(seed)
    virtual: dict[str, VirtualWeight] = {}
    for share in shares:
        n_memory = _array_length(sum(group.parameter.numel() for group in share), ratio)
        targets = [group.parameter.detach().float().cpu() for group in share]
        mappings = [
            draw_mapping(
                tuple(group.parameter.shape), n_memory, [seed, *group.names[0].encode()], rows=group.rows
            )
            for group in share
        ]
        if init == "fresh":
            array, scales = _fresh(mappings, targets, generator)
        else:
            array, scales = _project(mappings, targets)
        if memory_dtype == torch.float16:
            # At an RMS of 1 float16 neither overflows nor turns subnormal; the scales carry the size.
            size = _rms(array) or 1.0
            array, scales = array / size, [scale * size for scale in scales]
        memory = nn.Parameter(
            array.to(dtype=memory_dtype, device=share[0].parameter.device),
            requires_grad=any(group.parameter.requires_grad for group in share),
        )
        for group, mapping, scale in zip(share, mappings, scales, strict=True):
            weight = VirtualWeight(memory, mapping, scale)
            virtual.update(dict.fromkeys(group.names, weight))
    _install(compressed, virtual)
    logger.info("%d parameters became virtual in %d array(s)", len(groups), len(shares))
    return compressed


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
        total += weight.scale**2 * _readers(weight.mapping)
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
            written = group.written or getattr(module, "max_norm", None) is not None
            found[id(parameter)] = _Group(parameter, (*group.names, name), rows, written)
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


def _reason(group: _Group, min_params: int, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Why a parameter stays dense; None if it can become virtual."""

    def fits(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in group.names for pattern in patterns)

    parameter = group.parameter
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
    if parameter.dtype != torch.float32:
        raise InputError(f"{group.names[0]} is {parameter.dtype}; compress model.float(), or exclude it")
    if not bool(parameter.isfinite().all()):
        raise InputError(f"{group.names[0]} holds NaN or infinity; repair or exclude it")
    return None


def _array_length(numel: int, ratio: float) -> int:
    """Array elements for `numel` weights, rounded up to what the starts of its tiles are multiples of."""
    length = max(1, round(numel / ratio))
    least = ALIGN if length >= ALIGN else 1
    fit = (align for tile_r, tile_c, align in MATRIX_TILES if tile_r * tile_c * TILES_PER_ARRAY <= length)
    align = next(fit, least)
    return -(-length // align) * align


def draw_mapping(shape: tuple[int, ...], n_memory: int, entropy: Sequence[int], *, rows: bool) -> Mapping:
    """A parameter's record: the largest tile that leaves tiles room to differ, and drawn coefficients.

    entropy: what the coefficients are drawn from, non-negative; `compress` gives its seed and the
        parameter's name, so that a record survives changes elsewhere.
    rows: an embedding's table, whose tiles are pieces of rows.
    """
    tile_r, tile_c, align = _tile(shape, n_memory, rows)
    best, most = None, -1.0
    for seed in np.random.SeedSequence(list(entropy)).generate_state(DRAWS).tolist():
        mapping = families.roast(
            shape, n_memory, seed=seed, tile=(tile_r, tile_c), align=align, transposed=not rows
        )
        even = evenness(mapping)
        if even > most:
            best, most = mapping, even
        if even >= EVEN:
            break
    assert best is not None
    return best


def _tile(shape: tuple[int, ...], n_memory: int, rows: bool) -> tuple[int, int, int]:
    width = shape[-1] if rows else max(shape[0], ALIGN)
    for tile_r, tile_c, align in ROW_TILES if rows else MATRIX_TILES:
        there_is_room = tile_r * tile_c * TILES_PER_ARRAY <= n_memory and tile_c <= width
        if there_is_room and (tile_c < WIDEST or 2 * n_memory <= tile_c * math.prod(shape[1:])):
            return tile_r, tile_c, align
    return 1, 1, 1


def evenness(mapping: Mapping) -> float:
    """How many different slots a column of tiles reads, and how many starts a row of tiles has: 1 is best.

    The hash is linear in tile numbers, so for some coefficients the tiles of a column or row all but
    coincide: then outputs see sums of a few inputs, or outputs equal each other.
    """
    grid_i, grid_j = mapping.grid
    tile_r, tile_c = mapping.tile
    i, j = np.arange(min(grid_i, SAMPLE_ROWS)), np.arange(min(grid_j, SAMPLE_ROWS))
    runs = np.arange(tile_r) * tile_c
    reach = (mapping.range - 1) * mapping.align + (tile_r - 1) * tile_c
    possible = reach // math.gcd(mapping.align, tile_c) + 1
    columns = [
        np.unique(mapping.starts(i, column)[:, None] + runs).size / min(i.size * tile_r, possible)
        for column in _some(j)
    ]
    across = [np.unique(mapping.starts(row, j)).size / min(j.size, mapping.range) for row in _some(i)]
    return float(min(np.mean(columns), np.mean(across)))


def _some(numbers: np.ndarray) -> np.ndarray:
    return numbers[:: -(-numbers.size // SAMPLE_COLUMNS)]


def _readers(mapping: Mapping) -> Tensor:
    """How many weights read each slot: float32[n_memory]."""
    unsigned = replace(mapping, sign=Sign.NONE, sign_hash=UNUSED, sign_seed=0, sign_skip=0)
    ones = torch.ones(mapping.shape)
    return torch_ops.gather_backward(ones, unsigned.to_list(), 1.0)


def _rms(tensor: Tensor) -> float:
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
    return float(norm / tensor.numel() ** 0.5)


def _install(model: nn.Module, virtual: dict[str, VirtualWeight]) -> None:
    owners: dict[int, tuple[nn.Module, dict[str, VirtualWeight]]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, weight in virtual.items():
        path, _, attribute = name.rpartition(".")
        owners.setdefault(id(modules[path]), (modules[path], {}))[1][attribute] = weight
    for module, weights in owners.values():
        if isinstance(module, nn.Embedding) and _holds_padding(module):
            module.padding_idx = None
        make_virtual(module, weights)


def _holds_padding(table: nn.Embedding) -> bool:
    """A virtual padding row reads as zeros; one that holds values must go on holding them."""
    return table.padding_idx is not None and bool(table.weight[table.padding_idx].any())


def _fresh(
    mappings: list[Mapping], targets: list[Tensor], generator: torch.Generator
) -> tuple[Tensor, list[float]]:
    overall = _overall_rms(targets)
    array = torch.randn(mappings[0].n_memory, generator=generator) * overall
    return array, [_rms(target) / overall for target in targets]


def _overall_rms(targets: list[Tensor]) -> float:
    total = sum(_rms(target) ** 2 * target.numel() for target in targets)
    return float((total / sum(target.numel() for target in targets)) ** 0.5)


def _project(mappings: list[Mapping], targets: list[Tensor]) -> tuple[Tensor, list[float]]:
    """min over array and scales of sum |target - scale * sign * array[index]|^2, alternating.

    Each target counts relative to its own RMS; otherwise a layer of large weights takes the array.
    """
    overall, sizes = _overall_rms(targets), [_rms(target) for target in targets]
    targets = [target / size for target, size in zip(targets, sizes, strict=True)]
    scales = [1.0] * len(targets)
    readers = [_readers(mapping) for mapping in mappings]
    array = torch.zeros(mappings[0].n_memory)
    for step in range(ROUNDS):
        sums, density = torch.zeros_like(array), torch.zeros_like(array)
        for mapping, target, scale, count in zip(mappings, targets, scales, readers, strict=True):
            sums += torch_ops.gather_backward(target, mapping.to_list(), scale)
            density += scale**2 * count
        array = sums / density.clamp(min=1e-30)
        if step == ROUNDS - 1 or not array.any():
            break
        for k, (mapping, target) in enumerate(zip(mappings, targets, strict=True)):
            unscaled = torch_ops.gather(array, mapping.to_list(), 1.0)
            energy = float(unscaled.square().sum())
            fit = float((unscaled * target).sum()) / energy if energy else 0.0
            scales[k] = fit if fit > 0 else scales[k]
    shrink = _rms(array) / overall or 1.0
    return array / shrink, [scale * size * shrink for scale, size in zip(scales, sizes, strict=True)]
