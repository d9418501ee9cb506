"""Where the native libraries are. Each is one shared library without run-time dependencies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import roast_export
from roast_export.errors import RoastError


def ort_library_path() -> str:
    """Path of the ONNX Runtime operator library, for `SessionOptions.register_custom_ops_library`.

    The environment variable ROAST_ORT_LIBRARY wins over the library that was installed.

    Raises:
        RoastError: there is no such file.
    """
    return _find("roast_ort", "ROAST_ORT_LIBRARY")


def _find(name: str, variable: str) -> str:
    override = os.environ.get(variable)
    if override:
        if not Path(override).is_file():
            raise RoastError(f"{variable} names {override}, which is not a file; correct or unset it")
        return override
    for folder in roast_export.__path__:
        path = Path(folder) / "lib" / _file_name(name)
        if path.is_file():
            return str(path)
    raise RoastError(
        f"the native library {_file_name(name)} is not installed; run `pip install .` in a checkout, "
        f"or build custom_ops with CMake and set {variable} to the library"
    )


def _file_name(name: str) -> str:
    if sys.platform == "win32":
        return f"{name}.dll"
    return f"lib{name}.dylib" if sys.platform == "darwin" else f"lib{name}.so"
