"""Golden values: what the module itself gave when it was saved, kept in the archive beside its trace.

A later export from the archive is held to them, so that the module stays the measure after its code is gone.
The member is text, for torch.export.load reads all extra members as text: base64 of a compressed .npz.

| array in the .npz | |
|---|---|
| `index` | uint8: JSON, a list of {"name", "inputs": {name: dtype}, "outputs": [[dtype, shape, step], ...]} |
| `<k>.in.<name>` | the k-th case's input |
| `<k>.out.<place>` | the k-th case's output; of a large one, every step-th element of the flat tensor |
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roast_export.errors import LoadError
from roast_export.npz import check_arrays

MEMBER = "golden.b64"
"""Name of the extra member of an archive."""

BUDGET = 3 << 20
"""Bytes of all stored values together. One case may be larger, up to LARGEST, where none fits."""

LARGEST = 16 << 20
SAMPLED = 1 << 15
"""Elements of one output that are stored; of a larger one, so many that lie evenly."""

MOST = 8
"""Cases stored."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
        torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """One call of the module. outputs: the values of every step-th element of each flat output."""

    name: str
    inputs: dict[str, Tensor]
    outputs: list[Tensor]
    shapes: list[list[int]]
    steps: list[int]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in [*self.inputs.values(), *self.outputs])

    def over(self, outputs: Sequence[Any]) -> list[Any] | None:
        """`outputs`, of another model for these inputs, with the golden values in their places.

        None where they are of another number, shape or dtype.
        """
        found = []
        if len(outputs) != len(self.outputs):
            return None
        for output, values, shape, step in zip(outputs, self.outputs, self.shapes, self.steps, strict=True):
            if not isinstance(output, Tensor) or output.dtype != values.dtype or list(output.shape) != shape:
                return None
            whole = output.detach().clone(memory_format=torch.contiguous_format)
            whole.view(-1)[::step] = values
            found.append(whole)
        return found


def golden(name: str, inputs: dict[str, Tensor], outputs: Sequence[Any]) -> Golden:
    """One call, with large outputs sampled."""
    tensors = [torch.as_tensor(output) for output in outputs]
    steps = [1 if t.numel() <= SAMPLED else _odd(math.ceil(t.numel() / SAMPLED)) for t in tensors]
    taken = [t.detach().reshape(-1)[::step].clone() for t, step in zip(tensors, steps, strict=True)]
    plain = {
        key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in inputs.items()
    }
    return Golden(name, plain, taken, [list(t.shape) for t in tensors], steps)


def _odd(step: int) -> int:
    # An even step would take the same columns of every row where a row has an even length.
    return step | 1


def chosen(found: Sequence[Golden]) -> list[Golden]:
    """Those that are stored: in their order as far as they fit, or the smallest alone."""
    kept: list[Golden] = []
    for one in found:
        if len(kept) < MOST and sum(g.nbytes for g in kept) + one.nbytes <= BUDGET:
            kept.append(one)
    smallest = min(found, key=lambda g: g.nbytes, default=None)
    if not kept and smallest is not None and smallest.nbytes <= LARGEST:
        kept.append(smallest)
    return kept


def to_text(found: Sequence[Golden]) -> str:
    index: list[Any] = []
    arrays: dict[str, NDArray[Any]] = {}
    for k, one in enumerate(found):
        index.append(
            {
                "name": one.name,
                "inputs": {name: _name(value) for name, value in one.inputs.items()},
                "outputs": [
                    [_name(t), shape, step]
                    for t, shape, step in zip(one.outputs, one.shapes, one.steps, strict=True)
                ],
            }
        )
        arrays |= {f"{k}.in.{name}": _to_array(value) for name, value in one.inputs.items()}
        arrays |= {f"{k}.out.{place}": _to_array(value) for place, value in enumerate(one.outputs)}
    buffer = io.BytesIO()
    stated = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez_compressed(buffer, allow_pickle=False, index=stated, **arrays)
    return base64.b64encode(buffer.getvalue()).decode()


def from_text(text: str | bytes) -> list[Golden]:
    """What `to_text` wrote. Raises LoadError for anything else."""
    try:
        blob = base64.b64decode(text, validate=True)
        if len(blob) > 2 * LARGEST:
            raise LoadError("the golden values are larger than save writes them")
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            if sum(item.file_size for item in archive.infolist()) > 4 * LARGEST:
                raise LoadError("the golden values are larger than save writes them")
            check_arrays(archive)
        with np.load(io.BytesIO(blob), allow_pickle=False) as stored:
            index = json.loads(bytes(stored["index"]))
            return [_read(k, item, stored) for k, item in enumerate(index[:MOST])]
    except (ValueError, KeyError, TypeError, OSError, EOFError, binascii.Error, zipfile.BadZipFile) as error:
        raise LoadError(f"the golden values are damaged ({error}); save the model again") from error


def _read(k: int, item: Any, stored: Any) -> Golden:
    inputs = {
        str(name): _to_tensor(stored[f"{k}.in.{name}"], str(dtype)) for name, dtype in item["inputs"].items()
    }
    outputs, shapes, steps = [], [], []
    for place, (dtype, shape, step) in enumerate(item["outputs"]):
        value = _to_tensor(stored[f"{k}.out.{place}"], str(dtype))
        lengths, step = [int(n) for n in shape], int(step)
        if step < 1 or value.dim() != 1 or value.numel() != -(-math.prod(lengths) // step):
            raise ValueError(f"an output of {lengths} with {value.numel()} values")
        outputs.append(value)
        shapes.append(lengths)
        steps.append(step)
    return Golden(str(item["name"])[:200], inputs, outputs, shapes, steps)


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _to_array(value: Tensor) -> NDArray[Any]:
    # numpy has no bfloat16.
    return (value.view(torch.int16) if value.dtype is torch.bfloat16 else value).numpy()


def _to_tensor(array: NDArray[Any], name: str) -> Tensor:
    dtype = _DTYPES[name]
    value = torch.from_numpy(np.array(array, order="C"))
    value = value.view(dtype) if dtype is torch.bfloat16 and value.dtype is torch.int16 else value
    if value.dtype is not dtype:
        raise ValueError(f"an array of {array.dtype} that is called {name}")
    return value
