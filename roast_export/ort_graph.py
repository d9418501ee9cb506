"""A .ort file in, the same graph as ONNX out, so that pieces of it can be run by themselves.

onnxruntime's own tools read the format; their readers have no public entry. Names of values are what the
file has, and each standard operator keeps the version that the file's opset gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

IR_VERSION = 10

_KINDS = onnx.AttributeProto


def read_graph(path: Path) -> onnx.ModelProto:
    """Nodes, typed inputs, stored tensors (text left out), opsets and notes of a .ort file."""
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor

    model = OrtFormatModelProcessor(str(path), {}, None)._model
    imports = _all(model.OpsetImport, model.OpsetImportLength)
    opsets = [helper.make_opsetid(_text(item.Domain()), item.Version()) for item in imports]
    proto = helper.make_model(_graph(model.Graph()), opset_imports=opsets, ir_version=IR_VERSION)
    entries = _all(model.MetadataProps, model.MetadataPropsLength)
    helper.set_model_props(proto, {_text(entry.Key()): _text(entry.Value()) for entry in entries})
    return proto


def _graph(stored: Any) -> onnx.GraphProto:
    typed = {_text(value.Name()): value for value in _all(stored.NodeArgs, stored.NodeArgsLength)}
    return helper.make_graph(
        [_node(node) for node in _all(stored.Nodes, stored.NodesLength)],
        "ort",
        [_value(_text(name), typed) for name in _all(stored.Inputs, stored.InputsLength)],
        [_value(_text(name), typed) for name in _all(stored.Outputs, stored.OutputsLength)],
        [
            _tensor(tensor)
            for tensor in _all(stored.Initializers, stored.InitializersLength)
            if tensor.StringDataLength() == 0
        ],
    )


def _all(item: Callable[[int], Any], length: Callable[[], int]) -> list[Any]:
    return [item(k) for k in range(length())]


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


def _value(name: str, typed: dict[str, Any]) -> onnx.ValueInfoProto:
    """Name, element type and lengths. Tensors are all that inputs and outputs of ours can be."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.TensorTypeAndShape import (
        TensorTypeAndShape,
    )

    table = typed[name].Type().Value()
    tensor = TensorTypeAndShape()
    tensor.Init(table.Bytes, table.Pos)
    shape = tensor.Shape()
    dims = [] if shape is None else [item.Value() for item in _all(shape.Dim, shape.DimLength)]
    lengths = [None if dim is None else _text(dim.DimParam()) or int(dim.DimValue()) or None for dim in dims]
    return helper.make_tensor_value_info(name, tensor.ElemType(), None if shape is None else lengths)


def _tensor(stored: Any) -> onnx.TensorProto:
    tensor = onnx.TensorProto()
    tensor.name = _text(stored.Name())
    tensor.data_type = stored.DataType()
    tensor.dims.extend(int(stored.Dims(k)) for k in range(stored.DimsLength()))
    tensor.raw_data = stored.RawDataAsNumpy().tobytes() if stored.RawDataLength() else b""
    return tensor


def _node(stored: Any) -> onnx.NodeProto:
    node = helper.make_node(
        _text(stored.OpType()),
        [_text(name) for name in _all(stored.Inputs, stored.InputsLength)],
        [_text(name) for name in _all(stored.Outputs, stored.OutputsLength)],
        name=_text(stored.Name()),
        domain=_text(stored.Domain()),
    )
    for attribute in _all(stored.Attributes, stored.AttributesLength):
        node.attribute.append(_attribute(attribute))
    return node


def _attribute(stored: Any) -> onnx.AttributeProto:
    kind = stored.Type()
    read: dict[int, Callable[[], Any]] = {
        _KINDS.FLOAT: lambda: float(stored.F()),
        _KINDS.INT: lambda: int(stored.I()),
        _KINDS.STRING: lambda: _text(stored.S()),
        _KINDS.TENSOR: lambda: _tensor(stored.T()),
        _KINDS.GRAPH: lambda: _graph(stored.G()),
        _KINDS.FLOATS: lambda: [float(x) for x in _numbers(stored.FloatsAsNumpy())],
        _KINDS.INTS: lambda: [int(x) for x in _numbers(stored.IntsAsNumpy())],
        _KINDS.STRINGS: lambda: [_text(x) for x in _all(stored.Strings, stored.StringsLength)],
        _KINDS.TENSORS: lambda: [_tensor(x) for x in _all(stored.Tensors, stored.TensorsLength)],
        _KINDS.GRAPHS: lambda: [_graph(x) for x in _all(stored.Graphs, stored.GraphsLength)],
    }
    # The type is said apart: an empty list does not show its own.
    return helper.make_attribute(_text(stored.Name()), read[kind](), attr_type=kind)


def _numbers(values: Any) -> Any:
    """The readers give 0 for an empty list."""
    return np.atleast_1d(values) if isinstance(values, np.ndarray) else []
