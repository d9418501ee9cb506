"""Names in checkpoints: what wrappers of a model put into them, and which of them are a model's own."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.errors import LoadError
from roast_export.importers import layers_in_state

State = dict[str, Any]

WRAPPERS = (
    "module.",
    "_orig_mod.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)
"""What DataParallel, torch.compile, Fabric, FSDP and activation checkpointing put before a part's names."""

PREFIXES = (*WRAPPERS, "model.", "net.", "network.", "ema_model.", "ema.")
"""What these, Lightning modules and training loops put before every name of a model."""

SHOWN = 5

log = logging.getLogger(__name__)


def under_own_names(state: State, module: nn.Module) -> State:
    """The state dict of a checkpoint under the names that the module has for its tensors.

    1. A prefix, or several nested ones, after which every name of the module is there, is left out. Entries
       without it (a loss, metrics, a counter) are left out too. Both are told.
    2. Names of wrappers inside a name ("encoder._orig_mod.weight") are left out.
    3. Where no prefix gives every name, the one that gives most of them counts, so that a refusal
       names what is really missing.

    Raises:
        LoadError: two prefixes give every name, and the tensors under them differ.
    """
    own = _Names(state, module)
    prefix = own.prefix()
    kept = [key for key in state if key.startswith(prefix)]
    rest = [key for key in state if not key.startswith(prefix)]
    if prefix:
        whole = "every name in the state dict began" if not rest else "the names of the model begin"
        log.warning("%s with %r, which was left out", whole, prefix)
    if rest:
        log.warning("entries without %r are left out: %s", prefix, _listed(rest))
    keys: dict[str, str] = {}
    for key in kept:
        name = own.name(key.removeprefix(prefix))
        if keys.setdefault(name, key) != key:
            raise LoadError(f"{keys[name]!r} and {key!r} are both {name!r} of the model; delete one of them")
    return {name: state[key] for name, key in keys.items()}


class _Names:
    """The names of a state dict beside those of a module."""

    def __init__(self, state: State, module: nn.Module) -> None:
        self.state = state
        self.tensors = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        self.bare = {without_wrappers(name): name for name in self.tensors}
        self.layers = [f"{name}." if name else "" for name in layers_in_state(state)]

    def name(self, key: str) -> str:
        """The module's name for an entry; the entry's own if the module has none."""
        if key in self.tensors or key.startswith(WRAPPERS):
            return key
        return self.bare.get(without_wrappers(key), key)

    def prefix(self) -> str:
        whole = [prefix for prefix in self._prefixes() if self._is_whole(prefix)]
        if len(whole) > 1:
            whole = [prefix for prefix in whole if self._fits(prefix)] or whole
        if not whole:
            return max(self._prefixes(), key=lambda prefix: len(self._found(prefix)))
        different = [prefix for prefix in whole[1:] if not self._same(whole[0], prefix)]
        if different:
            a, b = whole[0], different[0]
            raise LoadError(
                f"every name of the model is there {_as_said(a)} and {_as_said(b)}, with different values; "
                "write the ones that you mean to a file of their own: torch.save({k.removeprefix("
                f"{b!r}): v for k, v in state.items() if k.startswith({b!r})}}, ...)"
            )
        return whole[0]

    def _prefixes(self) -> list[str]:
        """Nested prefixes that names of the state dict have, the shortest first."""
        found = {""}
        for key in self.state:
            taken = ""
            while part := next((p for p in PREFIXES if key.startswith(p, len(taken))), None):
                taken += part
                found.add(taken)
        # A name of their own choice too, where everything in the file has it.
        first = next(iter(self.state), "").partition(".")[0] + "."
        if all(key.startswith(first) for key in self.state):
            found.add(first)
        return sorted(found, key=lambda prefix: (prefix.count("."), prefix))

    def _found(self, prefix: str) -> set[str]:
        """Names of the module that the state dict has behind a prefix; research layers stand for theirs."""
        keys = {self.name(key.removeprefix(prefix)) for key in self.state if key.startswith(prefix)}
        layers = tuple(name.removeprefix(prefix) for name in self.layers if name.startswith(prefix))
        return {name for name in self.tensors if name in keys or name.startswith(layers)}

    def _is_whole(self, prefix: str) -> bool:
        """Whether each tensor of the module is there under one of its names."""
        found = {id(self.tensors[name]) for name in self._found(prefix)}
        return bool(found) and all(id(tensor) in found for tensor in self.tensors.values())

    def _entries(self, prefix: str) -> dict[str, Any]:
        keys = {self.name(key.removeprefix(prefix)): key for key in self.state if key.startswith(prefix)}
        return {name: self.state[key] for name, key in keys.items() if name in self.tensors}

    def _fits(self, prefix: str) -> bool:
        entries = self._entries(prefix)
        return all(
            value.shape == self.tensors[name].shape
            for name, value in entries.items()
            if isinstance(value, Tensor)
        )

    def _same(self, a: str, b: str) -> bool:
        left, right = self._entries(a), self._entries(b)
        return left.keys() == right.keys() and all(_equal(left[name], right[name]) for name in left)


def without_wrappers(name: str) -> str:
    """A dotted name without the parts that wrappers of modules put into it."""
    words = {wrapper.removesuffix(".") for wrapper in WRAPPERS}
    return ".".join(part for part in name.split(".") if part not in words)


def missing_tensors(module: nn.Module, missing: list[str]) -> list[str]:
    """The missing names whose tensor has no other name either: a file may hold a tied tensor once."""
    tensors = module.state_dict(keep_vars=True)
    there = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return [name for name in missing if name not in tensors or id(tensors[name]) not in there]


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)


def _as_said(prefix: str) -> str:
    return f"with {prefix!r} before it" if prefix else "as it is"


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
