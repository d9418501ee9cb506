"""ExecuTorch for 64-bit ARM, the processor of phones, under qemu-user.

`make mobile` fetches and builds what it takes into build/executorch-arm64
(custom_ops/cross/executorch_arm.py). A run is a process of its own (custom_ops/cross/et_run.cc).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from roast_export.built import build_folder, missing
from roast_export.errors import RoastError
from roast_export.runtime_qemu import LIMIT, command_of
from roast_export.runtimes import Array, ProcessRun, Run, Runtime
from roast_export.tensor_file import decode_all, encode, run_program


def runtimes() -> list[Runtime]:
    """ExecuTorch on 64-bit ARM without our operators, and with them."""
    return [
        Runtime("executorch arm64 portable", open_portable, unavailable, limit=LIMIT, emulated=True),
        Runtime(
            "executorch arm64 native",
            open_native,
            native_unavailable,
            native=True,
            limit=LIMIT,
            emulated=True,
        ),
    ]


def xnnpack_runtimes(native: bool) -> list[Runtime]:
    """The same for files that leave to XNNPACK what is not virtual. native: they hold our operators."""
    found = native_unavailable if native else unavailable
    run = open_native if native else open_portable
    return [Runtime("executorch arm64 xnnpack", run, found, native=native, limit=LIMIT, emulated=True)]


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

    def all_of(sets: Sequence[dict[str, Array]]) -> list[list[Array]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "in").write_bytes(b"".join(encode(inputs) for inputs in sets))
            files = (path, library, folder / "in", folder / "out")
            words = [*command_of(_program()), *files, *map(str, isa)]
            run_program("executorch on arm64", words)
            return decode_all((folder / "out").read_bytes())

    return ProcessRun(all_of)


def _program() -> Path:
    return build_folder() / "executorch-arm64" / "et_run"


def _library() -> Path:
    return build_folder() / "executorch-arm64" / "libroast_executorch.so"
