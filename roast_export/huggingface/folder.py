"""A folder of a transformers model: what is in it, before anything of it is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roast_export.errors import LoadError
from roast_export.reading import opened

CONFIG = "config.json"
SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
SENTENCE = "modules.json"


@dataclass(frozen=True)
class Folder:
    """A folder with a config.json. pipeline: the sentence-transformers pipeline that it is a part of."""

    path: Path
    config: dict[str, Any]
    pipeline: Path | None = None

    @property
    def compressed(self) -> bool:
        return self.quantised == "roast"

    @property
    def quantised(self) -> str | None:
        entry = self.config.get("quantization_config")
        return str(entry.get("quant_method")) if isinstance(entry, dict) else None

    @property
    def architecture(self) -> str:
        named = self.config.get("architectures")
        if isinstance(named, list) and named and isinstance(named[0], str):
            return named[0]
        raise LoadError(
            f"{self.path / CONFIG} names no architecture; load the model with transformers and save it with "
            "save_pretrained, which writes one"
        )

    def model_class(self) -> Any:
        """The class of transformers that config.json names. Code from the folder is never imported."""
        transformers = imported()
        name = self.architecture
        found = getattr(transformers, name, None)
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            own = "auto_map" in self.config
            why = "brings code of its own, which is never run" if own else "is not one of transformers'"
            raise LoadError(
                f"{self.path}: the class {name} {why}; load the model in Python and write it with "
                "roast_export.save"
            )
        return found

    def check_weights(self, trust: bool) -> None:
        """Raises LoadError where there are no weights, or pickled ones without `trust`."""
        if (self.path / ADAPTER).is_file():
            raise LoadError(
                f"{self.path} holds an adapter ({ADAPTER}); merge it into its base model with PEFT's "
                "merge_and_unload, and give the folder of the result"
            )
        if self.quantised not in (None, "roast"):
            raise LoadError(
                f"{self.path} is quantised with {self.quantised}; give the folder of the float model that it "
                "was made from"
            )
        if any((self.path / name).is_file() for name in SAFE):
            return
        pickled = [name for name in PICKLED if (self.path / name).is_file()]
        if not pickled:
            raise LoadError(f"{self.path} has a {CONFIG} and no {SAFE[0]}; copy the weights beside it")
        if not trust:
            raise LoadError(
                f"{self.path / pickled[0]} is a pickle, which can run code when it is opened; add --trust "
                "(trust=True) if you trust where it comes from, or take the model's safetensors file"
            )


def is_folder(path: Path) -> bool:
    """Whether this is a folder of a transformers model, or of a sentence-transformers pipeline."""
    return path.is_dir() and ((path / CONFIG).is_file() or (path / SENTENCE).is_file())


def open_folder(path: Path) -> Folder:
    """Raises LoadError if the folder is not there or its config.json cannot be read."""
    if not path.is_dir():
        raise LoadError(f"{path} is no folder; give one with {CONFIG} and {SAFE[0]}")
    if (path / SENTENCE).is_file():
        inner = path / _transformer_of(path)
        if (inner / CONFIG).is_file():
            return Folder(inner, read_json(inner / CONFIG), pipeline=path)
    if not (path / CONFIG).is_file():
        raise LoadError(f"{path} has no {CONFIG}; give a folder that save_pretrained of transformers wrote")
    return Folder(path, read_json(path / CONFIG))


def _transformer_of(path: Path) -> str:
    """Where the transformer of a sentence-transformers pipeline lies: its first module."""
    modules = read_json(path / SENTENCE, list)
    first = modules[0] if modules else {}
    inner = first.get("path") if isinstance(first, dict) else None
    if not isinstance(inner, str) or Path(inner).is_absolute() or ".." in Path(inner).parts:
        raise LoadError(f"{path / SENTENCE} is damaged; copy the folder again")
    return inner


def read_json(path: Path, kind: type = dict) -> Any:
    try:
        with opened(path) as file:
            content = json.loads(file.read().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path} cannot be read ({error}); copy it again") from error
    if not isinstance(content, kind):
        raise LoadError(f"{path} holds a {type(content).__name__}, not a {kind.__name__}; copy it again")
    return content


def imported() -> Any:
    """transformers, or a LoadError that says how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise LoadError(
            "a folder of a transformers model needs transformers: pip install 'roast-export[huggingface]'"
        ) from error
    return transformers
