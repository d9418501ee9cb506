"""RzLinear (the Triton ROAST layer): y = (x @ W) * init_factor + bias, W read in tiles of 32 x 64.

The checkpoint stores no table. The hash numbers are an attribute of the module, or come from the
seed (facts). Two hashes carry the class name: 8 numbers are the two-level hash of the stable branch,
4 numbers the one-level hash of others, whose tile was tuned and has to be given.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from roast_export import families
from roast_export.importing import Converted, Surroundings, bias_of, float32, refusal, row
from roast_export.mapping import Mapping
from roast_export.modules import RoastLinear, VirtualWeight


def matches(module: nn.Module) -> bool:
    """Whether this is an RzLinear: the name and its own attributes."""
    return type(module).__name__ == "RzLinear" and hasattr(module, "_hashed_weight")


def elements(module: Any) -> int:
    return 0


def convert(module: Any, around: Surroundings) -> Converted:
    """The virtual layer; init_factor becomes the scale of the weight.

    Raises:
        LoadError: a fact is missing, or facts and module contradict each other.
    """
    memory = float32(around, module._hashed_weight, "_hashed_weight", 1)
    shape = (int(module._output_dim), int(module._input_dim))
    if getattr(module, "_is_hnet", False):
        return refusal(
            around, module, shape, "element-wise RzLinear (is_hnet) has a hash of its own; retrain tiled"
        )
    numbers, how = _numbers(module, around)
    mapping = _mapping(shape, memory.numel(), numbers, around)
    weight = VirtualWeight(around.arrays.of(memory), mapping, _factor(module, around))
    bias = bias_of(around, getattr(module, "_bias", None), shape[0])
    made = RoastLinear(weight, bias=bias is not None)
    if bias is not None:
        made.bias = bias
    levels = "two levels" if mapping.hash2.p > 1 else "one level"
    report = row(
        around, module, mapping, "rzlinear", f"{how}, {levels}, tile {mapping.tile[0]}x{mapping.tile[1]}"
    )
    return Converted(report, made.train(module.training))


def names_in_state(keys: set[str]) -> list[str]:
    """Names of the RzLinear layers of a state dict."""
    return [key.removesuffix("_hashed_weight").rstrip(".") for key in keys if _is_own(key)]


def keys_of(name: str, keys: set[str]) -> set[str]:
    """Entries of a state dict that belong to one layer."""
    prefix = f"{name}." if name else ""
    return keys & {f"{prefix}_hashed_weight", f"{prefix}_bias"}


def stand_in(name: str, tensors: dict[str, Tensor], dense: nn.Module, around: Surroundings) -> nn.Module:
    """An RzLinear's attributes, from a state dict and the dense layer in its place."""
    if not isinstance(dense, nn.Linear):
        raise around.refuse(f"the factory has a {type(dense).__name__} where the checkpoint has an RzLinear")
    if (dense.bias is not None) != ("_bias" in tensors):
        raise around.refuse("checkpoint and factory do not agree whether it has a bias")
    made: Any = type("RzLinear", (nn.Module,), {})()
    made._hashed_weight = nn.Parameter(tensors["_hashed_weight"])
    made._bias = nn.Parameter(tensors["_bias"]) if "_bias" in tensors else None
    made._input_dim, made._output_dim = dense.in_features, dense.out_features
    return made  # type: ignore[no-any-return]


def _is_own(key: str) -> bool:
    return key == "_hashed_weight" or key.endswith("._hashed_weight")


def _numbers(module: Any, around: Surroundings) -> tuple[list[int], str]:
    """P, R1 ...: of the module, of the facts, or drawn from a seed; sources that disagree are refused."""
    facts = around.facts
    stored = getattr(module, "_random_numbers", None)
    own = [int(x) for x in stored] if stored is not None else None
    given = list(facts.random_numbers) if facts.random_numbers else None
    if own and given and own != given:
        raise around.refuse(f"the facts say random_numbers {given}, the module {own}; remove one of them")
    numbers, how = own or given, "its own numbers" if own else "numbers given"
    seed = facts.seed if facts.seed is not None else getattr(module, "_seed", None)
    if numbers is None:
        if seed is None:
            raise around.refuse(
                "its hash numbers are not in a state dict: give `seed` or `random_numbers` in the facts file"
            )
        return families.rzlinear_numbers(int(seed) % (1 << 32)), f"seed {seed}"
    if len(numbers) not in (4, 8):
        raise around.refuse(f"it has {len(numbers)} hash numbers; versions with 4 or 8 are known")
    if seed is not None and numbers == families.rzlinear_numbers(int(seed) % (1 << 32)):
        how += f", which are those of seed {seed}"
    elif facts.seed is not None:
        raise around.refuse(f"seed {seed} does not give its hash numbers {numbers}; remove one of them")
    return numbers, how


def _mapping(shape: tuple[int, int], n_memory: int, numbers: list[int], around: Surroundings) -> Mapping:
    out_features, in_features = shape
    given = around.facts.tile
    if len(numbers) == 4:
        if given is None:
            raise around.refuse(
                "the one-level hash (4 numbers) has a tuned tile that no file stores: give `tile` = [rows of "
                "x's features, columns] in the facts file"
            )
        return families.rzlinear_one_level(in_features, out_features, n_memory, numbers, (given[0], given[1]))
    if given is not None and tuple(given) != families.RZLINEAR_TILE:
        raise around.refuse(f"the two-level hash has tiles of 32x64, the facts say {list(given)}")
    return families.rzlinear(in_features, out_features, n_memory, numbers)


def _factor(module: Any, around: Surroundings) -> float:
    own, given = getattr(module, "_init_factor", None), around.facts.scale
    if own is None and given is None:
        raise around.refuse(
            "its init_factor is not in a state dict: give it as `scale` in the facts file (1.0 if the model "
            "was built without one)"
        )
    if own is not None and given is not None and float(own) != given:
        raise around.refuse(f"the facts say scale {given:g}, the module {float(own):g}; remove one of them")
    return float(own if own is not None else given)  # type: ignore[arg-type]
