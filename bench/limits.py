"""What the machine allows: the ratio to dense if every product ran as fast as it can at best."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bench.machine import Peaks

RUNS = 5
TARGETS = {
    ((4096, 4096), 100): {1: 3.0, 8: 3.0, 32: 1.7, 128: 1.15},
    ((4096, 4096), 1000): {1: 4.0},
    ((768, 3072), 100): {1: 1.5, 4: 1.5, 8: 1.5, 16: 1.0, 32: 1.0, 128: 1.0, 512: 1.0},
    ((3072, 768), 100): {1: 1.5, 4: 1.5, 8: 1.5, 16: 1.0, 32: 1.0, 128: 1.0, 512: 1.0},
}
"""Ratios to dense fp32 that this project wants, by (out, in), compression and batch."""

MODEL_TARGETS = {"sequence 8": 2.5, "sequence 32": 1.6, "sequence 128": 1.1}


def model_row(
    rows: list[dict], facts: dict, file: Path, feeds: dict[str, np.ndarray], flops: float, peaks: Peaks
) -> dict:
    """The limits of one model and input: dense time / (products at a peak + our time in everything else)."""
    seconds = {row["peer"].split()[0]: row["seconds"] for row in rows if row["case"] == facts["case"]}
    other = other_seconds(file, feeds, peaks.threads)
    return {
        **facts,
        "threads": peaks.threads,
        "speedup": seconds["dense"] / seconds["roast"],
        "other_seconds": other,
        "limit": seconds["dense"] / (flops / (peaks.gflops * 1e9) + other),
        "product_limit": seconds["dense"] / (flops / (peaks.product_gflops * 1e9) + other),
    }


def other_seconds(file: Path, feeds: dict[str, np.ndarray], threads: int) -> float:
    """Seconds of one run outside products with virtual weights, by onnxruntime's own profile."""
    import onnxruntime

    from roast_export.runtimes import create_session

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(file.with_suffix(".profile"))
    session = create_session(file, options)
    for _ in range(RUNS):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return 1e-6 / RUNS * sum(event["dur"] for event in events if _is_other(event))


def layer_rows(layers: list[dict]) -> list[dict]:
    """Our layers that have a target, with the ratios that they would have at the two peaks."""
    found = []
    for row in layers:
        targets = TARGETS.get((tuple(row["shape"]), row["ratio"]), {}) if row["peer"] == "roast" else {}
        target = targets.get(row["batch"])
        if target is not None:
            # At batch 1 a product is bound by what it reads; its limit is not the multipliers'.
            limit, of_product = (
                row["speedup"] * 100 / row[f"{peak}_percent"] for peak in ("peak", "product")
            )
            found.append({**row, "target": target, "limit": limit, "product_limit": of_product})
    return found


def _is_other(event: dict) -> bool:
    operator = event.get("args", {}).get("op_name", "")
    kernel = event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time")
    return kernel and not operator.startswith("RoastLinear")
