"""The machine: what it is, and what its cores can do at best."""

from __future__ import annotations

import ctypes
import datetime
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("peak.cc")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DRAM_BYTES = 256 << 20
"""Bytes that each thread reads for the memory bandwidth: far more than a last-level cache keeps."""


@dataclass(frozen=True)
class Peaks:
    """Best speeds of `threads` threads together. method: how they were measured.

    product_gflops: of a product whose operands are at hand, in the first cache level.
    """

    threads: int
    gflops: float
    product_gflops: float
    l2_gb_s: float
    dram_gb_s: float
    method: str


def pin(threads: int) -> list[int]:
    """Keep this process on the last `threads` of its cores; returns them, or nothing where it cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    os.sched_setaffinity(0, cores)
    return cores


def build_loops(folder: Path) -> Path | None:
    """Compile peak.cc for this machine; None without a C++ compiler."""
    compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"peak-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    done = subprocess.run(
        [compiler, *FLAGS, str(SOURCE), "-o", str(library)], capture_output=True, check=False
    )
    return library if done.returncode == 0 else None


def peaks(library: Path | None, threads: int, seconds: float = 0.2) -> Peaks:
    """Measured now, by `threads` threads at once: what a row of the same process is compared with."""
    with ThreadPoolExecutor(threads) as pool:

        def together(work, *args):
            return sum(future.result() for future in [pool.submit(work, *args) for _ in range(threads)])

        if library is None:
            gflops = together(_numpy_gflops)
            return Peaks(threads, gflops, gflops, 0.0, together(_numpy_read), "numpy (lower bounds)")
        loops = ctypes.CDLL(str(library))
        for loop in (loops.roast_bench_fma, loops.roast_bench_product):
            loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_double]
        loops.roast_bench_read.restype = ctypes.c_double
        loops.roast_bench_read.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_double]

        def read(size):
            data = _aligned(size)
            return loops.roast_bench_read(data.ctypes.data, data.size, seconds)

        l2 = caches().get("L2", 512 << 10)
        return Peaks(
            threads,
            together(loops.roast_bench_fma, seconds),
            together(loops.roast_bench_product, seconds),
            together(read, l2 // 2),
            together(read, DRAM_BYTES),
            f"C++ loops, {loops.roast_bench_lanes()} float32 lanes",
        )


def describe(threads: list[int]) -> dict:
    """CPU, caches, memory, system and versions."""
    import onnx
    import onnxruntime
    import torch

    import roast_export

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "onnx": onnx.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "roast_export": roast_export.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def caches() -> dict[str, int]:
    """Bytes of the caches that the first core uses, by name: L1d, L2, L3."""
    found = {}
    for index in sorted(CACHES.glob("index*")):
        kind = (index / "type").read_text().strip()
        if kind != "Instruction":
            name = f"L{(index / 'level').read_text().strip()}{'d' if kind == 'Data' else ''}"
            text = (index / "size").read_text().strip()
            found[name] = int(text.rstrip("KM")) * (1 << 20 if text.endswith("M") else 1 << 10)
    return found


def largest_child_bytes() -> int:
    """Peak resident memory of the largest process that this one has started; 0 where it is not told."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def as_row(found: Peaks) -> dict:
    return asdict(found)


def _aligned(size: int) -> np.ndarray:
    raw = np.ones(size // 4 + 16, np.float32)
    return raw[(-raw.ctypes.data % 64) // 4 :][: size // 4]


def _numpy_gflops() -> float:
    matrix = np.ones((1024, 1024), np.float32)
    start = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2e-9 * 1024**3 / (time.perf_counter() - start)


def _numpy_read() -> float:
    data = np.ones(DRAM_BYTES // 4, np.float32)
    start = time.perf_counter()
    data.max()
    return 1e-9 * data.nbytes / (time.perf_counter() - start)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    model = facts.get("model name", platform.machine())
    family = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return model + family


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
