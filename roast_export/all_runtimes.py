"""Every runtime this version knows, in the order in which they are tried."""

from __future__ import annotations

from roast_export import (
    runtime_executorch,
    runtime_executorch_arm64,
    runtime_minimal,
    runtime_openvino,
    runtime_qemu,
    runtime_web,
)
from roast_export.runtimes import Runtime, onnx_runtimes, ort_runtimes
from roast_export.torch_runtimes import torch_runtimes


def all_runtimes() -> list[Runtime]:
    """Those of every format; the ones that need other software than the package last."""
    return [
        *onnx_runtimes(),
        *(runtime for portable in (False, True) for runtime in ort_runtimes(portable)),
        *torch_runtimes(),
        *runtime_executorch.runtimes(),
        *runtime_executorch.xnnpack_runtimes(native=False),
        *optional_runtimes(),
    ]


def optional_runtimes() -> list[Runtime]:
    """Runtimes of phones and browsers; used where they are asked for."""
    arm64 = runtime_executorch_arm64
    return [
        *optional_onnx_runtimes(),
        *runtime_minimal.runtimes(),
        *arm64.runtimes(),
        *arm64.xnnpack_runtimes(native=False),
    ]


def optional_onnx_runtimes() -> list[Runtime]:
    """Those that take an ONNX file."""
    return [*runtime_qemu.runtimes(), *runtime_web.runtimes(), *runtime_openvino.runtimes()]
