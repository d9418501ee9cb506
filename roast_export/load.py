"""Opening a model file; save.py writes the archive that opens without the model's code.

| file | opened as |
|---|---|
| archive of `save`, or any torch.export .pt2 | its traced graph; refused where opening it would run code |
| pickled nn.Module | the module, only with trust: unpickling runs code from the file |
| state dict, safetensors, checkpoint | the module that `model` = "package.module:factory" makes, filled |

Layers of research code (FakeRoast, RzLinear, ROBE) in what was opened become virtual layers; see
importers.py and docs/checkpoints.md. Anything else is refused by name.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from roast_export.archive import ARCHIVE_NOTE, runs_code
from roast_export.checkpoint import Checkpoint, built, indexed_state, model_in, safetensors_state
from roast_export.errors import InputError, LoadError
from roast_export.facts import Facts, read_facts
from roast_export.file_kind import ARCHIVE, PICKLE, SAFETENSORS, SHARDS, begins_as_zip, check_members, kind_of
from roast_export.golden import MEMBER, from_text
from roast_export.import_report import ImportReport
from roast_export.importers import convert, research_layers, survey
from roast_export.plain_pickle import load_plain
from roast_export.program import LoadedProgram, quiet
from roast_export.reading import copied, opened
from roast_export.state_layers import bare_model, describe, fill
from roast_export.stored_tensors import check_stored
from roast_export.wrappers import unwrapped


def load(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    trust: bool = False,
    facts: Facts | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    keep_dense: bool = False,
) -> nn.Module:
    """Open a model file (the table above) on the CPU.

    model: "package.module:factory" that builds the module a bare state dict belongs to; for a research
        checkpoint the factory may build the ordinary dense model. Of the hyper_parameters in a checkpoint
        of Lightning it is given those that it takes.
    trust: the file comes from someone you trust with running code on this machine.
    facts: what a research checkpoint does not store (docs/checkpoints.md): a dict, .toml or .json file.
    keep_dense: expand the weight of a research layer that has no formula, instead of refusing it.

    Raises:
        LoadError: the file is missing, damaged, of another kind, or may not be opened like this; or a
            research layer cannot be converted exactly.
        InputError: the facts are malformed, or there is nothing that they are about.
    """
    path, read = Path(path), read_facts(facts)
    opened = _open(path, model, trust)
    if _is_research(opened):
        with _named(path):
            return convert(opened, read, keep_dense=keep_dense)[0]
    if read != Facts():
        raise InputError(f"facts are given, but {path} has no layer of research code; leave them out")
    return opened


def look(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    trust: bool = False,
    facts: Facts | Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> tuple[nn.Module, ImportReport | None]:
    """What a file holds: the model, as it is, and a survey of the research layers in it.

    A FakeRoast state dict needs no factory for this: its tables hold the shapes. Otherwise as `load`.
    """
    path, read = Path(path), read_facts(facts)
    bare = model is None
    opened = _open(path, model, trust, alone=True)
    if not _is_research(opened):
        return opened, None
    if bare and opened.__dict__.get("_bare"):
        read = Facts({"scale": 1.0} | read.defaults, read.layers)
    with _named(path):
        return opened, survey(opened, read)


def _open(path: Path, model: str | None, trust: bool, *, alone: bool = False) -> nn.Module:
    """The module in a file, before any conversion. alone: a state dict may do without a factory."""
    with opened(path, wanted=_WANTED) as file:
        kind = kind_of(file, path)
        if kind == ARCHIVE:
            return _open_archive(file, path, trust)
        if kind == PICKLE:
            return _open_pickle(file, path, model, trust, alone)
        if kind == SAFETENSORS:
            return _filled(Checkpoint(safetensors_state(file, path)), path, model, alone)
        if kind == SHARDS:
            return _filled(Checkpoint(indexed_state(file, path)), path, model, alone)
    raise LoadError(f"{path} is {kind}; {_NEXT_STEP.get(kind, _WANTED)}")


def _is_research(opened: nn.Module) -> bool:
    return not isinstance(opened, LoadedProgram) and bool(research_layers(opened))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of an import begin with the file that they are about."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error


_WANTED = (
    "give an archive of roast_export.save, a .pt2, a pickled module (--trust), or a state dict, a checkpoint "
    "or a safetensors file (--model)"
)
_NEXT_STEP = {
    "a TorchScript archive": "export from the Python model it was made from",
    "an ONNX model": "it is exported already; roast-inspect and roast-verify read it",
    "an ORT-format model": "it is exported already",
    "an ExecuTorch program": "it is exported already",
}


def _open_archive(file: BinaryIO, path: Path, trust: bool) -> nn.Module:
    with copied(file, path) as copy:
        check_members(copy, path)
        return _load_archive(copy, path, trust)


def _load_archive(copy: Path, path: Path, trust: bool) -> nn.Module:
    """The archive in `copy`, which nobody else writes to and which messages call `path`."""
    try:
        reason = None if trust else runs_code(copy)
        if reason is None:
            check_stored(copy, path)
            with quiet():
                extra = {ARCHIVE_NOTE: "", MEMBER: ""}
                program = torch.export.load(copy, extra_files=extra)
                loaded = LoadedProgram(program, _facts(extra[ARCHIVE_NOTE]))
                loaded.roast_errors = _errors(extra[ARCHIVE_NOTE])
                loaded.goldens = from_text(extra[MEMBER]) if extra[MEMBER] else []
                return loaded
    except LoadError:
        raise
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(
            f"{path} cannot be opened as a torch.export archive: {message}; save the model again"
        ) from error
    raise LoadError(
        f"{path} is a torch.export archive that runs code when opened ({reason}); add --trust "
        "(trust=True) if you trust where it comes from, or write it anew with roast_export.save"
    )


def _facts(note: str | bytes) -> list[str]:
    """What our archives say of the call that was traced; of other archives nothing."""
    try:
        return [" ".join(str(fact).split())[:400] for fact in json.loads(note).get("facts", [])]
    except (ValueError, TypeError, AttributeError):
        return []


def _errors(note: str | bytes) -> dict[str, float]:
    """What `relative_errors` found when the archive was written; of other archives nothing."""
    try:
        errors = json.loads(note).get("errors", {})
        return {str(name): float(error) for name, error in errors.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _open_pickle(file: BinaryIO, path: Path, model: str | None, trust: bool, alone: bool) -> nn.Module:
    if begins_as_zip(file):
        check_members(file, path)
    file.seek(0)
    try:
        with quiet():
            content = load_plain(file)
    except LoadError as error:
        raise LoadError(f"{path} is refused: {error}") from error
    except pickle.UnpicklingError as error:
        if not trust:
            raise LoadError(
                f"{path} is a pickled object, and unpickling runs code from the file; add --trust "
                f"(trust=True) if you trust where it comes from{_needed(error)}"
            ) from error
        content = _unpickle(file, path)
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path} is truncated or damaged ({message}); copy it again") from error
    found = model_in(content)
    if isinstance(found, nn.Module):
        return unwrapped(found)
    if found is None:
        raise LoadError(f"{path} holds a {type(content).__name__}, not a module or a state dict; {_WANTED}")
    return _filled(found, path, model, alone)


def _filled(found: Checkpoint, path: Path, model: str | None, alone: bool) -> nn.Module:
    """What the factory makes, with the values of a checkpoint."""
    if model is None:
        bare = bare_model(found.state) if alone else None
        if bare is not None:
            bare.__dict__["_bare"] = True
            return bare
        raise LoadError(
            f"{path} is a state dict of {len(found.state)} entries{describe(found.state)}: values without a "
            "model; say what builds the module with --model package.module:factory (model=...)"
        )
    module = unwrapped(built(_factory(model), found.arguments, model))
    try:
        return fill(module, found.state).eval()
    except LoadError as error:
        raise LoadError(f"{path} does not fit what {model} makes: {error}") from error


def _needed(error: BaseException) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (it asks for {found.group(1)})" if found else ""


def _unpickle(file: BinaryIO, path: Path) -> Any:
    _see_working_folder()
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except (ModuleNotFoundError, AttributeError) as error:
        raise LoadError(f"{path} needs its model's code: {error}; put it on PYTHONPATH") from error
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path} cannot be unpickled: {message}; save the model again") from error


def _see_working_folder() -> None:
    """Let a user's module beside the command be imported, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _factory(name: str) -> Callable[[], nn.Module]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise LoadError(f"--model {name!r} must look like package.module:factory")
    _see_working_folder()
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LoadError(f"--model {name!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise LoadError(f"--model {name!r} is not callable")
    return factory  # type: ignore[no-any-return]
