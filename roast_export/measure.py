"""Load and run an exported file in a fresh process, and say what that cost.

The child process runs this file by its path, so that it imports the runtime and numpy and not the
package: what it measures is what a program without it would see.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from roast_export.report import Measurement

TIMEOUT_SECONDS = 1800

Run = Callable[[dict[str, Any]], Any]


def measure(
    path: str | Path,
    inputs: dict[str, np.ndarray],
    *,
    native: bool,
    kind: str = "onnx",
    fold: bool = False,
    threads: int = 1,
    runs: int = 5,
    label: str | None = None,
) -> Measurement:
    """Memory, load time and latency of `path` in its runtime, in a process of its own.

    kind: "onnx", "torchscript", "lite", "pt2" or "executorch".
    native: register the operator library. Otherwise the portable functions run, and unless `fold`
        ONNX Runtime is kept from expanding them to dense weights at load.
    runs: timed runs, after one that is not timed; the median counts.
    label: what the report calls it; "native", "portable" or "portable, folded" without one.

    Bytes are growth against the process just before the file is opened, with the runtime
    imported and the inputs in memory. They are 0 where the system does not tell (not Linux).

    Raises:
        RoastError: the process failed; the message has the reason.
    """
    import numpy as np

    from roast_export.errors import RoastError
    from roast_export.libraries import ort_library_path, torch_library_path
    from roast_export.report import Measurement
    from roast_export.runtime_executorch import library_path as executorch_library_path

    paths: dict[str, Callable[[], str | Path]] = {
        "onnx": ort_library_path,
        "executorch": executorch_library_path,
    }
    if runs < 1 or threads < 1:
        raise RoastError(f"runs {runs} and threads {threads} must be at least 1")
    request: dict[str, Any] = {
        "path": str(Path(path).resolve()),
        "kind": kind,
        "library": str(paths.get(kind, torch_library_path)()) if native else None,
        "fold": fold or native,
        "threads": threads,
        "runs": runs,
    }
    with tempfile.TemporaryDirectory(prefix="roast-measure-") as folder:
        feeds = Path(folder) / "inputs.npz"
        named: dict[str, Any] = {f"_{name}": array for name, array in inputs.items()}
        request["inputs"] = str(feeds)
        try:
            np.savez(feeds, **named)
            # -P: this file's folder must not come before the standard library.
            child = subprocess.run(
                [sys.executable, "-P", str(Path(__file__).resolve()), json.dumps(request)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except OSError as error:
            raise RoastError(f"{path} could not be measured: {error.strerror or error}") from error
        except subprocess.TimeoutExpired as error:
            raise RoastError(f"measuring {path} took more than {TIMEOUT_SECONDS} s") from error
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise RoastError(f"{path} could not be measured: {last}")
    found = json.loads(child.stdout.splitlines()[-1])
    default = "native" if native else "portable, folded" if fold else "portable"
    return Measurement(path=label or default, **found)


def _resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes; 0 where /proc does not say."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines() if line.startswith(f"{key}:")]
    return int(lines[0][1]) * 1024 if lines else 0


def _forget_peak() -> None:
    """Set VmHWM back to VmRSS (proc(5), clear_refs): importing had a peak of its own."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _open_onnx(request: dict[str, Any]) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    if request["library"]:
        options.register_custom_ops_library(request["library"])
    disabled = [] if request["fold"] else ["ConstantFolding"]
    session = ort.InferenceSession(
        request["path"], options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    if not any("bfloat16" in value.type for value in [*session.get_inputs(), *session.get_outputs()]):
        return lambda feeds: session.run(None, feeds)
    # numpy has no bfloat16; 16 is its number in ONNX.
    make = ort.OrtValue.ortvalue_from_numpy
    make_bfloat16 = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
    return lambda feeds: session.run_with_ort_values(
        None,
        {n: make_bfloat16(v.view("u2"), 16) if v.dtype.kind == "V" else make(v) for n, v in feeds.items()},
    )


def _tensor(value: Any) -> Any:
    """What numpy.load gives, as a tensor; of bfloat16 it knows the size only."""
    import torch

    if value.dtype.kind == "V":
        return torch.from_numpy(value.view("u2")).view(torch.bfloat16)
    return torch.from_numpy(value)


def _open_torch(request: dict[str, Any]) -> Run:
    import torch

    torch.set_num_threads(request["threads"])
    if request["library"]:
        torch.ops.load_library(request["library"])
    if request["kind"] == "lite":
        from torch.jit.mobile import _load_for_lite_interpreter

        module = _load_for_lite_interpreter(request["path"])
    elif request["kind"] == "pt2":
        return _open_pt2(request["path"])
    else:
        module = torch.jit.load(request["path"])

    def run(feeds: dict[str, Any]) -> Any:
        with torch.no_grad():
            return module(*map(_tensor, feeds.values()))

    return run


def _open_pt2(path: str) -> Run:
    import torch

    program = torch.export.load(path)
    program._guards_code = []
    module, spec = program.module(check_guards=False), program.call_spec.in_spec

    def run(feeds: dict[str, Any]) -> Any:
        values = [_tensor(value) for value in feeds.values()]
        args, kwargs = torch.utils._pytree.tree_unflatten(values, spec)
        with torch.no_grad():
            return module(*args, **kwargs)

    return run


def _open_executorch(request: dict[str, Any]) -> Run:
    import ctypes

    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(request["threads"])
    if request["library"]:
        ctypes.CDLL(request["library"])
    method = Runtime.get().load_program(request["path"]).load_method("forward")
    return lambda feeds: method.execute([_tensor(value) for value in feeds.values()])


_OPENERS = {"onnx": ("onnxruntime", _open_onnx), "executorch": ("executorch.runtime", _open_executorch)}
"""What is imported before the first look at memory, and what opens a file; others are torch's."""


def _child(request: dict[str, Any]) -> dict[str, float]:
    import numpy as np

    warnings.simplefilter("ignore")
    runtime, opener = _OPENERS.get(request["kind"], ("torch.jit.mobile", _open_torch))
    __import__(runtime)

    with np.load(request["inputs"], allow_pickle=False) as archive:
        feeds = {name[1:]: archive[name] for name in archive.files}
    _forget_peak()
    before = _resident("VmRSS")
    start = time.perf_counter()
    run = opener(request)
    load_seconds = time.perf_counter() - start
    loaded, peak = _resident("VmRSS"), _resident("VmHWM")
    run(feeds)
    times = []
    for _ in range(request["runs"]):
        start = time.perf_counter()
        run(feeds)
        times.append(time.perf_counter() - start)
    return {
        "load_seconds": load_seconds,
        "load_resident_bytes": max(0, loaded - before),
        "load_peak_bytes": max(0, peak - before),
        "run_resident_bytes": max(0, _resident("VmRSS") - before),
        "run_seconds": statistics.median(times),
    }


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(_child(json.loads(sys.argv[1]))) + "\n")
    except Exception as error:
        message = " ".join(str(error).split())
        sys.exit(f"{type(error).__name__}: {message}")
