"""What a model can be exported for, by the names that transformers and optimum use.

Names of inputs, outputs and dynamic dimensions are those of optimum's ONNX files, so that programs
which run such files (ORTModel, transformers.js) find what they look for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roast_export.errors import InputError
from roast_export.huggingface.folder import Folder, imported

BATCH, SEQUENCE, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = "total_sequence_length"
ENCODED, DECODED = "encoder_sequence_length", "decoder_sequence_length"


@dataclass(frozen=True)
class Task:
    """One thing to export a model for."""

    name: str
    outputs: tuple[str, ...]
    """Names of the outputs, which are fields of the ModelOutput."""
    tables: tuple[str, ...]
    """Tables of transformers (MODEL_FOR_..._MAPPING_NAMES) that list the classes which can do it."""
    past: bool = False
    """Whether keys and values of earlier tokens are inputs and outputs."""


_LOGITS = ("logits",)
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("text-classification", _LOGITS, ("SEQUENCE_CLASSIFICATION",)),
        Task("token-classification", _LOGITS, ("TOKEN_CLASSIFICATION",)),
        Task("question-answering", ("start_logits", "end_logits"), ("QUESTION_ANSWERING",)),
        Task("multiple-choice", _LOGITS, ("MULTIPLE_CHOICE",)),
        Task("text-generation-with-past", _LOGITS, ("CAUSAL_LM",), past=True),
        Task("text-generation", _LOGITS, ("CAUSAL_LM",)),
        Task("automatic-speech-recognition-with-past", _LOGITS, ("SPEECH_SEQ_2_SEQ",), past=True),
        Task("automatic-speech-recognition", _LOGITS, ("CTC", "SPEECH_SEQ_2_SEQ")),
        Task("text2text-generation-with-past", _LOGITS, ("SEQ_TO_SEQ_CAUSAL_LM",), past=True),
        Task("text2text-generation", _LOGITS, ("SEQ_TO_SEQ_CAUSAL_LM",)),
        Task("fill-mask", _LOGITS, ("MASKED_LM",)),
        Task("image-classification", _LOGITS, ("IMAGE_CLASSIFICATION",)),
        Task("audio-classification", _LOGITS, ("AUDIO_CLASSIFICATION",)),
        Task("sentence-similarity", ("token_embeddings", "sentence_embedding"), ()),
        Task("feature-extraction", ("last_hidden_state",), ()),
    )
}
"""In the order in which the default of a class is looked for."""

ALIASES = {
    "sequence-classification": "text-classification",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "causal-lm-with-past": "text-generation-with-past",
    "seq2seq-lm": "text2text-generation",
    "seq2seq-lm-with-past": "text2text-generation-with-past",
    "default": "feature-extraction",
}


def task_of(folder: Folder, name: str | None = None) -> Task:
    """The task asked for, or the one that the class in config.json was trained for.

    Raises:
        InputError: the task is not known, or the class in config.json cannot do it.
    """
    able = _able(folder.architecture)
    if folder.pipeline is not None:
        able.insert(0, TASKS["sentence-similarity"])
    able.append(TASKS["feature-extraction"])
    if name is None:
        return able[0]
    task = TASKS.get(ALIASES.get(name, name))
    if task is None:
        raise InputError(f"--task {name!r} is not known; one of {', '.join(TASKS)}")
    if task not in able:
        can = ", ".join(other.name for other in able)
        raise InputError(
            f"--task {name}: {folder.architecture} in {folder.path} has no layers for it; it can do {can}"
        )
    return task


def _able(architecture: str) -> list[Task]:
    imported()
    from transformers.models.auto import modeling_auto

    def lists(table: str) -> bool:
        found: Mapping[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {})
        return any(architecture == names or architecture in names for names in found.values())

    return [task for task in TASKS.values() if any(lists(table) for table in task.tables)]
