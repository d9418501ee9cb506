"""How far the outputs of a compressed model are from those of the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roast_export.huggingface.beside import TOKENIZER
from roast_export.huggingface.folder import Folder
from roast_export.huggingface.parts import parts_of
from roast_export.huggingface.tasks import Task

CLOSE = 0.99
"""Mean cosine from which on a compressed model may stand for the dense one."""

LOST = 0.5
"""Mean cosine up to which little of the dense model is left."""

SENTENCES = (
    "A man is playing a guitar on the street.",
    "The committee will publish its report next Tuesday.",
    "Photosynthesis turns light into chemical energy.",
    "She forgot her umbrella, so she got wet.",
    "How do I reset the password of my account?",
    "The stock market fell sharply after the announcement.",
    "Two plus two is four.",
    "An old dog sleeps in front of the fire.",
)


@dataclass(frozen=True)
class Fidelity:
    """Mean cosine between outputs of the compressed and of the dense model."""

    output: str
    cosine: float
    inputs: int
    text: bool
    """Whether the inputs were sentences; else they were random."""

    def sentence(self, ratio: float, folder: str) -> str:
        what = "sentences" if self.text else "random inputs"
        found = (
            f"The output {self.output} of the compressed model has a mean cosine of {self.cosine:.2f} to "
            f"that of the dense model, on {self.inputs} {what}."
        )
        if self.cosine >= CLOSE:
            return f"{found} Measure it on your own data before you ship it."
        return (
            f"{found} At {ratio:g}x without training the model has lost "
            f"{'part of ' if self.cosine > LOST else ''}what it had learned: fine-tune it, or distil it from "
            "the dense model, before you ship it. "
            f"roast_export.huggingface.from_pretrained({folder!r}) gives the model to train. A lower "
            "--ratio may lose less, and 1 loses nothing."
        )


def fidelity(folder: Folder, task: Task, dense: nn.Module, compressed: nn.Module) -> Fidelity:
    """Compare the two on a few sentences where there is a tokenizer, else on random inputs."""
    ours, theirs = (parts_of(folder, model, task)[0] for model in (compressed, dense))
    batches = _sentences(folder, ours.inputs) or _rows(ours.inputs)
    cosines = []
    for batch in batches:
        with torch.no_grad():
            outputs = [part.module.eval()(**batch) for part in (ours, theirs)]
        # The last output: of a sentence model its embedding, of an encoder what its decoder looks at.
        name = next(reversed(outputs[0]))
        a, b = (output[name].flatten().double() for output in outputs)
        cosines.append(torch.nn.functional.cosine_similarity(a, b, dim=0).item())
    text = "input_ids" in ours.inputs and len(batches) == len(SENTENCES)
    return Fidelity(name, sum(cosines) / len(cosines), len(batches), text)


def _sentences(folder: Folder, inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The sentences in the place of `inputs`; none if the folder has no tokenizer, or the task takes more."""
    from transformers import AutoTokenizer

    known = {*inputs} <= {"input_ids", "attention_mask", "token_type_ids"} and inputs["input_ids"].dim() == 2
    # Without its files transformers makes a tokenizer that knows no word.
    if not known or not any((folder.path / name).is_file() for name in TOKENIZER):
        return []
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
        found = [dict(tokenizer(sentence, return_tensors="pt")) for sentence in SENTENCES]
    except Exception:  # whatever a tokenizer raises: then random inputs do
        return []
    return [
        {name: batch.get(name, torch.zeros_like(batch["input_ids"])) for name in inputs} for batch in found
    ]


def _rows(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each row of the example, and of its reverse, without padding."""
    rows = [{name: value[:1] for name, value in inputs.items()}]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        row = dict(rows[0])
        for name, value in row.items():
            if value.is_floating_point():
                row[name] = torch.randn(value.shape, generator=generator)
            elif name == "input_ids":
                row[name] = value[..., torch.randperm(value.shape[-1], generator=generator)]
        rows.append(row)
    return rows
