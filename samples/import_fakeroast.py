"""Import a FakeRoast checkpoint of BERT-base size, prove it and export it, on a small machine.

The checkpoint is written first, in a process of its own: a state dict as FakeRoast leaves it, with the
full index and sign table of every layer. Weights are random and nothing is downloaded.
"""

import argparse
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import nn
from transformers import BertConfig, BertModel

import roast_export
from roast_export.import_report import import_report
from roast_export.progress import progress

PRIME = 2038074743
SCALE = 0.5
CONFIG = BertConfig()


class Encoder(nn.Module):
    """Token ids int64[batch, sequence] in, hidden states out."""

    def __init__(self, config):
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids):
        return self.bert(input_ids=input_ids).last_hidden_state


def encoder():
    """The ordinary dense model: the factory of the import."""
    return Encoder(CONFIG)


def index_table(kind, shape, offset, n_memory, seed):
    """IDX of one layer, int64[shape], as docs/checkpoints.md describes it."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.randint(0, 1 << 29, shape, generator=generator) % n_memory
    a0, a1, a2, _ = (2 * torch.randint(1, PRIME // 2 - 1, (4,), generator=generator) + 1).tolist()
    if kind == "roast":
        rows, cols = shape[1], shape[0]
        r, c = torch.arange(rows)[:, None], torch.arange(cols)[None, :]
        start = (r // 32 + offset) * a0 + (c // 32 + offset + rows) * a1 + a2
        view = start % PRIME % (n_memory - 1024) + r % 32 * 32 + c % 32
        return view.T.contiguous()
    place = torch.arange(math.prod(shape)) + offset
    x, inner = (place, 0) if kind == "hashednet" else (place // n_memory, place % n_memory)
    return (((x * a0 + x * x * a1 + a2) % PRIME % n_memory + inner) % n_memory).reshape(shape)


def sign_table(kind, shape, seed):
    """G of one layer, float32[shape]; in `random` mode the signs follow the slots."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        torch.randint(0, 1 << 29, shape, generator=generator)
    return torch.randint(0, 2, shape, dtype=torch.float, generator=generator) * 2 - 1


def write(path, kind, ratio):
    """A FakeRoast state dict: every linear layer and table compressed into one array."""
    torch.manual_seed(0)
    model = encoder()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    total = sum(layer.weight.numel() for layer in layers.values())
    array = torch.randn(int(total / ratio)) * 0.04
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("position_ids")}
    offset = 0
    for seed, (name, layer) in enumerate(layers.items(), 1025):
        shape = tuple(layer.weight.shape)
        # Tables of embeddings are cut into tiles of their own; pareto serves for both here.
        own = "pareto" if kind == "roast" and isinstance(layer, nn.Embedding) else kind
        del state[f"{name}.weight"]
        state[f"{name}.WHelper.weight"] = array
        state[f"{name}.WHelper.IDX"] = index_table(own, shape, offset, array.numel(), seed)
        state[f"{name}.WHelper.G"] = sign_table(own, shape, seed)
        offset += math.prod(shape)
    state["roast_array"] = array
    torch.save(state, path)


def peak_bytes():
    """Largest resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main():
    global CONFIG
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["pareto", "roast", "hashednet", "random"], default="pareto")
    parser.add_argument("--ratio", type=float, default=10, help="weights per array slot")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--portable", action="store_true", help="carry packed signs: no library needed")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the files")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    CONFIG = BertConfig(
        num_hidden_layers=options.layers,
        hidden_size=options.hidden,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        vocab_size=options.vocabulary,
        attn_implementation="eager",
    )
    if options.write:
        return write(options.write, options.kind, options.ratio)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint, exported = options.out / "fakeroast.pt", options.out / "fakeroast.onnx"
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--write", str(checkpoint)], check=True)

    start = time.perf_counter()
    facts = {"defaults": {"scale": SCALE}}
    model = roast_export.load(checkpoint, model=f"{__name__}:encoder", facts=facts)
    seconds, peaks = {"import": time.perf_counter() - start}, {"import": peak_bytes()}
    print(import_report(model))

    ids = torch.randint(1, options.vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    with progress() as show:
        report = roast_export.export(
            model,
            exported,
            example_inputs={"input_ids": ids},
            dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}},
            portable=options.portable,
            progress=show,
        )
    seconds["export and proof"], peaks["export and proof"] = time.perf_counter() - start, peak_bytes()
    print(report)
    print(f"{'checkpoint':26}{checkpoint.stat().st_size:>16,} bytes")
    print(f"{'array':26}{report.array_bytes:>16,} bytes")
    print(f"{'never compressed':26}{report.kept_bytes:>16,} bytes")
    print(f"{'exported file':26}{report.file_bytes:>16,} bytes")
    for step, taken in seconds.items():
        print(f"{step:26}{taken:>14.1f} s{peaks[step]:>16,} bytes of RAM at the peak")
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
