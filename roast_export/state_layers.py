"""State dicts of research checkpoints, with a factory that builds the dense model.

Each dense layer whose name has research tensors in the file is replaced by a stand-in: a module with
the attributes of the research class, and no forward. The importers then see what they see in a live
model.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from roast_export import from_fakeroast
from roast_export.errors import LoadError
from roast_export.facts import LayerFacts
from roast_export.importers import layers_in_state, research_layers
from roast_export.importing import SharedArrays, Surroundings
from roast_export.state_names import missing_tensors, under_own_names

State = dict[str, Any]


def fill(module: nn.Module, state: State) -> nn.Module:
    """The module with the file's values, research layers as they are or as stand-ins.

    Raises:
        LoadError: keys are missing or too many, shapes differ, copies of one array differ, or the model's
            names are there twice, behind two prefixes.
    """
    state = under_own_names(state, module)
    layers = layers_in_state(state)
    held: set[str] = set()
    if layers and not research_layers(module):
        module, state = _with_stand_ins(module, state, layers)
        # The stand-ins hold the file's own tensors already.
        held = {key for key in module.state_dict() if _in(key, layers)}
    elif research_layers(module):
        _check_copies(module, state)
    try:
        found = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise LoadError(" ".join(lines)[:400]) from error
    missing = [key for key in missing_tensors(module, found.missing_keys) if key not in held]
    for what, keys in (("Missing", missing), ("Unexpected", found.unexpected_keys)):
        if keys:
            raise LoadError(
                f"{what} key(s) in state_dict: {', '.join(keys)}"[:400]
                + "; the factory must build the module that the file was saved from"
            )
    return module


def describe(state: State) -> str:
    """What a state dict holds, for a refusal that says what to give."""
    layers = layers_in_state(state)
    if not layers:
        return ""
    formats = sorted({importer.__name__.rpartition("from_")[2] for importer in layers.values()})
    return f" ({len(layers)} layers of {', '.join(formats)}: the factory may build the ordinary dense model)"


def bare_model(state: State) -> nn.Module | None:
    """FakeRoast layers of a state dict alone, to look at: their tables hold their shapes.

    Everything else in the file becomes a plain parameter. None if there is no such layer.
    """
    layers = {name: x for name, x in layers_in_state(state).items() if x is from_fakeroast}
    if not layers:
        return None
    model, rest = nn.Module(), dict(state)
    for name, importer in layers.items():
        own = importer.keys_of(name, set(state))
        tensors = {key.removeprefix(f"{name}.") if name else key: state[key] for key in own}
        around = Surroundings(name, LayerFacts(), SharedArrays())
        made = importer.stand_in(name, tensors, None, around)
        if not name:
            return made  # type: ignore[no-any-return]
        parent = model
        *path, last = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, made)
        for key in own:
            del rest[key]
    others = {k.replace(".", "/"): v for k, v in rest.items() if isinstance(v, Tensor) and k != "roast_array"}
    for key, value in others.items():
        model.register_buffer(f"rest/{key}", value)
    return model


def _with_stand_ins(
    module: nn.Module, state: State, layers: dict[str, ModuleType]
) -> tuple[nn.Module, State]:
    """The model with stand-ins, and a state dict of its own keys."""
    rest, keys = dict(state), set(state)
    arrays: list[Tensor] = []
    for name, importer in layers.items():
        around = Surroundings(name, LayerFacts(), SharedArrays())
        try:
            dense = module.get_submodule(name)
        except AttributeError as error:
            raise LoadError(f"the factory builds no layer {name!r}, which the checkpoint has") from error
        own = importer.keys_of(name, keys)
        tensors = {key.removeprefix(f"{name}.") if name else key: state[key] for key in own}
        try:
            made = importer.stand_in(name, tensors, dense, around).train(module.training)
        except LoadError as error:
            raise LoadError(f"layer {name!r}: {error}") from error
        arrays += [t for t in made.parameters() if t.dim() == 1 and t.is_floating_point()]
        module = _put(module, name, made)
        for key in own:
            del rest[key]
    storages = {tensor.untyped_storage().data_ptr() for tensor in arrays}
    top = rest.get("roast_array")
    if isinstance(top, Tensor) and (top.untyped_storage().data_ptr() in storages or _equals_one(top, arrays)):
        del rest["roast_array"]
    return module, rest


def _equals_one(top: Tensor, arrays: list[Tensor]) -> bool:
    return any(top.shape == tensor.shape and bool((top == tensor).all()) for tensor in arrays)


def _in(key: str, layers: dict[str, ModuleType]) -> bool:
    return any(key.startswith(f"{name}.") or not name for name in layers)


def _put(module: nn.Module, name: str, made: nn.Module) -> nn.Module:
    if not name:
        return made
    parent, _, last = name.rpartition(".")
    module.get_submodule(parent)._modules[last] = made
    return module


def _check_copies(module: nn.Module, state: State) -> None:
    """Names that are one tensor in the model must have one value in the file, or the last would win."""
    names: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor) or not isinstance(state.get(name), Tensor) or not tensor.numel():
            continue
        first = names.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        if first != name and not state[first].equal(state[name]):
            raise LoadError(
                f"the model shares one array as {first!r} and {name!r}, but the file holds different values "
                "for them; load it into the dense model (a factory of ordinary layers), which keeps both"
            )
