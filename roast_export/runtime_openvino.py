"""ONNX Runtime's OpenVINO build in a process of its own; it would replace the package onnxruntime.

OpenVINO computes int64 as int32 (onnx_lookup.py), and so shows what other runtimes do that cut integers.
`make openvino` installs it into build/openvino.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from roast_export.built import build_folder, missing
from roast_export.errors import RoastError
from roast_export.runtimes import Array, ProcessRun, Run, Runtime

NAME = "onnxruntime openvino"

_PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
folder = Path(sys.argv[1])
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
providers = [("OpenVINOExecutionProvider", {"device_type": "CPU"}), "CPUExecutionProvider"]
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=providers)
if session.get_providers()[0] != "OpenVINOExecutionProvider":
    sys.exit("the OpenVINO provider does not load here")
for k in range(int(sys.argv[3])):
    with np.load(folder / f"in{k}.npz") as inputs:
        outputs = session.run(None, dict(inputs))
    np.savez(folder / f"out{k}.npz", *outputs)
"""


def runtimes() -> list[Runtime]:
    """OpenVINO on this machine's CPU. It has no library of ours, and not every operator."""
    return [Runtime(NAME, open_openvino, unavailable, complete=False)]


def unavailable() -> str | None:
    return missing([build_folder() / "openvino" / ".ready"], "make openvino")


def open_openvino(model: str | bytes) -> Run:
    """A model, by its path or as bytes."""

    def all_of(sets: Sequence[dict[str, Array]]) -> list[list[Array]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = Path(model) if isinstance(model, str) else folder / "model.onnx"
            if isinstance(model, bytes):
                path.write_bytes(model)
            for k, inputs in enumerate(sets):
                np.savez(folder / f"in{k}.npz", **inputs)  # type: ignore[arg-type]
            _run([str(folder), str(path), str(len(sets))])
            return [_arrays(folder / f"out{k}.npz") for k in range(len(sets))]

    return ProcessRun(all_of)


def _run(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(build_folder() / "openvino")}
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"ended with status {done.returncode}"]
        raise RoastError(f"{NAME} cannot run the model: {reason[0]}")


def _arrays(path: Path) -> list[Array]:
    with np.load(path) as outputs:
        return [outputs[f"arr_{k}"] for k in range(len(outputs))]
