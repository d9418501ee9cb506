"""What a network learns with tiles of one shape or another: python -m bench.tiles MINILM (`make tiles`).

Writes docs/tiles.md, which says what is measured.
"""

from __future__ import annotations

import ast
import inspect
import random
import statistics
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from bench import markdown
from roast_export import compress, families, scale_gradients
from roast_export.modules import VirtualWeight, make_virtual
from roast_export.placement import evenness

ROOT = Path(__file__).parent.parent
LAYER, WIDTH, INNER, TOKENS, TEXTS = 3, 384, 1536, 64, 1500
STEPS, BATCH, LEARNING_RATE = 400, 256, 1e-2
SEEDS, MOST_DRAWS = 4, 64

Data = tuple[Tensor, Tensor, Tensor, Tensor]
Tile = tuple[int, int, int]
"""Inputs, outputs, and what starts are multiples of."""

CASES: dict[int, tuple[Tile, ...]] = {
    20: ((32, 32, 16), (32, 32, 32), (16, 64, 64), (32, 64, 64), (32, 128, 128)),
    100: ((16, 16, 16), (32, 32, 16), (16, 64, 64), (32, 64, 64), (8, 128, 128)),
    300: ((8, 16, 16), (16, 16, 16), (8, 32, 32), (8, 64, 64), (4, 128, 128)),
}

PAGE = """# What tiles cost

Written by `make tiles`. The feed-forward block of a MiniLM layer (384 to 1536 to 384) is learnt anew from
what goes in and comes out of it on real text, with both weights virtual, an array each.

Mean squared error on text that was not learnt from, in units of the outputs' variance, after {STEPS} steps
of Adam; mean and range over {SEEDS} seeds. "Any coefficients" are the first that are drawn; the last column
takes the least even (`evenness` in `placement.py`) of {DRAWS} draws for each weight.

{table}
"""


def texts() -> list[str]:
    """Docstrings of the standard library, in an order that does not depend on the file system."""
    found: set[str] = set()
    for path in Path(sysconfig.get_path("stdlib")).glob("**/*.py"):
        if "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text is not None and len(text) > 200:
                    found.add(inspect.cleandoc(text))
    chosen = sorted(found)
    random.Random(0).shuffle(chosen)
    return chosen[:TEXTS]


def hidden_states(folder: Path) -> Data:
    """What goes in and comes out: float32[tokens, 384] twice to learn from, twice to measure on."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    block, seen = model.encoder.layer[LAYER], {}
    block.intermediate.register_forward_hook(lambda _, given, __: seen.update(x=given[0]))
    block.output.dense.register_forward_hook(lambda _, __, made: seen.update(y=made))
    x, y = [], []
    chosen = texts()
    with torch.no_grad():
        for k in range(0, len(chosen), 32):
            batch = tokenizer(
                chosen[k : k + 32],
                return_tensors="pt",
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
            )
            model(**batch)
            there = batch["attention_mask"].bool()
            x.append(seen["x"][there])
            y.append(seen["y"][there])
    inputs, outputs = torch.cat(x), torch.cat(y)
    inputs = (inputs - inputs.mean(0)) / inputs.std()
    outputs = (outputs - outputs.mean(0)) / outputs.std()
    n = len(inputs) * 9 // 10
    return inputs[:n], outputs[:n], inputs[n:], outputs[n:]


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))


def tiled(ratio: int, tile: Tile, draws: int, seed: int) -> nn.Module:
    """The block over an array for each weight; of so many draws of coefficients the least even."""
    net = dense()
    for number, layer in enumerate((net[0], net[2])):
        shape = tuple(layer.weight.shape)
        n_memory = -(-round(layer.weight.numel() / ratio) // 64) * 64
        first = 1000 * seed + 100 * number
        drawn = [
            families.roast(shape, n_memory, seed=first + k, tile=tile[:2], align=tile[2])
            for k in range(draws)
        ]
        generator = torch.Generator().manual_seed(first)
        size = (3 * layer.in_features) ** -0.5
        memory = nn.Parameter(size * torch.randn(n_memory, generator=generator))
        make_virtual(layer, {"weight": VirtualWeight(memory, min(drawn, key=evenness))})
    return net


def compressed(ratio: int, local: bool, seed: int) -> nn.Module:
    return compress(dense(), ratio, seed=seed, local=local, init="fresh")


def error(net: nn.Module, data: Data) -> float:
    """Mean squared error on text not learnt from, in units of the outputs' variance."""
    x, y, test_x, test_y = data
    if any(isinstance(module, VirtualWeight) for module in net.modules()):
        scale_gradients(net)
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        rows = torch.randint(0, len(x), (BATCH,), generator=generator)
        loss = nn.functional.mse_loss(net(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return float(nn.functional.mse_loss(net(test_x), test_y))


def rows(data: Data, console: Console) -> Iterator[list[str]]:
    def seen(what: str, build: Callable[[int], nn.Module]) -> str:
        errors = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            errors.append(error(build(seed), data))
        text = f"{statistics.mean(errors):.4f} ({min(errors):.4f}-{max(errors):.4f})"
        console.print(what, text, highlight=False)
        return text

    yield ["dense", "", seen("dense", lambda _: dense()), ""]
    for ratio, tiles in CASES.items():
        for tile in tiles:
            name = f"{tile[0]}x{tile[1]}, starts on {tile[2]}"
            first, worst = (
                seen(f"{ratio}x {name}", partial(tiled, ratio, tile, draws)) for draws in (1, MOST_DRAWS)
            )
            yield [f"{ratio}x", name, first, worst]
        for local, name in (
            (True, "`compress`, an array for each weight"),
            (False, "`compress`, one for both"),
        ):
            yield [f"{ratio}x", name, seen(f"{ratio}x {name}", partial(compressed, ratio, local)), ""]


def main() -> None:
    torch.set_num_threads(1)
    columns = ["smaller", "tiles (inputs x outputs)", "any coefficients", f"the least even of {MOST_DRAWS}"]
    found = list(rows(hidden_states(Path(sys.argv[1])), Console()))
    text = PAGE.format(STEPS=STEPS, SEEDS=SEEDS, DRAWS=MOST_DRAWS, table=markdown.table(columns, found))
    (ROOT / "docs" / "tiles.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
