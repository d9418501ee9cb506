"""FakeRoast: layers that hold an array, its full index table IDX and sign table G.

The formula is recovered from the table and proved against it (recover.py); array and formula are
kept. Known by class name and attributes; the research package is never imported.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.import_report import ImportedLayer
from roast_export.importing import Converted, Surroundings, alternatives, bias_of, float32, refusal, row
from roast_export.modules import RoastConv2d, RoastEmbedding, RoastLinear, VirtualWeight
from roast_export.proof import Table
from roast_export.recover import KINDS, Hints, NotRecovered, Recovered, recover
from roast_export.research_layers import RoastLSTM

LAYERS = {
    "FakeRoastLinear": "linear",
    "FakeRoastConv2d": "conv",
    "FakeRoastEmbedding": "embedding",
    "FakeRoastLSTM": "lstm",
}
HELPERS = ("WHelper", "WHelper1", "WHelper2")
TABLES = ("weight", "IDX", "G")


def matches(module: nn.Module) -> bool:
    """Whether this is a FakeRoast layer: its name, or a helper with array and tables."""
    return bool(_helpers(module)) and (type(module).__name__ in LAYERS or _layer(module) != "unknown")


def elements(module: nn.Module) -> int:
    """Weights that this layer adds to the running offset."""
    return sum(helper.IDX.numel() for helper in _helpers(module).values())


def convert(module: nn.Module, around: Surroundings) -> Converted:
    """The virtual layer that computes the same, or a refusal with the costs of the alternatives.

    Raises:
        LoadError: the layer is incomplete or of wrong dtypes.
    """
    layer = _layer(module)
    if layer == "lstm":
        return _lstm(module, around)
    helper = _helpers(module)["WHelper"]
    table = _table(helper, around)
    scale = _scale(module, layer, table.shape, around)
    memory = _memory(helper, around)
    found = _recovered(module, helper, layer, table, around)
    weight: VirtualWeight | Tensor
    if isinstance(found, NotRecovered):
        if not (around.keep_dense or around.facts.dense):
            reason = f"{found.reason}; {alternatives(table.shape, table.n_memory, signs=True)}"
            return refusal(around, module, table.shape, reason, table.bytes)
        weight = _expanded(helper) * scale
        report = _dense_row(module, around, table, found.reason)
    else:
        weight = VirtualWeight(memory, found.mapping, scale)
        report = row(
            around,
            module,
            found.mapping,
            found.kind,
            found.how,
            proved=found.mapping.numel,
            table_bytes=table.bytes,
        )
    made = _built(module, layer, weight)
    if layer != "embedding":
        made.bias = bias_of(around, getattr(module, "bias", None), table.shape[0])
    return Converted(report, made.train(module.training))


def _layer(module: nn.Module) -> str:
    named = LAYERS.get(type(module).__name__)
    if named:
        return named
    helpers = _helpers(module)
    if "WHelper2" in helpers:
        return "lstm"
    if "WHelper" not in helpers:
        return "unknown"
    if hasattr(module, "stride") and helpers["WHelper"].IDX.dim() == 4:
        return "conv"
    if hasattr(module, "num_embeddings"):
        return "embedding"
    return "linear" if hasattr(module, "idim") or hasattr(module, "in_features") else "unknown"


def _helpers(module: nn.Module) -> dict[str, Any]:
    found = {name: getattr(module, name, None) for name in HELPERS}
    return {
        name: helper
        for name, helper in found.items()
        if isinstance(helper, nn.Module) and isinstance(getattr(helper, "IDX", None), Tensor)
    }


def _table(helper: Any, around: Surroundings) -> Table:
    index, sign = helper.IDX.detach(), getattr(helper, "G", None)
    memory = float32(around, getattr(helper, "weight", None), "WHelper.weight", 1)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise around.refuse(
            f"IDX is {str(index.dtype).removeprefix('torch.')}, an index table holds integers; it was "
            "converted with the weights: save the checkpoint without that conversion"
        )
    sign = float32(around, sign, "WHelper.G", index.dim()).detach()
    if sign.shape != index.shape:
        raise around.refuse(
            f"G has shape {list(sign.shape)}, IDX {list(index.shape)}; the checkpoint is damaged"
        )
    return Table(index.cpu().numpy(), sign.cpu().numpy(), memory.numel())


def _memory(helper: Any, around: Surroundings) -> nn.Parameter:
    return around.arrays.of(helper.weight, is_global=bool(getattr(helper, "is_global", True)))


def _scale(module: nn.Module, layer: str, shape: tuple[int, ...], around: Surroundings) -> float:
    """lambda: of the module, else of the facts; the state dict does not hold it."""
    own, given = getattr(module, "scale", None), around.facts.scale
    if around.facts.init_scale is not None and given is None:
        fan = shape[0] if layer == "embedding" else math.prod(shape[1:])
        given = math.sqrt(1.0 / fan) / around.facts.init_scale
    if own is None and given is None:
        raise around.refuse(
            "its scale is not in a state dict: give `scale` (or `init_scale`) in the facts file, or load the "
            "pickled module"
        )
    if own is None:
        return float(given)  # type: ignore[arg-type]
    own = float(own)
    if given is not None and not math.isclose(own, given, rel_tol=1e-6):
        raise around.refuse(f"the facts say scale {given:g}, the module {own:g}; remove one of them")
    return own


def _recovered(
    module: nn.Module, helper: Any, layer: str, table: Table, around: Surroundings
) -> Recovered | NotRecovered:
    if around.facts.dense:
        return NotRecovered("the facts say dense")
    found = recover(table, _hints(module, helper, layer, around))
    if isinstance(found, Recovered) and found.seed is not None and found.seed not in around.seeds:
        around.seeds.append(found.seed)
    return found


def _hints(module: nn.Module, helper: Any, layer: str, around: Surroundings) -> Hints:
    facts = around.facts
    mode = getattr(module, "matrix_mode", None) or getattr(helper, "matrix_mode", None)
    kinds = {"random": ("identity", "random"), "mapper": tuple(k for k in KINDS if k != "random")}.get(
        str(mode), KINDS
    )
    tile = None
    if layer == "embedding" and facts.block:
        tile = (1, facts.block)
    elif layer != "embedding" and facts.block_k and facts.block_n:
        tile = (facts.block_k, facts.block_n)
    own = [getattr(module, "seed", None), getattr(helper, "seed", None)]
    seeds = [facts.seed] if facts.seed is not None else own
    return Hints(
        layer="unknown" if layer == "lstm" or hasattr(module, "guessed") else layer,
        kinds=(facts.kind,) if facts.kind else kinds,
        # torch keeps the low 32 bits of a seed for MT19937.
        seeds=tuple(dict.fromkeys(int(s) % (1 << 32) for s in seeds if isinstance(s, int))),
        others=() if facts.seed is not None else tuple(around.seeds[-8:]),
        offsets=(facts.offset,) if facts.offset is not None else around.offsets,
        total=around.total,
        draw_bits=(facts.draw_bits,) if facts.draw_bits else (64, 32),
        tile=tile,
        coefficients=facts.coefficients,
    )


def _expanded(helper: Any) -> Tensor:
    """The weight as the research module computes it, without the scale."""
    with torch.no_grad():
        weight: Tensor = helper.weight[helper.IDX.long()] * helper.G
    return weight


def _dense_row(module: nn.Module, around: Surroundings, table: Table, reason: str) -> ImportedLayer:
    return ImportedLayer(
        around.name, type(module).__name__, table.shape, "dense", reason, table_bytes=table.bytes
    )


def _built(module: Any, layer: str, weight: VirtualWeight | Tensor) -> Any:
    """The layer with a virtual weight, or the ordinary one with a dense weight."""
    bias = getattr(module, "bias", None) is not None
    shape = weight.mapping.shape if isinstance(weight, VirtualWeight) else tuple(weight.shape)
    made: nn.Module
    if layer == "conv":
        options = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
        if isinstance(weight, VirtualWeight):
            return RoastConv2d(weight, **options, bias=bias)
        channels, kernel = shape[1] * options["groups"], (shape[2], shape[3])
        made = nn.Conv2d(channels, shape[0], kernel, **options, bias=bias)
    elif layer == "embedding":
        if isinstance(weight, VirtualWeight):
            return RoastEmbedding(weight)
        made = nn.Embedding(shape[0], shape[1])
    else:
        if isinstance(weight, VirtualWeight):
            return RoastLinear(weight, bias=bias)
        made = nn.Linear(shape[1], shape[0], bias=bias)
    made.weight = nn.Parameter(weight)
    return made


def _lstm(module: Any, around: Surroundings) -> Converted:
    """The recurrent weight U (WHelper2), and W where an older version compresses it too (WHelper1).

    The research forward does not multiply by the scale, so neither does this.
    """
    weights: dict[str, VirtualWeight] = {}
    hows, kinds, proved, size = [], [], 0, 0
    for name, helper in _helpers(module).items():
        table = _table(helper, around)
        found = _recovered(module, helper, "lstm", table, around)
        if isinstance(found, NotRecovered):
            reason = f"{name}: {found.reason}; an LSTM cannot be kept dense here"
            return refusal(around, module, table.shape, reason, table.bytes)
        scale = around.facts.scale if around.facts.scale is not None else 1.0
        weights[name] = VirtualWeight(_memory(helper, around), found.mapping, scale)
        hows.append(f"{name}: {found.how}")
        kinds.append(found.kind)
        proved, size = proved + found.mapping.numel, size + table.bytes
    dense = None if "WHelper1" in weights else float32(around, getattr(module, "W", None), "W", 2)
    bias = float32(around, getattr(module, "bias", None), "bias", 1)
    if "WHelper2" not in weights:
        raise around.refuse("WHelper2 is missing; the checkpoint is not complete")
    made = RoastLSTM(
        weights, None if dense is None else nn.Parameter(dense.detach()), nn.Parameter(bias.detach())
    )
    first = weights["WHelper2"].mapping
    report = row(around, module, first, kinds[-1], "; ".join(hows), proved=proved, table_bytes=size)
    return Converted(report, made.train(module.training))


def names_in_state(keys: set[str]) -> list[str]:
    """Names of the FakeRoast layers of a state dict."""
    names = set()
    for key in keys:
        parts = key.split(".")
        if parts[-1] == "IDX" and len(parts) > 1 and parts[-2] in HELPERS:
            names.add(".".join(parts[:-2]))
    return sorted(names)


def keys_of(name: str, keys: set[str]) -> set[str]:
    """Entries of a state dict that belong to one layer."""
    prefix = f"{name}." if name else ""
    tables = {f"{prefix}{helper}.{table}" for helper in HELPERS for table in TABLES}
    return keys & (tables | {f"{prefix}bias", f"{prefix}W"})


def stand_in(
    name: str, tensors: dict[str, Tensor], dense: nn.Module | None, around: Surroundings
) -> nn.Module:
    """A FakeRoast layer's attributes, from a state dict and the dense layer in its place.

    Without a dense layer its class is guessed from the table's dimensions: enough to look at it.
    """
    kinds = {nn.Linear: "FakeRoastLinear", nn.Conv2d: "FakeRoastConv2d", nn.Embedding: "FakeRoastEmbedding"}
    lstm = "WHelper2.IDX" in tensors
    kind = "FakeRoastLSTM" if lstm else next((k for t, k in kinds.items() if isinstance(dense, t)), None)
    if kind is None and dense is not None:
        raise around.refuse(
            f"the factory has a {type(dense).__name__} where the checkpoint has a FakeRoast layer; known are "
            "Linear, Conv2d, Embedding"
        )
    index = tensors.get("WHelper.IDX")
    guess = "FakeRoastConv2d" if index is not None and index.dim() == 4 else "FakeRoastLinear"
    made: Any = type(kind or guess, (nn.Module,), {})()
    for helper in HELPERS:
        own = {key.rpartition(".")[2]: t for key, t in tensors.items() if key.startswith(f"{helper}.")}
        if own:
            setattr(made, helper, _helper(own))
    for key in ("bias", "W"):
        setattr(made, key, nn.Parameter(tensors[key]) if key in tensors else None)
    if dense is None:
        made.guessed = True
    elif not lstm:
        _check_stand_in(made, dense, around)
    for option, plain in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        setattr(made, option, getattr(dense, option, plain))
    return made  # type: ignore[no-any-return]


def _helper(tensors: dict[str, Tensor]) -> nn.Module:
    made: Any = type("FakeRoast", (nn.Module,), {})()
    for key, value in tensors.items():
        setattr(made, key, nn.Parameter(value, requires_grad=key == "weight" and value.is_floating_point()))
    return made  # type: ignore[no-any-return]


def _check_stand_in(made: Any, dense: Any, around: Surroundings) -> None:
    shape, wanted = tuple(made.WHelper.IDX.shape), tuple(dense.weight.shape)
    if shape != wanted:
        raise around.refuse(f"its index table has shape {list(shape)}, the factory's weight {list(wanted)}")
    if (made.bias is not None) != (getattr(dense, "bias", None) is not None):
        raise around.refuse("checkpoint and factory do not agree whether it has a bias")
