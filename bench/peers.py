"""A peer of a comparison: a file, how it is opened, and what a run of it moves and computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.machine import Peaks
from bench.timing import Run, Sample, alternate, bound, session
from roast_export.measure import measure


@dataclass(frozen=True)
class Peer:
    """kind: dense, int8, int4, fp16, roast, portable or hashed. ratio: weights per array slot, or 0.

    path: which code computes it. weight_bytes: what one pass over the weight reads.
    bound: largest error relative to `Truth.scale`; None for a form that rounds the weight.
    """

    kind: str
    file: Path
    ratio: int = 0
    path: str = "onnxruntime"
    weight_bytes: float = 0.0
    bound: float | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.ratio}x" if self.ratio else self.kind

    @property
    def native(self) -> bool:
        return self.kind in ("roast", "hashed")

    @property
    def fold(self) -> bool:
        return self.kind != "portable"


@dataclass(frozen=True)
class Truth:
    """What a peer must compute. scale: the size that its error is relative to, element by element."""

    values: np.ndarray
    scale: np.ndarray | float


class WrongResult(Exception):
    """A peer does not compute what it should: no time is taken of it."""


def check(peer: Peer, actual: np.ndarray, truth: Truth) -> float:
    """The error, relative RMS.

    Raises:
        WrongResult: it is beyond what the peer's arithmetic explains.
    """
    if actual.shape != truth.values.shape or not np.isfinite(actual).all():
        raise WrongResult(f"{peer.name}: shape {actual.shape} or values that are not finite")
    difference = np.abs(actual - truth.values)
    size = float(np.sqrt(np.mean(np.square(truth.values, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))) / (size or 1.0)
    if peer.bound is None:
        # Rounded weights: the error is reported; only nonsense is refused.
        if error > 0.5:
            raise WrongResult(f"{peer.name}: relative error {error:.2g}")
    elif (difference > peer.bound * truth.scale).any():
        raise WrongResult(f"{peer.name}: an error of {difference.max():.3g} is beyond the bound")
    return error


def compare(
    peers: list[Peer],
    feeds: dict[str, np.ndarray],
    truths: dict[str, Truth],
    *,
    threads: int,
    budget: float,
    sessions: dict[tuple[str, int], object],
    more_feeds: Sequence[dict[str, np.ndarray]] = (),
) -> tuple[dict[str, Sample], dict[str, float]]:
    """Check every peer against its truth, then time them in alternating rounds.

    more_feeds: inputs that the timed runs take in turn with `feeds`.
    """
    runs: dict[str, Run] = {}
    errors = {}
    for peer in peers:
        key = (peer.name, threads)
        if key not in sessions:
            sessions[key] = session(peer.file, threads, native=peer.native, fold=peer.fold)
        errors[peer.name] = check(peer, sessions[key].run(None, feeds)[0], truths[peer.name])
        runs[peer.name] = bound(sessions[key], feeds, *more_feeds)
    return alternate(runs, budget), errors


def time_rows(
    peers: list[Peer],
    samples: dict[str, Sample],
    errors: dict[str, float],
    peaks: Peaks,
    flops: float,
    facts: dict,
) -> list[dict]:
    """One row for each peer: times, and what they are against the dense layer and the machine."""
    dense = samples["dense"].statistics()["seconds"]
    rows = []
    for peer in peers:
        found = samples[peer.name].statistics()
        gflops, gb_s = 1e-9 * flops / found["seconds"], 1e-9 * peer.weight_bytes / found["seconds"]
        rows.append(
            {
                **facts,
                "threads": peaks.threads,
                "peer": peer.kind,
                "ratio": peer.ratio,
                "path": peer.path,
                **found,
                "speedup": dense / found["seconds"],
                "gflops": gflops,
                "peak_percent": 100 * gflops / peaks.gflops,
                "product_percent": 100 * gflops / peaks.product_gflops,
                "gb_s": gb_s,
                "l2_percent": 100 * gb_s / peaks.l2_gb_s if peaks.l2_gb_s else 0.0,
                "dram_percent": 100 * gb_s / peaks.dram_gb_s,
                "error": errors[peer.name],
            }
        )
    return rows


def memory_rows(peers: list[Peer], feeds: dict[str, np.ndarray], facts: dict) -> list[dict]:
    """File size, session creation and memory of each peer, in fresh processes with one thread."""
    rows = []
    for peer in peers:
        found = measure(peer.file, feeds, native=peer.native, fold=peer.fold, threads=1, runs=3)
        rows.append(
            {
                **facts,
                "peer": peer.kind,
                "ratio": peer.ratio,
                "path": peer.path,
                "file_bytes": peer.file.stat().st_size,
                "load_seconds": found.load_seconds,
                "load_resident_bytes": found.load_resident_bytes,
                "load_peak_bytes": found.load_peak_bytes,
                "run_resident_bytes": found.run_resident_bytes,
            }
        )
    return rows
