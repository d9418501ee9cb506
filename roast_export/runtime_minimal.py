"""A minimal build of ONNX Runtime with custom operators: it reads .ort files and nothing else.

`make mobile-minimal` builds it into build/minimal (custom_ops/minimal/build_minimal.py).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from roast_export import to_ort
from roast_export.built import build_folder, missing
from roast_export.errors import RoastError
from roast_export.libraries import ort_library_path
from roast_export.ort_process import NO_LIBRARY, OrtProcess
from roast_export.runtimes import Run, Runtime


def runtimes() -> list[Runtime]:
    """The minimal build with the library, for native .ort files, and without it, for portable ones."""
    return [
        Runtime("onnxruntime minimal native", open_native, native_unavailable, native=True),
        Runtime("onnxruntime minimal portable", open_portable, unavailable),
    ]


def open_native(model: str | bytes) -> Run:
    """A path is opened as it is, .ort or not; a serialized ONNX model as the .ort that is made of it."""
    return _process().open(_as_ort(model, portable=False), ort_library_path(), form="ort")


def open_portable(model: str | bytes) -> Run:
    return _process().open(_as_ort(model, portable=True), NO_LIBRARY, form="ort")


def unavailable() -> str | None:
    folder = _folder()
    needed = [folder / "runtime" / name for name in ("libonnxruntime.so.1", "loader")]
    return missing([*needed, folder / "ort_run"], "make mobile-minimal")


def native_unavailable() -> str | None:
    try:
        ort_library_path()
    except RoastError as error:
        return unavailable() or str(error)
    return unavailable()


def _process() -> OrtProcess:
    """The build is of another system, whose C library and loader come with it."""
    runtime = _folder() / "runtime"
    command = (runtime / "loader", "--library-path", runtime, _folder() / "ort_run")
    return OrtProcess("onnxruntime's minimal build", command, runtime / "libonnxruntime.so.1")


def _as_ort(model: str | bytes, portable: bool) -> str | bytes:
    if isinstance(model, str):
        return model
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "model.onnx", Path(name) / "model.ort"
        source.write_bytes(model)
        to_ort.write(source, target, portable=portable)
        return target.read_bytes()


def _folder() -> Path:
    return build_folder() / "minimal"
