"""Folders as they are written: whole or not at all, with the files that a model's user needs beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roast_export.errors import ExportError, LoadError
from roast_export.huggingface.folder import CONFIG, SENTENCE, Folder, read_json
from roast_export.watched import goes_with_the_child

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
    "normalizer.json",
    "chat_template.jinja",
    "chat_template.json",
)
OTHERS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "feature_extractor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
PIPELINE = (SENTENCE, "config_sentence_transformers.json", "sentence_bert_config.json")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A fresh folder beside `path`, which takes its place on success.

    Raises:
        ExportError: `path` is there already and not empty, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExportError(f"{path} exists; remove it or choose another folder with -o")
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    except OSError as error:
        raise ExportError(f"cannot write into {path.absolute().parent}: {error.strerror}") from error
    try:
        goes_with_the_child(made)
        # mkdtemp keeps others out; a folder of results has the rights of any new folder.
        made.chmod(0o777 & ~_umask())
        yield made
        os.replace(made, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def copy_beside(folder: Folder, target: Path, output: Path | None = None) -> None:
    """Tokenizer, preprocessor and generation files, those that are there.

    output: the folder that `target` is moved into. What it has stays as it is.

    Raises:
        LoadError: one is a link out of the model's folder.
    """
    for name in (*TOKENIZER, *OTHERS):
        there = any(os.path.lexists(place / name) for place in (target, output or target))
        if (folder.path / name).is_file() and not there:
            _check_link(folder.path / name, folder.pipeline or folder.path)
            shutil.copyfile(folder.path / name, target / name)


def _check_link(path: Path, folder: Path) -> None:
    """Raises LoadError for a link out of `folder`; the hub's cache keeps its files in `blobs` beside."""
    real, root = path.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs"
    cached = root.parent.name == "snapshots" and real.is_relative_to(blobs)
    if not (real.is_relative_to(root) or cached):
        raise LoadError(f"{path} is a link out of {folder}; put the file itself in its place")


def copy_config(folder: Folder, target: Path, output: Path) -> None:
    """config.json beside an exported file, which holds the records itself.

    output: the folder that `target` is moved into.

    Raises:
        ExportError: a config.json of another model would be lost.
    """
    there = output / CONFIG
    if os.path.lexists(there) and not _is_config_of(folder, there):
        raise ExportError(f"{there} is of another model; move it away or choose another folder with -o")
    config = {key: value for key, value in folder.config.items() if key != "quantization_config"}
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_config_of(folder: Folder, path: Path) -> bool:
    try:
        kind = read_json(path).get("model_type")
    except LoadError:
        return False
    return kind is not None and kind == folder.config.get("model_type")


def copy_pipeline(folder: Folder, target: Path) -> Path:
    """The rest of a sentence-transformers pipeline; where in `target` the transformer belongs."""
    if folder.pipeline is None:
        return target
    for name in PIPELINE:
        if (folder.pipeline / name).is_file():
            _check_link(folder.pipeline / name, folder.pipeline)
            shutil.copyfile(folder.pipeline / name, target / name)
    for module in read_json(folder.pipeline / SENTENCE, list)[1:]:
        inner = folder.pipeline / str(module.get("path", ""))
        if inner.is_dir() and inner.parent == folder.pipeline:
            for path in (inner, *inner.rglob("*")):
                _check_link(path, folder.pipeline)
            shutil.copytree(inner, target / inner.name, symlinks=False)
    place = target / folder.path.relative_to(folder.pipeline)
    place.mkdir(exist_ok=True)
    return place
