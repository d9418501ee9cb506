"""The runtimes that a file is proved in. Each says whether it can be used here, and why not."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from roast_export.errors import RoastError
from roast_export.libraries import check_ort_library, ort_library_path

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], list[Array]]


@dataclass(frozen=True)
class ProcessRun:
    """A Run that starts a program, and so takes any number of inputs in one go.

    all_of: sets of inputs in, the outputs of each out.
    """

    all_of: Callable[[Sequence[dict[str, Array]]], list[list[Array]]]

    def __call__(self, inputs: dict[str, Array]) -> list[Array]:
        return self.all_of([inputs])[0]


def run_all(run: Run, sets: Sequence[dict[str, Array]]) -> list[list[Array]]:
    """The outputs of every set of inputs."""
    return run.all_of(sets) if isinstance(run, ProcessRun) else [run(inputs) for inputs in sets]


BFLOAT16_IN_ONNX = 16
"""TensorProto.BFLOAT16."""

DISABLE_FOLDING = "optimization.disable_specified_optimizers"
"""Session entry; set to "ConstantFolding" it keeps virtual weights virtual without the library."""

_REGISTERED = "roast.registered"

REFERENCE_LIMIT = 1 << 21
"""Virtual elements above which onnx's reference evaluator (plain numpy) takes minutes."""

FOLDED_LIMIT = 1 << 24
"""Virtual elements above which a default session without the library takes gigabytes to load."""


@dataclass(frozen=True)
class Runtime:
    """One way to run an exported file.

    unavailable: why it cannot be used on this machine, or None.
    open: a path (or a serialized ONNX model) in, a function from named inputs to all outputs out.
    """

    name: str
    open: Callable[[str | bytes], Run]
    unavailable: Callable[[], str | None]
    complete: bool = True
    """Whether it runs every standard operator; if not, a model it cannot run is a skip, not a failure."""
    native: bool = False
    """Whether it uses the operator library."""
    limit: int | None = None
    """Most virtual elements it is used for unless asked for by name."""
    emulated: bool = False
    """Whether its processor is emulated: what takes a second elsewhere takes a minute there."""
    refused: Callable[[], str | None] = lambda: None
    """Why a library that is there cannot serve, or None: that is a failure, a missing one is a skip."""

    def refusing(self, reason: str | None) -> Runtime:
        """The same runtime, not usable for `reason`; itself if there is none."""
        return self if reason is None else replace(self, unavailable=lambda: reason)


def create_session(
    path: str | os.PathLike[str], sess_options: onnxruntime.SessionOptions | None = None, **kw: Any
) -> onnxruntime.InferenceSession:
    """An onnxruntime session with this package's operators registered; arguments as InferenceSession.

    Raises:
        RoastError: the operator library is missing or this onnxruntime refuses it.
    """
    import onnxruntime

    options = sess_options or onnxruntime.SessionOptions()
    _register(options)
    return onnxruntime.InferenceSession(os.fspath(path), options, **_with_provider(kw))


def native_unavailable() -> str | None:
    """Why the native path cannot be used on this machine, or None."""
    import onnxruntime

    try:
        _register(onnxruntime.SessionOptions())
    except RoastError as error:
        return str(error)
    return None


def library_refused() -> str | None:
    """Why the operator library that is there is not used, or None."""
    try:
        ort_library_path()
    except RoastError:
        return None
    return native_unavailable()


def optimised_copy(path: Path, to: Path) -> None:
    """What onnxruntime, with the library registered, makes of a file at its highest optimisation level."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(to)
    # Large tensors would otherwise hit protobuf's 2 GB limit.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{to.name}.data"
    )
    _quiet(options)
    create_session(path, options)


def onnx_runtimes() -> list[Runtime]:
    """Every runtime that takes an ONNX file, in the order in which they are tried."""
    return [
        Runtime("onnxruntime native", _open_native, native_unavailable, native=True, refused=library_refused),
        Runtime("onnxruntime portable", _open_unfolded, lambda: None),
        Runtime("onnxruntime folded", _open_folded, lambda: None, limit=FOLDED_LIMIT),
        Runtime("onnx reference", _open_reference, lambda: None, complete=False, limit=REFERENCE_LIMIT),
    ]


def ort_runtimes(portable: bool) -> list[Runtime]:
    """The runtimes of a .ort file, which is not optimised again when it is loaded."""
    if portable:
        return [Runtime("onnxruntime .ort portable", open_unoptimised, lambda: None)]
    name = "onnxruntime .ort native"
    return [Runtime(name, _open_native, native_unavailable, native=True, refused=library_refused)]


def _register(options: onnxruntime.SessionOptions) -> None:
    library = ort_library_path()
    if _is_registered(options):
        return
    check_ort_library(library)
    try:
        options.register_custom_ops_library(library)
        options.add_session_config_entry(_REGISTERED, "1")
    except Exception as error:
        raise RoastError(f"onnxruntime does not accept {library}: {error}; upgrade onnxruntime") from error


def _is_registered(options: onnxruntime.SessionOptions) -> bool:
    """onnxruntime refuses a session whose options name one library twice."""
    try:
        return bool(options.get_session_config_entry(_REGISTERED))
    except RuntimeError:
        return False


def _with_provider(kw: dict[str, Any]) -> dict[str, Any]:
    return {"providers": ["CPUExecutionProvider"], **kw}


def _quiet(options: onnxruntime.SessionOptions) -> None:
    options.log_severity_level = 3


def _session(model: str | bytes, *, native: bool = False, fold: bool = True) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    _quiet(options)
    if native:
        _register(options)
    if not fold:
        options.add_session_config_entry(DISABLE_FOLDING, "ConstantFolding")
    return runner(onnxruntime.InferenceSession(model, options, **_with_provider({})))


def runner(session: onnxruntime.InferenceSession) -> Run:
    """A function from named arrays to all outputs. onnxruntime gives no numpy arrays of bfloat16."""
    import onnxruntime

    if not any("bfloat16" in value.type for value in [*session.get_inputs(), *session.get_outputs()]):
        return lambda inputs: list(session.run(None, inputs))
    plain, typed = (
        onnxruntime.OrtValue.ortvalue_from_numpy,
        onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type,
    )

    def value_of(array: Array) -> onnxruntime.OrtValue:
        array = np.ascontiguousarray(array)
        return typed(array.view(np.uint16), BFLOAT16_IN_ONNX) if array.dtype == bfloat16 else plain(array)

    def array_of(value: onnxruntime.OrtValue) -> Array:
        if "bfloat16" not in value.data_type():
            return np.asarray(value.numpy())
        shape = value.shape()
        words = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
        return np.asarray(np.array(words, np.uint16).view(bfloat16).reshape(shape))

    def run(inputs: dict[str, Array]) -> list[Array]:
        values = {name: value_of(array) for name, array in inputs.items()}
        return [array_of(value) for value in session.run_with_ort_values(None, values)]

    return run


def _open_native(model: str | bytes) -> Run:
    return _session(model, native=True)


def _open_unfolded(model: str | bytes) -> Run:
    return _session(model, fold=False)


def _open_folded(model: str | bytes) -> Run:
    return _session(model)


def open_unoptimised(model: str | bytes) -> Run:
    """onnxruntime without the library and without optimisation: each operator as the file has it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    _quiet(options)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runner(onnxruntime.InferenceSession(model, options, **_with_provider({})))


def _open_reference(model: str | bytes) -> Run:
    import onnx
    from onnx.reference import ReferenceEvaluator

    proto: onnx.ModelProto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    evaluator = ReferenceEvaluator(proto)

    def run(inputs: dict[str, Array]) -> list[Array]:
        with np.errstate(all="ignore"):
            return [np.asarray(output) for output in evaluator.run(None, inputs)]

    return run
