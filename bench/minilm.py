"""The route of a sentence model at its own size: python -m bench.minilm MINILM [RATIO ...] (`make minilm`).

For each ratio: compress, export with the proof, and compare what plain onnxruntime gives for a few
sentences with transformers and mean pooling written out here. Prints one line for each ratio.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer

from roast_export import huggingface
from roast_export.huggingface.commands import quiet_transformers
from roast_export.huggingface.fidelity import SENTENCES

BOUND = 1e-5
"""Of elements of embeddings, which have length 1."""

RATIOS = (1.0, 2.0, 10.0)
COLUMNS = ("ratio", "model.onnx", "mean cosine to dense", "off transformers", "control", "compress", "export")
WIDTHS = (6, 14, 21, 17, 10, 9, 9)


def embeddings(model: torch.nn.Module, batch: dict[str, torch.Tensor], counted: torch.Tensor) -> np.ndarray:
    """float32[sentences, dim] of length 1: the mean of the tokens that int64[sentences, tokens] counts."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = counted.unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()


def command(name: str, *arguments: str | Path) -> float:
    """Run one of the package's commands; its seconds. Its output is shown where it fails."""
    start = time.perf_counter()
    program = [Path(sys.executable).parent / name, *arguments]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stdout}")
    return time.perf_counter() - start


def route(minilm: Path, ratio: float, folder: Path) -> bool:
    """Whether the exported file gives the embeddings of the compressed model, and padding would be seen."""
    small, out = folder / "compressed", folder / "onnx"
    compressed = command("roast-compress", minilm, "--ratio", f"{ratio:g}", "-o", small)
    exported = command("roast-export", small, "--to", "onnx", "-o", out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {value.name: batch[value.name].numpy() for value in session.get_inputs()}
    found = session.run(["sentence_embedding"], feeds)[0]
    model, mask = huggingface.from_pretrained(small), batch["attention_mask"]
    dense = embeddings(AutoModel.from_pretrained(minilm), batch, mask)
    off = np.abs(found - embeddings(model, batch, mask)).max()
    control = np.abs(found - embeddings(model, batch, torch.ones_like(mask))).max()
    size = (out / "model.onnx").stat().st_size
    cosine = (found * dense).sum(1).mean()
    cells = (f"{ratio:g}", f"{size:,}", f"{cosine:.3f}", f"{off:.1e}", f"{control:.1e}")
    print(_line((*cells, f"{compressed:.0f} s", f"{exported:.0f} s")), flush=True)
    return bool(off <= BOUND < control)


def _line(cells: tuple[str, ...]) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def main() -> int:
    quiet_transformers()
    print("off: largest difference of an embedding; control: the same where padding is pooled too")
    print(_line(COLUMNS), flush=True)
    good = []
    for ratio in [float(value) for value in sys.argv[2:]] or RATIOS:
        with tempfile.TemporaryDirectory() as made:
            good.append(route(Path(sys.argv[1]), ratio, Path(made)))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
