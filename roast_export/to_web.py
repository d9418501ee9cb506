"""An exported .onnx in, the model with a page's settings beside it out, for onnxruntime-web.

A browser has no place for an operator library, so the functions in the file run. By default
onnxruntime-web would expand every weight when it loads the model; the settings keep them virtual.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx

from roast_export import onnx_ops
from roast_export.errors import ExportError
from roast_export.to_ort import dense_complaint

MINIMUM_PACKAGE = "1.20.0"
"""The first onnxruntime-web that inlines functions of any domain."""


def settings_path(target: Path) -> Path:
    """Where the settings of the model `target` are: model.onnx has model.json."""
    return target.with_suffix(".json")


def session_options(*, materialized: bool = False) -> dict[str, Any]:
    """Options of InferenceSession.create. materialized: let the browser expand the weights once, at load."""
    options: dict[str, Any] = {"executionProviders": ["wasm"], "graphOptimizationLevel": "all"}
    if not materialized:
        options["extra"] = {"optimization": {"disable_specified_optimizers": "ConstantFolding"}}
    return options


def write(source: Path, target: Path) -> dict[str, Any]:
    """Copy the .onnx file `source` to `target`, write the settings beside it, and return them.

    Raises:
        ExportError: the model needs the operator library, or would not stay small in a browser.
    """
    if source.with_name(f"{source.name}.data").exists():
        raise ExportError("the model is larger than 2 GB, which no browser loads; compress it further")
    proto = onnx.load(source)
    layers = onnx_ops.layers_in(proto.graph)
    kinds = {node.op_type for node in layers}
    if any(map(onnx_ops.is_drawn, kinds)):
        raise ExportError(
            "weights drawn from MT19937 need the operator library, and a browser cannot load it; export the "
            "model with --portable"
        )
    materialized = "RoastGatherFolded" in kinds
    if not materialized:
        complaint = _expanded(source, proto, layers)
        if complaint:
            raise ExportError(f"{source.name}: with the settings for browsers, {complaint}")
    settings = {
        "model": target.name,
        "bytes": source.stat().st_size,
        "dense_bytes": _dense_bytes(proto, layers),
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "package": f"onnxruntime-web >= {MINIMUM_PACKAGE}",
        "options": session_options(materialized=materialized),
        "inputs": [_signature(value) for value in proto.graph.input],
        "outputs": [_signature(value) for value in proto.graph.output],
    }
    shutil.copyfile(source, target)
    settings_path(target).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return settings


def _expanded(source: Path, proto: onnx.ModelProto, layers: list[onnx.NodeProto]) -> str | None:
    """A weight that onnxruntime, with the page's settings, would expand when it loads the model."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(copy)
        for entry, value in _entries(session_options()["extra"]).items():
            options.add_session_config_entry(entry, value)
        try:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"onnxruntime without the library refuses {source.name}: {error}") from error
        found = onnx.load(copy).graph.initializer
        return dense_complaint(proto, layers, [(tensor.name, tuple(tensor.dims)) for tensor in found])


def _dense_bytes(proto: onnx.ModelProto, layers: list[onnx.NodeProto]) -> int:
    """What the weights of the same network would take if they were stored."""
    arrays = {onnx_ops.array_of(node) for node in layers}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in arrays]
    virtual = sum(4 * onnx_ops.mapping_of(node)[0].numel for node in layers)
    return virtual + sum(int(onnx.numpy_helper.to_array(tensor).nbytes) for tensor in kept)


def _entries(extra: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as the flat session entries that onnxruntime-web makes of them."""
    flat: dict[str, str] = {}
    for name, value in extra.items():
        flat |= (
            _entries(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: str(value)}
        )
    return flat


def _signature(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return {"name": value.name, "type": dtype, "dims": dims}
