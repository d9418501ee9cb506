"""One layer as ONNX files: dense, quantised, half, and over a small array."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.timing import session
from roast_export import families, onnx_ops
from roast_export.mapping import Hash, Mapping, Sign
from roast_export.placement import draw_mapping

OPSET, IR_VERSION = 20, 10
INT4_BLOCK = 32


def roast_mapping(shape: tuple[int, int], ratio: int, *, rows: bool = False) -> Mapping:
    """As `compress` makes it."""
    n_memory = max(2048, shape[0] * shape[1] // ratio // 64 * 64)
    return draw_mapping(shape, n_memory, [ratio], rows=rows)


def hashed_mapping(shape: tuple[int, int], ratio: int) -> Mapping:
    """HashedNet (Chen et al., 2015, arXiv:1504.04788): one hashed slot and one hashed sign per element."""
    n_memory = max(2048, shape[0] * shape[1] // ratio // 16 * 16)
    p = families.UHASH_PRIME
    return Mapping(
        shape=shape,
        matrix=(1, shape[0] * shape[1]),
        n_memory=n_memory,
        hash1=Hash(p, b=1_234_567_891, q=987_654_321, g=192_837_465),
        range=n_memory,
        sign=Sign.TILE,
        sign_hash=Hash(p, b=1_928_374_651, q=564_738_291, g=918_273_645),
    )


def array_of(mapping: Mapping) -> np.ndarray:
    """Random numbers of the size that keeps a product near 1: float32[n_memory]."""
    generator = np.random.default_rng(mapping.n_memory)
    return generator.standard_normal(mapping.n_memory, np.float32)


def scale_of(shape: tuple[int, int]) -> float:
    return float(np.float32(shape[1] ** -0.5))


def expanded(mapping: Mapping, array: np.ndarray, scale: float) -> np.ndarray:
    """The dense weight float32[shape], by PyTorch's own gather and not by the kernels under test."""
    import torch

    from roast_export import torch_ops

    return torch_ops.gather(torch.from_numpy(array), mapping.to_list(), scale).numpy()


def expanded_table(mapping: Mapping, array: np.ndarray, scale: float) -> np.ndarray:
    """The same for a table, a million rows at a time: indices take more memory than the table."""
    import torch

    from roast_export import torch_ops

    rows, dim = mapping.shape
    memory, table = torch.from_numpy(array), np.empty((rows, dim), np.float32)
    for begin in range(0, rows, 1_000_000):
        ids = torch.arange(begin, min(rows, begin + 1_000_000))
        table[begin : begin + len(ids)] = torch_ops.embedding(memory, ids, mapping.to_list(), scale).numpy()
    return table


def write_roast(path: Path, mapping: Mapping, array: np.ndarray, scale: float, *, ids: bool = False) -> None:
    operator = "RoastEmbedding" if ids else "RoastLinear"
    inputs = ["memory", "ids"] if ids else ["x", "memory"]
    node = helper.make_node(operator, inputs, ["y"], domain=onnx_ops.DOMAIN, name="layer")
    for name, value in onnx_ops.attributes(mapping, scale, operator).items():
        node.attribute.append(helper.make_attribute(name, value))
    x = _ids() if ids else _rows("x", mapping.shape[1])
    functions = onnx_ops.functions([operator], OPSET)
    _write(path, [node], x, mapping.shape[1 if ids else 0], {"memory": array}, functions)


def write_dense(path: Path, weight: np.ndarray) -> None:
    node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="layer")
    initializers = {"weight": np.ascontiguousarray(weight.T)}
    _write(path, [node], _rows("x", weight.shape[1]), weight.shape[0], initializers)


def write_half(path: Path, weight: np.ndarray) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x16", "weight"], ["y16"], name="layer"),
        helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
    ]
    initializers = {"weight": np.ascontiguousarray(weight.T).astype(np.float16)}
    _write(path, nodes, _rows("x", weight.shape[1]), weight.shape[0], initializers)


def write_int8(path: Path, dense: Path) -> None:
    """What onnxruntime's own tool makes of the dense file: weights int8, inputs quantised in each run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it advises preprocessing at every call
    try:
        quantize_dynamic(dense, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    finally:
        log.setLevel(level)


def write_int4(path: Path, weight: np.ndarray) -> None:
    """MatMulNBits: blocks of 32 inputs with one scale; accuracy level 4 multiplies in int8."""
    out, inner = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -inner % INT4_BLOCK))).reshape(out, -1, INT4_BLOCK)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)
    scales = (peak / -8).astype(np.float32)
    scales[scales == 0] = 1
    levels = np.clip(np.rint(blocks / scales) + 8, 0, 15).astype(np.uint8)
    packed = levels[..., ::2] | levels[..., 1::2] << 4
    node = helper.make_node(
        "MatMulNBits",
        ["x", "weight", "scales"],
        ["y"],
        domain="com.microsoft",
        name="layer",
        K=inner,
        N=out,
        bits=4,
        block_size=INT4_BLOCK,
        accuracy_level=4,
    )
    _write(path, [node], _rows("x", inner), out, {"weight": packed, "scales": scales.reshape(-1)})


def write_table(path: Path, table: np.ndarray) -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="layer")
    _write(path, [node], _ids(), table.shape[1], {"table": table})


def without_kernel(path: Path) -> list[str]:
    """Operators of the file that the library has no kernel for: without their functions it does not open."""
    proto = onnx.load(path)
    names = sorted({node.op_type for node in proto.graph.node if node.domain == onnx_ops.DOMAIN})
    return [name for name in names if not _opens_without(proto, name)]


def _opens_without(proto: onnx.ModelProto, name: str) -> bool:
    smaller = onnx.ModelProto()
    smaller.CopyFrom(proto)
    kept = [function for function in proto.functions if function.name != name]
    del smaller.functions[:]
    smaller.functions.extend(kept)
    try:
        session(smaller.SerializeToString(), 1, native=True)
    except _REFUSALS:
        return False
    return True


_STATES = onnxruntime.capi.onnxruntime_pybind11_state
_REFUSALS = (_STATES.Fail, _STATES.InvalidGraph, _STATES.NotImplemented, _STATES.InvalidArgument)


def _rows(name: str, columns: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])


def _ids() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])


def _write(path: Path, nodes, x, columns: int, initializers: dict[str, np.ndarray], functions=()) -> None:
    stored = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "layer", [x], [_rows("y", columns)], stored)
    domains = [("", OPSET), (onnx_ops.DOMAIN, onnx_ops.DOMAIN_VERSION), ("com.microsoft", 1)]
    used = {node.domain for node in nodes} | {""} | ({onnx_ops.DOMAIN} if functions else set())
    opsets = [helper.make_opsetid(*domain) for domain in domains if domain[0] in used]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)
    path.write_bytes(proto.SerializeToString())
