"""ONNX Runtime in a process of its own, for builds that Python cannot load.

The program is custom_ops/cross/ort_run.c, which documents the two files that go in and out.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from roast_export.errors import RoastError
from roast_export.runtimes import Array, Run

NO_LIBRARY = "-"


@dataclass(frozen=True)
class OrtProcess:
    """A build of ONNX Runtime, and how it is run on this machine.

    command: the words that run ort_run.
    """

    name: str
    command: tuple[Path | str, ...]
    onnxruntime: Path

    def open(
        self,
        model: str | bytes,
        library: str = NO_LIBRARY,
        entries: Sequence[str] = (),
        form: str = "onnx",
    ) -> Run:
        """See Runtime.open; each run starts the program anew, and raises RoastError with what it said.

        library: an operator library for the program's processor; entries: session entries, NAME=VALUE;
        form: what a model given as bytes is, "onnx" or "ort".
        """

        def run(inputs: dict[str, Array]) -> list[Array]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                path = folder / f"model.{form}" if isinstance(model, bytes) else Path(model)
                if isinstance(model, bytes):
                    path.write_bytes(model)
                (folder / "in").write_bytes(encode(inputs))
                files = (self.onnxruntime, path, library, folder / "in", folder / "out")
                self._start([*self.command, *files, *entries])
                return decode((folder / "out").read_bytes())

        return run

    def _start(self, command: Sequence[Path | str]) -> None:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = done.stderr.strip()[-500:] or f"ended with status {done.returncode}"
            raise RoastError(f"{self.name} cannot run the model: {reason}")


def encode(tensors: dict[str, Array]) -> bytes:
    """Tensors by name, in the words of ort_run.c."""
    parts = [struct.pack("<q", len(tensors))]
    for name, tensor in tensors.items():
        text, values = name.encode(), np.ascontiguousarray(tensor)
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(values.dtype))
        parts.append(struct.pack("<4q", len(text), kind, values.ndim, values.nbytes))
        parts += [struct.pack(f"<{values.ndim}q", *values.shape), _padded(text), _padded(values.tobytes())]
    return b"".join(parts)


def decode(data: bytes) -> list[Array]:
    """The tensors of a file that ort_run.c wrote."""
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
