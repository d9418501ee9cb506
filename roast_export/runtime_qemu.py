"""ONNX Runtime for 64-bit ARM, the processor of phones, under qemu-user.

`make mobile` fetches what it takes into build/qemu (custom_ops/cross/emulator.py). A run is a process of
its own: custom_ops/cross/tensor_file.h documents the two files that go in and out.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from roast_export.built import build_folder, missing
from roast_export.errors import RoastError
from roast_export.runtimes import DISABLE_FOLDING, Array, Run, Runtime

LIMIT = 1 << 24
"""Virtual elements above which an emulated run takes minutes."""


def runtimes() -> list[Runtime]:
    """ONNX Runtime on 64-bit ARM with the library of `make cross`, and without it."""
    return [
        Runtime("onnxruntime arm64 native", open_native, native_unavailable, native=True, limit=LIMIT),
        Runtime("onnxruntime arm64 portable", open_portable, unavailable, limit=LIMIT),
    ]


def open_native(model: str | bytes) -> Run:
    return open_with(model, str(_library()))


def open_portable(model: str | bytes) -> Run:
    return open_with(model, "-", [f"{DISABLE_FOLDING}=ConstantFolding"])


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

    def run(inputs: dict[str, Array]) -> list[Array]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if isinstance(model, bytes):
                (folder / "model.onnx").write_bytes(model)
            path = folder / "model.onnx" if isinstance(model, bytes) else model
            (folder / "in").write_bytes(encode(inputs))
            files = (path, library, folder / "in", folder / "out")
            run_arm64(
                "onnxruntime", build_folder() / "qemu" / "ort_run-aarch64", _onnxruntime(), *files, *entries
            )
            return decode((folder / "out").read_bytes())

    return run


def run_arm64(name: str, program: Path, *arguments: object) -> None:
    """Run a program for arm64 Linux. Raises RoastError, about the runtime `name`, with what it said."""
    qemu = build_folder() / "qemu"
    command = [qemu / "bin" / "qemu-aarch64", "-L", qemu / "aarch64", program, *arguments]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip()[-500:] or f"ended with status {done.returncode}"
        raise RoastError(f"{name} on arm64 cannot run the model: {reason}")


def encode(tensors: dict[str, Array]) -> bytes:
    """Tensors by name, in the words of custom_ops/cross/tensor_file.h."""
    parts = [struct.pack("<q", len(tensors))]
    for name, tensor in tensors.items():
        text, values = name.encode(), np.ascontiguousarray(tensor)
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(values.dtype))
        parts.append(struct.pack("<4q", len(text), kind, values.ndim, values.nbytes))
        parts += [struct.pack(f"<{values.ndim}q", *values.shape), _padded(text), _padded(values.tobytes())]
    return b"".join(parts)


def decode(data: bytes) -> list[Array]:
    """The tensors of a file that such a program wrote."""
    (count,) = struct.unpack_from("<q", data)
    place, tensors = 8, []
    for _ in range(count):
        name_bytes, kind, rank, size = struct.unpack_from("<4q", data, place)
        shape = struct.unpack_from(f"<{rank}q", data, place + 32)
        place += 32 + 8 * rank + len(_padded(bytes(name_bytes)))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        tensors.append(np.frombuffer(data[place : place + size], dtype).reshape(shape))
        place += size + -size % 8
    return tensors


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
