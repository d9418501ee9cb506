"""ROBE and UMA embeddings: HashedEmbeddingBag (GPU class) and HashedEmbeddingCPU.

index(row, col) = ((row + val_offset) * r3 + (col div Z) * r2 + r1) mod r0 mod (M - Z + 1) + col mod Z.
The numbers are stored; val_offset, Z and padding_idx are attributes only. The CPU class stores Z in
its helper tables, which are checked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from roast_export import families
from roast_export.importing import Converted, Surroundings, float32, row
from roast_export.modules import RoastEmbedding, VirtualWeight
from roast_export.research_layers import RobeEmbeddingBag

BAG, CPU = "HashedEmbeddingBag", "HashedEmbeddingCPU"
BAG_KEYS = ("hashed_weight", "weight", "random_numbers", "signature")
CPU_KEYS = (
    "weight",
    "random_numbers",
    "helper_Eidx_base",
    "helper_Eidx_offset",
    "helper_E1sR",
    "helper_Eidx",
)


def matches(module: nn.Module) -> bool:
    """Whether this is a ROBE table: the name, an array and its numbers."""
    return (
        type(module).__name__ in (BAG, CPU)
        and hasattr(module, "random_numbers")
        and _array(module) is not None
    )


def elements(module: Any) -> int:
    """Rows: val_offset is often the number of rows of the tables before this one."""
    return int(getattr(module, "num_embeddings", 0))


def convert(module: Any, around: Surroundings) -> Converted:
    """The virtual table; HashedEmbeddingBag also takes bags.

    Raises:
        LoadError: a fact is missing, or what is stored contradicts itself.
    """
    memory = float32(around, _array(module), "the array", 1)
    numbers = [int(x) for x in module.random_numbers.reshape(-1)[:4]]
    if len(numbers) < 4:
        raise around.refuse("random_numbers holds fewer than 4 numbers; the checkpoint is damaged")
    _check_bag(module, around)
    chunk, offset = _chunk(module, around), _val_offset(module, around)
    rows, dim = int(module.num_embeddings), int(module.embedding_dim)
    mapping = families.robe(rows, dim, memory.numel(), numbers, offset, chunk)
    how = f"stored numbers, val_offset {offset:,}, Z {chunk}"
    for seed in (around.facts.seed, getattr(module, "seed", None)):
        if seed is not None and families.robe_numbers(seed) == numbers:
            how += f", seed {seed} agrees"
            break
        if seed is not None and seed == around.facts.seed:
            raise around.refuse(f"seed {seed} does not give its numbers {numbers}; remove one of them")
    weight = VirtualWeight(around.arrays.of(memory), mapping, 1.0)
    padding = _either(module, "padding_idx", around.facts.padding_idx, around)
    if padding is not None and not 0 <= padding < rows:
        raise around.refuse(f"padding_idx {padding} is not a row of its {rows:,}; correct it")
    made = (
        RobeEmbeddingBag(weight, padding) if type(module).__name__ == BAG else RoastEmbedding(weight, padding)
    )
    return Converted(row(around, module, mapping, "robe", how), made.train(module.training))


def names_in_state(keys: set[str]) -> list[str]:
    """Names of the ROBE tables of a state dict."""
    names = [key.removesuffix("random_numbers").rstrip(".") for key in keys if _ends(key, "random_numbers")]
    return [name for name in names if {"weight", "hashed_weight"} & _own(name, keys)]


def keys_of(name: str, keys: set[str]) -> set[str]:
    """Entries of a state dict that belong to one table."""
    prefix = f"{name}." if name else ""
    return keys & {prefix + key for key in (*BAG_KEYS, *CPU_KEYS)}


def stand_in(name: str, tensors: dict[str, Tensor], dense: nn.Module, around: Surroundings) -> nn.Module:
    """A ROBE table's attributes, from a state dict and the dense table in its place."""
    if not isinstance(dense, nn.Embedding | nn.EmbeddingBag):
        raise around.refuse(f"the factory has a {type(dense).__name__} where the checkpoint has a ROBE table")
    on_cpu = any(key.startswith("helper_") for key in tensors)
    made: Any = type(CPU if on_cpu else BAG, (nn.Module,), {})()
    for key, value in tensors.items():
        setattr(made, key, nn.Parameter(value, requires_grad=value.is_floating_point()))
    made.num_embeddings, made.embedding_dim = dense.num_embeddings, dense.embedding_dim
    made.padding_idx = dense.padding_idx
    if isinstance(dense, nn.EmbeddingBag):
        made.mode = dense.mode
    return made  # type: ignore[no-any-return]


def _ends(key: str, last: str) -> bool:
    return key == last or key.endswith(f".{last}")


def _own(name: str, keys: set[str]) -> set[str]:
    prefix = f"{name}." if name else ""
    return {key.removeprefix(prefix) for key in keys_of(name, keys)}


def _array(module: Any) -> Tensor | None:
    for name in ("hashed_weight", "weight"):
        found = getattr(module, name, None)
        if isinstance(found, Tensor):
            return found
    return None


def _check_bag(module: Any, around: Surroundings) -> None:
    mode = getattr(module, "mode", "sum")
    if mode != "sum":
        raise around.refuse(f"its mode is {mode!r}; ROBE computes sums only")
    if getattr(module, "norm", None) is not None:
        raise around.refuse(
            "it divides its output by `norm`, which has no place here; fold it into the array"
        )
    if getattr(module, "signature", None) is not None and getattr(
        module, "keymode", "keymode_hashweight"
    ) != ("keymode_hashweight"):
        raise around.refuse("it hashes signatures of data, not rows; such a table cannot be exported")


def _either(module: Any, name: str, given: int | None, around: Surroundings) -> int | None:
    own = getattr(module, name, None)
    if own is not None and given is not None and int(own) != given:
        raise around.refuse(f"the facts say {name} {given}, the module {int(own)}; remove one of them")
    return given if own is None else int(own)


def _val_offset(module: Any, around: Surroundings) -> int:
    if hasattr(module, "val_offset"):
        found = _either(module, "val_offset", around.facts.val_offset, around)
        return found or 0
    if around.facts.val_offset is None:
        likely = around.offsets[0]
        raise around.refuse(
            "its val_offset is not in a state dict: give it in the facts file (if it counts the rows of the "
            f"tables before this one, it is {likely})"
        )
    return around.facts.val_offset


def _chunk(module: Any, around: Surroundings) -> int:
    """Z: an attribute, a fact, or read off the helper tables."""
    own = _either(module, "uma_chunk_size", around.facts.chunk, around)
    base, inner = (getattr(module, name, None) for name in ("helper_Eidx_base", "helper_Eidx_offset"))
    if base is None or inner is None:
        if own is None and getattr(module, "helper_Eidx", None) is None:
            raise around.refuse(
                "its Z (uma_chunk_size) is not in a state dict: give `chunk` in the facts file"
            )
        return 1 if own is None else own
    columns = list(range(int(module.embedding_dim)))
    shown = int(inner.max()) + 1
    # A table of one chunk shows a lower bound of Z only; the module or the facts know better.
    chunk = own if own is not None and shown == len(columns) and own >= shown else shown
    if own is None and shown == len(columns) and len(columns) > 1:
        raise around.refuse(
            "a row fits one chunk, so its helpers do not tell Z: give `chunk` in the facts file"
        )
    right = [c // chunk for c in columns] == base.tolist() and [c % chunk for c in columns] == inner.tolist()
    if not right or (own is not None and own != chunk):
        raise around.refuse(f"its helper tables are not those of Z {own or chunk}; the checkpoint is damaged")
    scaled = getattr(module, "helper_E1sR", None)
    if scaled is not None and set(scaled.tolist()) != {int(module.random_numbers[3])}:
        raise around.refuse("helper_E1sR does not agree with random_numbers; the checkpoint is damaged")
    return chunk
