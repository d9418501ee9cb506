"""Where the native libraries are, and how torch's is loaded."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import version
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


def torch_library_path() -> str:
    """Path of the torch operator library, for `torch.ops.load_library` and C++ programs.

    The environment variable ROAST_TORCH_LIBRARY wins over the library that was installed; its value
    `none` means that no library is to be used.

    Raises:
        RoastError: there is no such file, or none is to be used.
    """
    if os.environ.get("ROAST_TORCH_LIBRARY") == "none":
        raise RoastError(
            "ROAST_TORCH_LIBRARY is none, which means no library; unset it to use the installed one"
        )
    return _find("roast_torch", "ROAST_TORCH_LIBRARY")


KERNEL_ABI = 1
"""Of custom_ops/roast_kernel.h; a library of another one has other operators under the same names."""


def check_ort_library(path: str) -> None:
    """Refuse an operator library whose operators are of another version.

    Raises:
        RoastError: it is one, or it is no library of ours.
    """
    try:
        found = int(ctypes.CDLL(str(Path(path).absolute())).roast_kernel_abi())
    except (OSError, AttributeError) as error:
        raise RoastError(f"onnxruntime does not accept {path}: {error}; build the library anew") from error
    if found != KERNEL_ABI:
        raise RoastError(
            f"{path} has operators of version {found}, roast-export {version('roast-export')} needs version "
            f"{KERNEL_ABI}; build the library anew, or install the roast-export that it belongs to"
        )


def load_torch_library() -> None:
    """Load the torch operator library into this process, unless torch has its operators already.

    Raises:
        RoastError: there is no library, it cannot be loaded, or its version is not this package's.
            Where another version is loaded, torch has its operators from then on.
    """
    import torch

    if not hasattr(torch.ops.roast, "version"):
        path = str(Path(torch_library_path()).absolute())
        _check_torch_version(path)
        try:
            torch.ops.load_library(path)
            status = ctypes.CDLL(path).roast_torch_status
        except (OSError, AttributeError) as error:
            reason = error.__cause__ or error
            raise RoastError(f"{path} is not a torch operator library that works here: {reason}") from error
        status.restype = ctypes.c_char_p
        if refusal := status():
            raise RoastError(f"{path}: {refusal.decode()}")
    loaded, ours = torch.ops.roast.version(), version("roast-export")
    if loaded != ours:
        raise RoastError(
            f"two versions of roast-export in one process: {ours} from {Path(__file__).parent}, {loaded} "
            f"from {_loaded_from()}; keep one of them, or build the library anew"
        )


def _check_torch_version(path: str) -> None:
    """Before it is loaded, because torch keeps what it has loaded: the library's text has its version."""
    content, ours = Path(path).read_bytes(), version("roast-export")
    if b"roast_torch_status" in content and ours.encode() + b"\0" not in content:
        raise RoastError(
            f"{path} is of another version than roast-export {ours}; build the library anew, or install "
            "the roast-export that it belongs to"
        )


def _loaded_from() -> str:
    import torch

    paths = [path for path in torch.ops.loaded_libraries if Path(path).name == _file_name("roast_torch")]
    return paths[0] if paths else "a library that the program has loaded itself"


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
