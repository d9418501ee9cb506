"""One virtual weight read back out of a .pte, by each ExecuTorch runtime, bit by bit.

native: our operator with the array, the record and the scale of a call in the file. portable: the
instructions of the file itself, from its tensors to the weight, or from ids to rows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roast_export.compare import compare_bits
from roast_export.errors import RoastError
from roast_export.mapping import Mapping
from roast_export.probe import CHUNK, EMULATED_INPUTS, check_product, check_rows, expected_weight
from roast_export.program import VirtualLayer
from roast_export.pte_program import Call, PteProgram
from roast_export.report import Check
from roast_export.runtimes import Run, Runtime, run_all


def array_of(call: Call) -> int:
    """The value of the array that one of our operators reads. Raises RoastError if it is another operator."""
    place = {"roast::gather.out": 0, "roast::embedding.out": 0, "roast::linear.out": 1}.get(call.operator)
    if place is None:
        raise RoastError(f"{call.operator} is none of our operators")
    return call.args[place]


def check_native(program: PteProgram, value: int, layer: VirtualLayer, runtime: Runtime) -> Iterator[Check]:
    """The weight behind the call that writes `value`."""
    call = next((c for c in program.calls if value in c.writes), None)
    kind = "" if call is None else call.operator.removeprefix("roast::").removesuffix(".out")
    if call is None or kind != layer.kind:
        raise RoastError(f"the file has no {layer.kind} at value {value}")
    mapping = Mapping.from_list(program.ints(call.args[-4]))
    if kind == "embedding":
        n = max(1, min(mapping.shape[0], CHUNK // mapping.shape[1]))
        with opened(runtime, operator_alone(program, call, kind, n)) as run:
            yield check_rows(layer, layer.name, runtime.name, _by_blocks(run, [n], np.dtype(np.int64)))
        return
    expected = expected_weight(layer)
    with opened(runtime, operator_alone(program, call, "gather", 0)) as run:
        yield compare_bits(runtime.name, layer.name, "all elements", expected, run({})[0])
    # A fused kernel has its own way to the weight; finite only, because 0 * inf is not 0.
    if kind == "linear" and np.isfinite(expected).all():
        most = EMULATED_INPUTS if runtime.emulated else expected.shape[1]
        n = max(1, min(expected.shape[1], most, CHUNK // max(expected.shape)))
        with opened(runtime, operator_alone(program, call, kind, n)) as run:
            yield check_product(expected, layer.name, runtime, lambda x: _padded(run, x, n))


def check_portable(
    program: PteProgram, place: list[int], layer: VirtualLayer, runtime: Runtime
) -> Iterator[Check]:
    """place: the value that is the weight; of a lookup, the value of the rows and that of the ids."""
    value, *ids = place
    with opened(runtime, program.cut(value, ids)) as run:
        if ids:
            look_up = _by_blocks(run, program.shape(ids[0]), program.dtype(ids[0]))
            yield check_rows(layer, layer.name, runtime.name, look_up)
            return
        expected = expected_weight(layer)
        actual = run({})[0]
        # A view of the value may be what has the weight's shape.
        actual = actual.reshape(expected.shape) if actual.size == expected.size else actual
        yield compare_bits(runtime.name, layer.name, "all elements", expected, actual)


@contextmanager
def opened(runtime: Runtime, program: bytes) -> Iterator[Run]:
    """A program in a runtime, while its file lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.pte"
        path.write_bytes(program)
        yield runtime.open(str(path))


def _by_blocks(
    run: Run, shape: list[int], dtype: np.dtype[Any]
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Rows of any number of ids, by a program that takes ids of one shape."""
    n = math.prod(shape)

    def look_up(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        blocks = np.resize(ids, (-(-len(ids) // n), *shape)).astype(dtype)
        rows = [out[0].reshape(n, -1) for out in run_all(run, [{"ids": block} for block in blocks])]
        return np.concatenate(rows)[: len(ids)]

    return look_up


def _padded(run: Run, x: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    full = np.zeros((n, x.shape[1]), np.float32)
    full[: len(x)] = x
    return np.ascontiguousarray(run({"x": full})[0][: len(x)])


def operator_alone(program: PteProgram, call: Call, operator: str, n: int) -> bytes:
    """A .pte with one operator over the array, the record and the scale of a call in the file.

    operator: "gather"; "embedding", of n ids; "linear", of n rows, without a bias.
    """
    from executorch.exir import schema
    from executorch.exir.scalar_type import ScalarType

    memory = program.values[array_of(call)]
    record, scale = program.ints(call.args[-4]), program.double(call.args[-3])
    shape = Mapping.from_list(record).shape
    cols = math.prod(shape[1:])
    taken, given = {
        "gather": ([], list(shape)),
        "embedding": ([n], [n, cols]),
        "linear": ([n, cols], [n, shape[0]]),
    }[operator]
    kind = ScalarType.LONG if operator == "embedding" else ScalarType.FLOAT
    out, out_end = _planned(given, ScalarType.FLOAT, 0)
    x, end = _planned(taken, kind, out_end)
    ints = [schema.Int(value) for value in record]
    values = [memory, out, x, schema.Null(), schema.Double(scale)]
    values += [schema.IntList([len(values) + 1 + k for k in range(len(ints))]), *ints]
    args = {"gather": [0, 5, 4], "embedding": [0, 2, 5, 4], "linear": [2, 0, 3, 5, 4]}[operator]
    run = schema.Instruction(schema.KernelCall(0, [*args, 1, 1]))
    plan = program.plan
    return program.rebuilt(
        replace(
            plan,
            values=[schema.EValue(value) for value in values],
            inputs=[] if operator == "gather" else [2],
            outputs=[1],
            operators=[schema.Operator(f"roast::{operator}", "out")],
            chains=[replace(plan.chains[0], instructions=[run], stacktrace=None)],
            delegates=[],
            non_const_buffer_sizes=[0, end],
        )
    )


def _planned(sizes: list[int], kind: Any, begin: int) -> tuple[Any, int]:
    """A tensor in planned memory from byte `begin` on, and where the next one may begin."""
    from executorch.exir import schema

    where = schema.AllocationDetails(1, begin & 0xFFFFFFFF, begin >> 32)
    tensor = schema.Tensor(
        scalar_type=kind,
        storage_offset=0,
        sizes=sizes,
        dim_order=list(range(len(sizes))),
        requires_grad=False,
        layout=0,
        data_buffer_idx=0,
        allocation_info=where,
        shape_dynamism=schema.TensorShapeDynamism.STATIC,
    )
    return tensor, begin + -(-math.prod(sizes) * 8 // 64) * 64
