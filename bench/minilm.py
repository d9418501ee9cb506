"""The route of a sentence model at its own size: python -m bench.minilm MINILM [RATIO] (`make minilm`).

Compresses, exports, and compares what plain onnxruntime gives for a few sentences with transformers and
mean pooling written out here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer

from roast_export import huggingface
from roast_export.huggingface.fidelity import SENTENCES

BOUND = 1e-5
"""Of elements of embeddings, which have length 1."""


def embeddings(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """float32[sentences, dim] of length 1: the mean of the tokens that the mask counts."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()


def route(minilm: Path, ratio: float, folder: Path) -> bool:
    """Whether the exported file gives the embeddings of the compressed model, and not those of another."""
    small, out = folder / "compressed", folder / "onnx"
    scripts = Path(sys.executable).parent
    run = partial(subprocess.run, check=True)
    run([scripts / "roast-compress", minilm, "--ratio", f"{ratio:g}", "-o", small])
    run([scripts / "roast-export", small, "--to", "onnx", "-o", out])

    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {value.name: batch[value.name].numpy() for value in session.get_inputs()}
    found = session.run(["sentence_embedding"], feeds)[0]
    expected = embeddings(huggingface.from_pretrained(small), batch)
    dense = embeddings(AutoModel.from_pretrained(minilm), batch)
    off, other = np.abs(found - expected).max(), np.abs(found - dense).max()
    print(f"largest difference of an embedding from transformers with mean pooling: {off:.2e}")
    print(f"and from those of the dense model: {other:.2e}, mean cosine {(found * dense).sum(1).mean():.3f}")
    return bool(off <= BOUND < other)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        good = route(Path(sys.argv[1]), float((sys.argv[2:] or ["10"])[0]), Path(made))
    sys.exit(0 if good else 1)
