"""What the commands do with a folder of a transformers model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from roast_export.compress import compress
from roast_export.errors import InputError
from roast_export.huggingface.beside import copy_beside, copy_pipeline, new_folder
from roast_export.huggingface.fidelity import fidelity
from roast_export.huggingface.folder import Folder, imported, open_folder
from roast_export.huggingface.loading import load_folder
from roast_export.huggingface.parts import Part, parts_of
from roast_export.huggingface.tasks import TASKS, Task, task_of
from roast_export.modes import EXPERTS

ATTENTION = "eager"
"""Rows whose mask is empty have the same values in every runtime with this implementation alone."""


@dataclass(frozen=True)
class Opened:
    """A folder with its model and what it is exported as."""

    folder: Folder
    task: Task
    model: nn.Module
    parts: list[Part]


def open_parts(path: Path, task: str | None, *, trust: bool) -> Opened:
    """A compressed folder, as the files of a task.

    Raises:
        InputError: the folder is dense, or its model cannot do the task.
        LoadError: it cannot be loaded.
    """
    folder = open_folder(path)
    if folder.quantised is None:
        raise InputError(
            f"{path} holds a dense model, of which nothing is virtual; compress it first: "
            f"roast-compress {path} --ratio N -o {path.resolve().name}-Nx"
        )
    chosen = task_of(folder, task)
    model = open_model(folder, trust=trust)
    return Opened(folder, chosen, model, parts_of(folder, model, chosen))


def open_model(folder: Folder, *, trust: bool, **options: Any) -> nn.Module:
    quiet_transformers()
    return load_folder(folder, trust=trust, attention=ATTENTION, experts_implementation=EXPERTS, **options)


def compress_folder(
    path: Path, output: Path, ratio: float, task: str | None, *, trust: bool, **options: Any
) -> tuple[nn.Module, str]:
    """Compress the model of a folder into a folder that loads again, and say what it cost.

    options: as `compress` takes them.

    Raises:
        InputError: the model is compressed already, or as `compress` does.
        LoadError: the folder cannot be loaded.
        ExportError: `output` exists, or cannot be written.
    """
    folder = open_folder(path)
    if folder.compressed:
        raise InputError(f"{path} is compressed already; give the dense folder that it was made from")
    chosen = task_of(folder, task)
    dense = open_model(folder, trust=trust, dtype=torch.float32)
    with new_folder(output) as made:
        compressed = compress(dense, ratio, **options)
        place = copy_pipeline(folder, made)
        cast(Any, compressed).save_pretrained(place)
        copy_beside(folder, place)
        without_past = TASKS[chosen.name.removesuffix("-with-past")]
        cost = _cost(folder, without_past, dense, compressed, ratio, output)
    return compressed, cost


def _cost(
    folder: Folder, task: Task, dense: nn.Module, compressed: nn.Module, ratio: float, output: Path
) -> str:
    try:
        return fidelity(folder, task, dense, compressed).sentence(ratio, str(output))
    except Exception as error:  # whatever a model raises on inputs that it does not like
        return f"What compressing cost was not measured: {error}."


def quiet_transformers() -> None:
    """No bars and no load reports: what matters of them is an error here."""
    transformers = imported()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
