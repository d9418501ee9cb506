"""ExecuTorch for 64-bit ARM, the processor of phones, under qemu-user.

`make mobile` fetches and builds what it takes into build/executorch-arm64
(custom_ops/cross/executorch_arm.py). A run is a process of its own (custom_ops/cross/et_run.cc).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from roast_export.built import build_folder, missing
from roast_export.errors import RoastError
from roast_export.runtime_qemu import LIMIT, command_of
from roast_export.runtimes import Array, Run, Runtime
from roast_export.tensor_file import decode, encode, run_program


def runtimes() -> list[Runtime]:
    """ExecuTorch on 64-bit ARM without our operators, and with them."""
    return [
        Runtime("executorch arm64 portable", open_portable, unavailable, limit=LIMIT),
        Runtime("executorch arm64 native", open_native, native_unavailable, native=True, limit=LIMIT),
    ]


def xnnpack_runtimes(native: bool) -> list[Runtime]:
    """The same for files that leave to XNNPACK what is not virtual. native: they hold our operators."""
    found = native_unavailable if native else unavailable
    run = open_native if native else open_portable
    return [Runtime("executorch arm64 xnnpack", run, found, native=native, limit=LIMIT)]


def unavailable() -> str | None:
    """Why portable files cannot be run here, or None."""
    return missing([build_folder() / "qemu" / "bin" / "qemu-aarch64", _program()], "make mobile")


def native_unavailable() -> str | None:
    """Why native files cannot be run here, or None."""
    return unavailable() or missing([_library()], "make mobile")


def open_portable(path: str | bytes) -> Run:
    return _open(path, "-")


def open_native(path: str | bytes, isa: int | None = None) -> Run:
    """isa: an instruction set by its number in roast_kernel.h; default: the best."""
    return _open(path, str(_library()), *(() if isa is None else (isa,)))


def _open(path: str | bytes, library: str, *isa: int) -> Run:
    if isinstance(path, bytes):
        raise RoastError("a .pte is opened by its path")

    def run(inputs: dict[str, Array]) -> list[Array]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "in").write_bytes(encode(inputs))
            files = (path, library, folder / "in", folder / "out")
            words = [*command_of(_program()), *files, *map(str, isa)]
            run_program("executorch on arm64", words)
            return decode((folder / "out").read_bytes())

    return run


def _program() -> Path:
    return build_folder() / "executorch-arm64" / "et_run"


def _library() -> Path:
    return build_folder() / "executorch-arm64" / "libroast_executorch.so"
