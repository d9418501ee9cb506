"""Example inputs and dynamic dimensions as the command line spells them."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.lib.format import MAGIC_PREFIX
from torch import Tensor

from roast_export.budget import check_unpacked
from roast_export.dimensions import EVERY_OTHER, parse_dimension
from roast_export.errors import InputError, LoadError
from roast_export.npz import check_arrays
from roast_export.reading import opened

DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
ALIASES = {"f16": "float16", "f32": "float32", "f64": "float64", "bf16": "bfloat16"} | {
    "i8": "int8",
    "u8": "uint8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
}
MAX_ELEMENTS = 1 << 31
SEED = 0

_INPUT = re.compile(r"(?P<name>[^\W\d]\w*):(?P<dtype>\w+)\[(?P<dims>[^\[\]]*)\]")
_DYNAMIC = re.compile(
    r"(?P<name>[^\W\d]\w*):(?P<axis>-?\d+)=(?P<dim>[A-Za-z_]\w*(?:\[[^\[\]]*\])?)", re.ASCII
)
_STATIC = re.compile(r"(?P<name>[^\W\d]\w*):(?P<axis>-?\d+)(?:=(?P<length>[1-9]\d{0,8}))?")


def parse_inputs(specs: Sequence[str]) -> dict[str, Tensor]:
    """Example data for "NAME:DTYPE[DIMS]", DIMS separated by commas and empty for a scalar.

    Floats are normal(0, 1) from a fixed seed, integers zero (a valid id everywhere), bool true.

    Raises:
        InputError: a specification that is not of this form; the message says what is.
    """
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(SEED)
    for spec in specs:
        name, dtype, shape = _parse_input(spec)
        if name in found:
            raise InputError(f"--input {spec!r}: {name!r} is given twice")
        found[name] = _example(dtype, shape, generator)
    return found


def _parse_input(spec: str) -> tuple[str, torch.dtype, tuple[int, ...]]:
    match = _INPUT.fullmatch(spec.strip())
    if match is None:
        raise InputError(
            f"--input {spec!r}: the form is NAME:DTYPE[DIMS], for example 'ids:int64[1,7]'; "
            "NAME is the name of an argument of the model's forward"
        )
    name, text = match["name"], match["dtype"]
    dtype = DTYPES.get(ALIASES.get(text, text))
    if dtype is None:
        raise InputError(f"--input {spec!r}: unknown dtype {text!r}; one of {', '.join(DTYPES)}")
    shape: list[int] = []
    for dim in match["dims"].split(",") if match["dims"].strip() else []:
        if re.fullmatch(r"\s*[0-9]{1,12}\s*", dim) is None or int(dim) < 1:
            raise InputError(
                f"--input {spec!r}: dimension {dim.strip()!r} is not a number of 1 or more; "
                "for a dimension of any size give an example size here and add --dynamic"
            )
        shape.append(int(dim))
    if math.prod(shape) > MAX_ELEMENTS:
        raise InputError(f"--input {spec!r}: {math.prod(shape):,} elements are more than an example may have")
    return name, dtype, tuple(shape)


def _example(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.ones(shape, dtype=dtype) if dtype is torch.bool else torch.zeros(shape, dtype=dtype)


def read_inputs(path: str | Path) -> dict[str, Tensor]:
    """Example data from an .npz file: one array for each argument, by the argument's name.

    Raises:
        InputError: the file is missing, is no .npz, or holds something that torch has no dtype for.
    """
    says = "--inputs "
    with opened(path, error=InputError, says=says, wanted="save arrays with numpy.savez") as file:
        try:
            named = file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX
            file.seek(0)
            archive: Any = np.load(file, allow_pickle=False) if named else None
            if named:
                check_unpacked(archive.zip, path)
                check_arrays(archive.zip)
            arrays = {name: archive[name] for name in archive.files} if named else {}
        except LoadError as error:
            raise InputError(f"{says}{error}") from error
        except _DAMAGE as error:
            raise InputError(f"{says}{path}: cannot be read as .npz ({error}); see numpy.savez") from error
    if not named:
        raise InputError(f"{says}{path}: this is one array without a name; save it with numpy.savez")
    if not arrays:
        raise InputError(f"{says}{path}: holds no arrays; see numpy.savez")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"{says}{path}: the member {name!r} is no array; see numpy.savez")
    return {name: _to_tensor(path, name, array) for name, array in arrays.items()}


_DAMAGE = (
    OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error, SyntaxError, TokenError, OverflowError,
    RuntimeError, TypeError, MemoryError, AttributeError,
)  # fmt: skip
"""What numpy and zipfile raise on bytes that are not theirs; numpy parses a header as Python's literals."""


def _to_tensor(path: str | Path, name: str, array: np.ndarray) -> Tensor:
    try:
        # A copy in native byte order: torch refuses others.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise InputError(
            f"--inputs {path}: {name!r} has dtype {array.dtype}; one of {', '.join(DTYPES)}"
        ) from error


def merge_inputs(specs: Sequence[str], path: str | Path | None) -> dict[str, Tensor] | None:
    """Both sources together; None if neither is given. Raises InputError if they share a name."""
    stored = read_inputs(path) if path is not None else {}
    made = parse_inputs(specs)
    for name in made:
        if name in stored:
            raise InputError(f"{name!r} is given by --input and by --inputs {path}; keep one of them")
    return {**stored, **made} or None


def parse_dynamic(
    specs: Sequence[str], inputs: Mapping[str, Tensor] | None = None
) -> dict[str, dict[int, str]] | None:
    """{"x": {0: "batch"}} for "x:0=batch", {"x": {0: "batch[1..8]"}} for "x:0=batch[1..8]"; None without any.

    Equal dimension names mean equal sizes.

    inputs: the example inputs where they are known; names and axes are then checked against them.

    Raises:
        InputError: a specification that is not of this form, or that fits no input.
    """
    found: dict[str, dict[int, str]] = {}
    for spec in specs:
        match = _DYNAMIC.fullmatch(spec.strip())
        if match is None:
            raise InputError(
                f"--dynamic {spec!r}: the form is NAME:AXIS=DIM, for example 'ids:0=batch' or "
                "'ids:0=batch[1..8]'; AXIS counts from 0, DIM is a name, with bounds if there are any"
            )
        parse_dimension(match["dim"])
        _put(found, "--dynamic", spec, match, inputs, match["dim"])
    return found or None


def parse_shapes(
    dynamic: Sequence[str], static: Sequence[str], inputs: Mapping[str, Tensor] | None = None
) -> dict[str, dict[int, Any] | None] | None:
    """Both options as dynamic_shapes: a length for "x:0=16", None for "x:0", {"*": None} for "all".

    Raises:
        InputError: as parse_dynamic; or one dimension is spoken of twice.
    """
    found: dict[str, dict[int, Any]] = dict(parse_dynamic(dynamic, inputs) or {})
    for spec in static:
        if spec.strip() == "all":
            continue
        match = _STATIC.fullmatch(spec.strip())
        if match is None:
            raise InputError(
                f"--static {spec!r}: the form is NAME:AXIS, NAME:AXIS=LENGTH or all, for example 'ids:1=128'"
            )
        _put(found, "--static", spec, match, inputs, match["length"] and int(match["length"]))
    every: dict[str, None] = {EVERY_OTHER: None} if "all" in map(str.strip, static) else {}
    return {**found, **every} or None


def _put(
    found: dict[str, dict[int, Any]],
    option: str,
    spec: str,
    match: re.Match[str],
    inputs: Mapping[str, Tensor] | None,
    value: Any,
) -> None:
    name, axis = match["name"], int(match["axis"])
    if inputs is not None:
        axis = _known_axis(f"{option} {spec!r}", name, axis, inputs)
    elif axis < 0:
        raise InputError(f"{option} {spec!r}: axis {axis} must be 0 or more")
    if axis in found.get(name, {}):
        raise InputError(f"{option} {spec!r}: axis {axis} of {name!r} is given twice")
    found.setdefault(name, {})[axis] = value


def _known_axis(option: str, name: str, axis: int, inputs: Mapping[str, Tensor]) -> int:
    """The axis counted from 0, checked against the example input."""
    if name not in inputs:
        raise InputError(f"{option}: there is no input {name!r}; one of {', '.join(inputs)}")
    dims = inputs[name].dim()
    if not -dims <= axis < dims:
        raise InputError(f"{option}: {name!r} has {dims} dimensions, there is no axis {axis}")
    return axis % dims
