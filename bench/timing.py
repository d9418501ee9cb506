"""Sessions that do not disturb each other, and alternating rounds over several of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from roast_export.libraries import ort_library_path

LEAST_ROUNDS, MOST_ROUNDS = 7, 200
SLOW_SHARE = 0.25
"""A peer that alone takes more of the budget than this in one run stops after LEAST_ROUNDS."""
BURST_SECONDS = 0.004
"""Runs in a row of one peer: at least one, and as many as fit in this time."""

Run = Callable[[], None]


@dataclass
class Sample:
    """warm: seconds of runs after a run of the same peer; first: of runs right after another peer's.

    A peer whose runs are long has no warm ones.
    """

    warm: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def statistics(self) -> dict[str, float]:
        low, median, high = np.quantile(self.warm or self.first, (0.1, 0.5, 0.9))
        return {
            "seconds": float(median),
            "p10": float(low),
            "p90": float(high),
            "first": float(np.median(self.first)),
            "runs": len(self.warm or self.first),
        }


def session(
    model: Path | bytes, threads: int, *, native: bool = False, fold: bool = True
) -> onnxruntime.InferenceSession:
    """A session as the benchmark uses it.

    Its threads may spin within a run, as they do by default, and stop when the run is over:
    otherwise the idle sessions of a comparison would take cores from the one that is timed.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if native:
        options.register_custom_ops_library(ort_library_path())
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=[] if fold else ["ConstantFolding"],
    )


def bound(ready: onnxruntime.InferenceSession, *feeds: dict[str, np.ndarray]) -> Run:
    """A run that copies and allocates nothing outside the model: the same cost of the call for every peer.

    Of several `feeds`, all of the same shapes, each run takes the next; all write to the same outputs.
    """
    names = [output.name for output in ready.get_outputs()]
    arrays = ready.run(names, feeds[0])
    outputs = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    bindings = []
    for feed in feeds:
        binding = ready.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for name, output in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(name, output)
        bindings.append(binding)
    turn = itertools.cycle(bindings)

    def run(kept: tuple = (feeds, arrays, outputs)) -> None:
        # A binding holds addresses; what they point to lives as long as this function.
        ready.run_with_iobinding(next(turn))

    return run


def alternate(peers: dict[str, Run], budget: float, least: int = LEAST_ROUNDS) -> dict[str, Sample]:
    """Rounds A B C A B C ... over `peers` until `budget` seconds are spent and `least` rounds are done."""
    repeats = {name: _repeats(run) for name, run in peers.items()}
    samples = {name: Sample() for name in peers}
    start = time.perf_counter()
    active, rounds = dict(peers), 0
    while active and rounds < MOST_ROUNDS:
        if rounds >= least:
            active = {
                name: run for name, run in active.items() if min(samples[name].first) <= SLOW_SHARE * budget
            }
            if time.perf_counter() - start >= budget:
                break
        for name, run in active.items():
            _burst(run, samples[name], repeats[name])
        rounds += 1
    return samples


def _repeats(run: Run) -> int:
    """Runs after the first one in each burst. Decided once: a choice by each time would favour some."""
    run()
    taken = _timed(run)
    return min(20, int(BURST_SECONDS / taken))


def _burst(run: Run, sample: Sample, repeats: int) -> None:
    sample.first.append(_timed(run))
    sample.warm += [_timed(run) for _ in range(repeats)]


def _timed(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
