"""Compress a BERT-base-size encoder 100x and export it, with the proof, on a small machine.

The weights are random and nothing is downloaded: size, memory and time are what this shows.
"""

import argparse
import os
import resource
import sys
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import nn
from transformers import BertConfig, BertModel

import roast_export
from roast_export.measure import measure
from roast_export.progress import progress

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts", "lite": ".ptl", "pt2": ".pt2"}
"""Formats that this sample opens again."""


class Encoder(nn.Module):
    """Token ids and attention mask int64[batch, sequence] in, hidden states and pooled state out."""

    def __init__(self, config):
        super().__init__()
        self.bert = BertModel(config)

    def forward(self, input_ids, attention_mask):
        segments = torch.zeros_like(input_ids)
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=segments)
        return states.last_hidden_state, states.pooler_output


def compressed(config, ratio, local=False):
    """The dense model exists only inside this function."""
    torch.manual_seed(0)
    dense = Encoder(config)
    parameters = sum(p.numel() for p in dense.parameters())
    return roast_export.compress(dense, ratio, local=local, init="fresh").eval(), parameters


def examples(config, sequence=32):
    """Two sentences, the second one shorter."""
    ids = torch.randint(1, config.vocab_size, (2, sequence), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, sequence // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def dense_measurement(config, folder):
    """What the same model costs in ONNX Runtime when its weights are stored: for comparison only."""
    torch.manual_seed(0)
    path, inputs = folder / "dense.onnx", examples(config)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(Encoder(config).eval(), (), path, kwargs=inputs, dynamo=True, verbose=False)
    try:
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        return measure(path, feeds, native=False, fold=True, runs=3, label="dense")
    finally:
        for file in folder.glob("dense.onnx*"):
            file.unlink()


def peak_bytes():
    """Largest resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratio", type=float, default=100, help="virtual weights per array slot")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--to", choices=list(SUFFIXES), default="onnx", help="format of the file")
    parser.add_argument("--portable", action="store_true", help="a file that needs no library")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = BertConfig(
        num_hidden_layers=options.layers,
        hidden_size=options.hidden,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        vocab_size=options.vocabulary,
        # A sentence whose mask is all 0 has defined states here; torch and ONNX differ on them with "sdpa".
        attn_implementation="eager",
    )

    start = time.perf_counter()
    model, parameters = compressed(config, options.ratio)
    seconds = {"compress": time.perf_counter() - start}
    peaks = {"compress": peak_bytes()}
    axes = {0: "batch", 1: "sequence"}
    start = time.perf_counter()
    with progress() as show:
        report = roast_export.export(
            model,
            options.out / f"bert{SUFFIXES[options.to]}",
            to=options.to,
            portable=options.portable,
            example_inputs=examples(config),
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            progress=show,
        )
    seconds["export and proof"] = time.perf_counter() - start
    peaks["export and proof"] = peak_bytes()
    if options.to == "onnx":
        report.measurements.append(dense_measurement(config, options.out))
    report.save(options.out / "bert.html")

    print(report)
    print(f"{'dense parameters':26}{parameters:>14,}{4 * parameters:>16,} bytes")
    print(f"{'array':26}{report.array_bytes // 4:>14,}{report.array_bytes:>16,} bytes")
    print(f"{'never compressed':26}{report.kept_bytes // 4:>14,}{report.kept_bytes:>16,} bytes")
    print(f"{'exported file':26}{'':14}{report.file_bytes:>16,} bytes")
    print(f"{'largest file allowed':26}{'':14}{report.limit_bytes:>16,} bytes")
    for found in report.measurements:
        if found.path in ("native", "dense"):
            name = f"memory of a {found.path} session"
            print(f"{name:26}{'':14}{found.load_resident_bytes:>16,} bytes")
    for step, taken in seconds.items():
        print(f"{step:26}{taken:>12.1f} s{peaks[step]:>16,} bytes of RAM at the peak")
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
