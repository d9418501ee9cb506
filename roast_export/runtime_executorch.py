"""ExecuTorch's own runtime, from the package executorch, for .pte files of both forms."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from roast_export.built import build_folder, missing
from roast_export.executorch_process import ExecutorchProcess
from roast_export.runtimes import Run, Runtime

PROCESS = ExecutorchProcess()


def unavailable() -> str | None:
    """Why portable files cannot be run here, or None."""
    if importlib.util.find_spec("executorch") is None:
        return "the package executorch is missing; run `pip install executorch==1.5.1`"
    return None


def native_unavailable() -> str | None:
    """Why native files cannot be run here, or None."""
    return unavailable() or missing([library_path()], "make mobile")


def library_path() -> Path:
    """The operators for ExecuTorch on this machine, or what ROAST_EXECUTORCH_LIBRARY names."""
    override = os.environ.get("ROAST_EXECUTORCH_LIBRARY")
    return Path(override) if override else build_folder() / "executorch" / "libroast_executorch.so"


def open_portable(path: str | bytes) -> Run:
    return PROCESS.open(path, None)


def open_native(path: str | bytes) -> Run:
    return PROCESS.open(path, library_path())


def runtimes() -> list[Runtime]:
    """ExecuTorch without our operators, and with them."""
    return [
        Runtime("executorch portable", open_portable, unavailable),
        Runtime("executorch native", open_native, native_unavailable, native=True),
    ]


def xnnpack_runtimes(native: bool) -> list[Runtime]:
    """ExecuTorch for files that leave to XNNPACK what is not virtual. native: they hold our operators."""
    found = native_unavailable if native else unavailable
    run = open_native if native else open_portable
    return [Runtime("executorch xnnpack", run, lambda: found() or _xnnpack_missing(), native=native)]


def _xnnpack_missing() -> str | None:
    if PROCESS.has_backend("XnnpackBackend"):
        return None
    return "this executorch was built without XNNPACK; run `pip install executorch==1.5.1`"
