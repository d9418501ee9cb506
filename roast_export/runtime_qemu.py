"""ONNX Runtime for 64-bit ARM, the processor of phones, under qemu-user.

`make mobile` fetches what it takes into build/qemu (custom_ops/cross/emulator.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roast_export.built import build_folder, missing
from roast_export.ort_process import NO_LIBRARY, OrtProcess
from roast_export.runtimes import DISABLE_FOLDING, Run, Runtime

LIMIT = 1 << 24
"""Virtual elements above which an emulated run takes minutes."""


def runtimes() -> list[Runtime]:
    """ONNX Runtime on 64-bit ARM with the library of `make cross`, and without it."""
    return [
        Runtime(
            "onnxruntime arm64 native",
            open_native,
            native_unavailable,
            native=True,
            limit=LIMIT,
            emulated=True,
        ),
        Runtime("onnxruntime arm64 portable", open_portable, unavailable, limit=LIMIT, emulated=True),
    ]


def open_native(model: str | bytes) -> Run:
    return open_with(model, str(_library()))


def open_portable(model: str | bytes) -> Run:
    return open_with(model, NO_LIBRARY, [f"{DISABLE_FOLDING}=ConstantFolding"])


def unavailable() -> str | None:
    folder = build_folder() / "qemu"
    needed = [folder / "bin" / "qemu-aarch64", folder / "ort_run-aarch64", _onnxruntime()]
    return missing(needed, "make mobile")


def native_unavailable() -> str | None:
    return unavailable() or missing([_library()], "make cross")


def _library() -> Path:
    return build_folder() / "cross" / "linux-arm64" / "libroast_ort.so"


def _onnxruntime() -> Path:
    return build_folder() / "qemu" / "aarch64" / "libonnxruntime.so.1"


def open_with(model: str | bytes, library: str, entries: Sequence[str] = ()) -> Run:
    """library: an operator library for arm64 Linux, or "-"; entries: session entries, as NAME=VALUE."""
    return OrtProcess("onnxruntime on arm64", command_of("ort_run-aarch64"), _onnxruntime()).open(
        model, library, entries
    )


def command_of(program: Path | str) -> tuple[Path | str, ...]:
    """What runs a program for arm64 Linux; a name is that of one in build/qemu."""
    qemu = build_folder() / "qemu"
    return (qemu / "bin" / "qemu-aarch64", "-L", qemu / "aarch64", qemu / program)
