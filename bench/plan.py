"""What is measured: the full form, the quick form, and the tiny one of the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """layers: (out, in) of each weight; embeddings: (rows, dim); lookups: ids in one run.

    budget: seconds of timed rounds for one row of peers; slow peers may take longer.
    """

    name: str
    layers: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    ratios: tuple[int, ...]
    embeddings: tuple[tuple[int, int], ...]
    models: tuple[str, ...]
    budget: float
    threads: tuple[int, ...] = (1, 2)
    lookups: int = 4096
    shrink: int = 1


FULL = Form(
    "full",
    layers=((768, 768), (768, 3072), (3072, 768), (4096, 4096), (11008, 4096)),
    batches=(1, 4, 8, 16, 32, 128, 512),
    ratios=(10, 100, 1000),
    embeddings=((10_000_000, 16), (1_000_000, 128)),
    models=(
        *("bert", "bert, local arrays", "mlp", "recommender", "cnn"),
        *("lstm", "gru", "bilinear", "deconvolution", "mixture"),
    ),
    budget=2.5,
)
QUICK = Form(
    "quick",
    layers=((768, 3072), (4096, 4096)),
    batches=(1, 8, 128),
    ratios=(100,),
    embeddings=((1_000_000, 16),),
    models=("mlp", "cnn", "gru", "bilinear"),
    budget=0.6,
)
TINY = Form(
    "tiny",
    layers=((64, 96),),
    batches=(1, 3),
    ratios=(4,),
    embeddings=((300, 16),),
    models=("mlp",),
    budget=0.0,
    threads=(1,),
    lookups=8,
    shrink=64,
)
FORMS = {form.name: form for form in (FULL, QUICK, TINY)}


def groups(form: Form, only: str = "") -> list[dict]:
    """One entry for each process: what it measures. only: part of a group's name."""
    common = {"budget": form.budget, "ratios": form.ratios, "shrink": form.shrink}
    found = []
    for threads in form.threads:
        shared = {**common, "threads": threads, "memory": threads == min(form.threads)}
        for shape in form.layers:
            name = f"layer {shape[0]}x{shape[1]}, {threads} thread(s)"
            found.append({**shared, "kind": "layer", "name": name, "shape": shape, "batches": form.batches})
        for shape in form.embeddings:
            name = f"embedding {shape[0]}x{shape[1]}, {threads} thread(s)"
            found.append(
                {**shared, "kind": "embedding", "name": name, "shape": shape, "lookups": form.lookups}
            )
    for model in form.models:
        # One process for all thread counts: making the files takes longer than running them.
        found.append(
            {**common, "kind": "model", "name": f"model {model}", "model": model, "threads": form.threads}
        )
    return [group for group in found if only in group["name"]]
