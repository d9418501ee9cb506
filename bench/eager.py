"""Eager torch, dense and compressed, in alternating runs: python -m bench.eager"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import roast_export
from roast_export import torch_ops

RATIO = 100


def alternate(peers: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each peer; every round runs all of them."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for run in peers.values():
        run()
    for _ in range(rounds):
        for name, run in peers.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def inference(threads: int) -> None:
    """One linear layer."""
    torch.manual_seed(0)
    dense = nn.Linear(4096, 4096).eval()
    small = roast_export.compress(nn.Sequential(nn.Linear(4096, 4096)), RATIO, init="fresh").eval()
    for batch in (1, 8, 32, 128):
        x = torch.randn(batch, 4096)
        with torch.no_grad():
            found = alternate({"dense": lambda x=x: dense(x), "roast": lambda x=x: small(x)}, 60)
        show(f"linear 4096x4096, batch {batch}", threads, found)


def training(threads: int) -> None:
    """A step of a stack of encoder layers."""
    x = torch.randn(8, 128, 768)
    for name, optimiser in (("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam)):
        steps = {}
        for kind in ("dense", "roast"):
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(
                768, 12, 3072, batch_first=True, activation="gelu", dropout=0.0
            )
            model: nn.Module = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            if kind == "roast":
                model = roast_export.compress(model, RATIO, init="fresh")
            steps[kind] = _step(model.train(), optimiser(model.parameters(), lr=1e-4), x)
        show(f"training step, {name}", threads, alternate(steps, 4))


def show(what: str, threads: int, found: dict[str, float]) -> None:
    ratio = found["dense"] / found["roast"]
    times = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in found.items())
    print(f"{what}, {threads} thread(s): {times}, {ratio:.2f}x", flush=True)


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()

    return step


def main() -> None:
    print(f"native library: {torch_ops.LIBRARY_ABSENT or 'in use'}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        inference(threads)
        training(threads)


if __name__ == "__main__":
    main()
