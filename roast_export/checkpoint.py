"""What training loops write: a state dict among other entries, in one file or in several.

| file | where the values are |
|---|---|
| state dict of torch.save (.pt, .pth, .bin) | the entries themselves |
| checkpoint of a training loop | the entry `state_dict`, `model` ... (ENTRIES), or the only one of values |
| Lightning's .ckpt | `state_dict`; `hyper_parameters` are arguments of the factory |
| .safetensors | the entries themselves |
| .safetensors.index.json, .bin.index.json | the files beside it that it names |
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn

from roast_export.errors import LoadError
from roast_export.file_kind import begins_as_zip, check_members
from roast_export.plain_pickle import load_plain
from roast_export.reading import opened, path_of

ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights")
"""Names of the entry that holds the model, the first that is there."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Values of a model without the model. arguments: what its class was called with, by name."""

    state: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)


def model_in(content: Any) -> nn.Module | Checkpoint | None:
    """The module or the state dict in what a file holds; None if there is neither."""
    if isinstance(content, nn.Module):
        return content
    if not isinstance(content, Mapping):
        return None
    entries = dict(content)
    models = {name: entry for name, value in entries.items() if (entry := _model(value)) is not None}
    name = next((name for name in ENTRIES if name in models), None)
    if name is None and _is_state(entries):
        return Checkpoint(entries)
    if name is None and len(models) == 1:
        name = next(iter(models))
    if name is None:
        return None
    others = [str(other) for other in models if other != name]
    if others:
        log.warning("the model is the entry %r; %s left out", name, " and ".join(map(repr, others)))
    found = models[name]
    if isinstance(found, nn.Module):
        return found
    arguments = entries.get("hyper_parameters")
    inner = model_in(found)
    state = inner.state if isinstance(inner, Checkpoint) else found
    return Checkpoint(state, _by_name(arguments))


def _model(value: Any) -> nn.Module | dict[str, Any] | None:
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, Mapping) and _is_state(value):
        return dict(value)
    inner = model_in(value) if isinstance(value, Mapping) and "state_dict" in value else None
    return inner.state if isinstance(inner, Checkpoint) else inner


def _is_state(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(v, Tensor) for v in value.values()) and all(isinstance(key, str) for key in value)


def _by_name(arguments: Any) -> dict[str, Any]:
    named = isinstance(arguments, Mapping) and all(isinstance(key, str) for key in arguments)
    return dict(arguments) if named else {}


def safetensors_state(file: BinaryIO, path: Path) -> dict[str, Any]:
    """The tensors of an open .safetensors file. path: its name. Raises LoadError if it is damaged."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise LoadError(
            f"{path} needs the package safetensors; run `pip install 'roast-export[huggingface]'`"
        ) from error
    try:
        state: dict[str, Any] = load_file(path_of(file, path))
    except Exception as error:
        raise LoadError(f"{path} is truncated or damaged ({error}); copy it again") from error
    return state


def indexed_state(file: BinaryIO, path: Path) -> dict[str, Any]:
    """The tensors of all the files that an open index names. path: of the index.

    Raises:
        LoadError: the index is malformed, or one of its files is missing, damaged or runs code.
    """
    try:
        file.seek(0)
        names = sorted(set(json.loads(file.read().decode())["weight_map"].values()))
        parts = [path.parent / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(
            f"{path} is no index of weights: it has no weight_map; give the file itself"
        ) from error
    state: dict[str, Any] = {}
    for part in parts:
        if not part.is_file():
            raise LoadError(f"{path} names {part.name}, which is not beside it; copy all of its files")
        with opened(part) as opened_part:
            state |= _part_state(opened_part, part)
    return state


def _part_state(file: BinaryIO, path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return safetensors_state(file, path)
    if begins_as_zip(file):
        check_members(file, path)
    file.seek(0)
    try:
        return dict(load_plain(file))
    except Exception as error:
        raise LoadError(f"{path} cannot be read as a state dict ({_first_line(error)})") from error


def built(factory: Any, arguments: Mapping[str, Any], name: str) -> nn.Module:
    """What a factory makes, called with the arguments among these that it takes.

    factory: a function or class, or a module, of which a copy is taken. name: as --model says it.

    Raises:
        LoadError: it fails, or makes no module.
    """
    if isinstance(factory, nn.Module):
        return copy.deepcopy(factory)
    chosen = _taken(factory, arguments)
    if chosen:
        log.warning("%s was called with the checkpoint's hyper_parameters: %s", name, ", ".join(chosen))
    try:
        module = factory(**chosen)
    except Exception as error:
        raise LoadError(
            f"--model {name!r} fails: {_first_line(error)}; give a function without arguments that makes the "
            "module, such as lambda: Net(width=64)"
        ) from error
    if not isinstance(module, nn.Module):
        raise LoadError(f"--model {name!r} makes a {type(module).__name__}, not an nn.Module")
    return module


def _taken(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except (ValueError, TypeError):
        return {}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {key: value for key, value in arguments.items() if key in parameters}


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
