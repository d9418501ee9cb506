"""A recommender whose 26 embedding tables, 10 million rows together, share one array of 160,000 numbers.

The tables never exist: each is a mapping from its rows into the array. The clicks are synthetic,
drawn from a hidden model of the ids and the dense features, so that there is something to learn.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import onnxruntime
import torch
import torch.jit.mobile
from sklearn.metrics import roc_auc_score
from torch import nn

import roast_export
from roast_export import families

DENSE, DIM, BATCH = 13, 16, 1024
ROWS = (
    [1_000_000] * 8 + [400_000] * 4 + [100_000] * 4 + [20_000, 5_000, 2_000, 1_000, 500, 100, 50, 20, 10, 3]
)
"""Rows of the tables: a few large ones and many small ones, as in click logs."""

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts", "lite": ".ptl", "pt2": ".pt2"}
"""Formats that this sample opens again."""


def tables(rows, ratio, seed=0):
    """One array, and a virtual table float32[rows, DIM] over it for each entry of `rows`."""
    n_memory = -(-round(sum(rows) * DIM / ratio) // DIM) * DIM
    generator = torch.Generator().manual_seed(seed)
    memory = nn.Parameter(0.1 * torch.randn(n_memory, generator=generator))
    layers = nn.ModuleList()
    for k, n in enumerate(rows):
        # One tile is one row: a lookup reads one 64-byte line of the array.
        mapping = families.roast(
            (n, DIM), n_memory, seed=1000 * seed + k, tile=(1, DIM), align=DIM, transposed=False
        )
        layers.append(roast_export.RoastEmbedding(roast_export.VirtualWeight(memory, mapping)))
    return layers


class Recommender(nn.Module):
    """Features float32[batch, 13] and ids int64[batch, tables] in, click scores float32[batch] out.

    The shape of DLRM (Naumov et al., 2019, arXiv:1906.00091): every two vectors meet in a dot product.
    """

    def __init__(self, layers):
        super().__init__()
        self.tables = layers
        self.bottom = nn.Sequential(nn.Linear(DENSE, 64), nn.ReLU(), nn.Linear(64, DIM))
        n = len(layers) + 1
        above = torch.triu_indices(n, n, 1)
        self.register_buffer("pairs", above[0] * n + above[1])
        self.top = nn.Sequential(nn.Linear(len(self.pairs) + DIM, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, features, ids):
        bottom = self.bottom(features)
        rows = [table(ids[:, k]) for k, table in enumerate(self.tables)]
        vectors = torch.stack([bottom, *rows], 1)
        products = (vectors @ vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat((bottom, products), 1)).squeeze(1)


def clicks(rows, n, generator):
    """n impressions. Popular ids come first, and each id has a hidden taste for clicks."""
    features = torch.randn(n, DENSE, generator=generator)
    sizes = torch.tensor(rows)
    ids = (sizes ** torch.rand(n, len(rows), generator=generator, dtype=torch.float64)).long() - 1
    taste = torch.sin(ids * 12.9898 + torch.arange(len(rows)) * 78.233).float()
    score = taste.sum(1) / 2 + features[:, :3].sum(1) / 3 + taste[:, -1] * features[:, 0]
    return features, ids, (torch.rand(n, generator=generator) < torch.sigmoid(score)).float()


def train(model, rows, steps, generator):
    """Fresh impressions in every step, as a click log gives them."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(1, steps + 1):
        features, ids, labels = clicks(rows, BATCH, generator)
        loss = nn.functional.binary_cross_entropy_with_logits(model(features, ids), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: loss {float(loss.detach()):.4f}", flush=True)
    return model.eval()


def scores_of(model, features, ids):
    with torch.no_grad():
        return model(features, ids)


def opened(path, to):
    """Functions of features and ids, by what runs the file."""
    if to == "torchscript":
        return {"TorchScript": torch.jit.load(str(path))}
    if to == "lite":
        return {"lite interpreter": torch.jit.mobile._load_for_lite_interpreter(str(path))}
    if to == "pt2":
        module = torch.export.load(path).module()
        return {"torch.export": lambda features, ids: module(features=features, ids=ids)}

    def runner(session):
        def run(features, ids):
            return torch.from_numpy(session.run(None, {"features": features.numpy(), "ids": ids.numpy()})[0])

        return run

    return {
        "ONNX Runtime, native operators": runner(roast_export.create_session(path)),
        "ONNX Runtime, no library": runner(
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratio", type=float, default=1000, help="virtual weights per array slot")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--shrink", type=int, default=1, help="divide the rows of every table by this")
    parser.add_argument("--to", choices=list(SUFFIXES), default="onnx", help="format of the file")
    parser.add_argument("--portable", action="store_true", help="a file that needs no library")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [max(3, n // options.shrink) for n in ROWS]

    start = time.perf_counter()
    torch.manual_seed(0)
    model = Recommender(tables(rows, options.ratio))
    generator = torch.Generator().manual_seed(0)
    features, ids, labels = clicks(rows, 8192, generator)

    def quality(scores):
        return roc_auc_score(labels, scores)

    before = quality(scores_of(model, features, ids))
    train(model, rows, options.steps, generator)
    seconds = time.perf_counter() - start
    expected = scores_of(model, features, ids)

    path = options.out / f"recommender{SUFFIXES[options.to]}"
    report = roast_export.export(
        model,
        path,
        to=options.to,
        portable=options.portable,
        example_inputs={"features": features[:4], "ids": ids[:4]},
        dynamic_shapes={"features": {0: "batch"}, "ids": {0: "batch"}},
    )
    report.save(options.out / "recommender.html")
    print(report)

    numbers = sum(rows) * DIM
    print(
        f"{len(rows)} tables of {sum(rows):,} rows: {numbers:,} virtual numbers, {4 * numbers:,} bytes dense"
    )
    print(f"one array of {report.array_bytes // 4:,} numbers, file of {report.file_bytes:,} bytes")
    print(f"{'area under the ROC curve':34}{'AUC':>8}{'difference':>12}")
    print(f"{'before training':34}{before:>8.4f}")
    print(f"{'trained, PyTorch':34}{quality(expected):>8.4f}{0:>12.1e}")
    for name, run in opened(path, options.to).items():
        scores = scores_of(run, features, ids)
        difference = float((scores - expected).abs().max())
        print(f"{name:34}{quality(scores):>8.4f}{difference:>12.1e}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"training {seconds:.0f} s, all {time.perf_counter() - start:.0f} s, {peak:,} bytes of RAM at peak")
    return int(not report.passed)


if __name__ == "__main__":
    sys.exit(main())
