"""ExecuTorch's own runtime, from the package executorch, for .pte files of both forms."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from roast_export.arrays import array_of, tensor_of
from roast_export.built import build_folder, missing
from roast_export.errors import RoastError
from roast_export.runtimes import Array, Runtime

Run = Callable[[dict[str, Array]], list[Array]]

_LOADED: list[ctypes.CDLL] = []


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
    return _open(path)


def open_native(path: str | bytes) -> Run:
    from executorch.runtime import Runtime

    Runtime.get()
    if not _LOADED:
        # A second copy would register its operators twice, which ends the process.
        _LOADED.append(ctypes.CDLL(str(library_path())))
    return _open(path)


def _open(path: str | bytes) -> Run:
    from executorch.runtime import Runtime

    try:
        with _silence():
            method = Runtime.get().load_program(path).load_method("forward")
    except Exception as error:
        raise RoastError(f"executorch cannot load the file: {error}") from error

    def run(inputs: dict[str, Array]) -> list[Array]:
        tensors = [tensor_of(value) for value in inputs.values()]
        try:
            with _silence():
                outputs = method.execute(tensors)
        except Exception as error:
            raise RoastError(f"executorch cannot run the file: {error}") from error
        return [array_of(output) for output in outputs]

    return run


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """It writes about the processor to the process's own error stream, past Python."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


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
    from executorch.runtime import Runtime

    with _silence():
        present = Runtime.get().backend_registry.is_available("XnnpackBackend")
    return (
        None if present else "this executorch was built without XNNPACK; run `pip install executorch==1.5.1`"
    )
