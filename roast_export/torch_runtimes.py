"""The runtimes of torch itself: TorchScript, the lite interpreter, torch.export archives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from roast_export import torch_ops
from roast_export.arrays import array_of, tensor_of
from roast_export.errors import RoastError
from roast_export.libraries import torch_library_path
from roast_export.program import leaf_names, quiet
from roast_export.runtimes import Array, Run, Runtime


def library_absent() -> str | None:
    """Why torch's operators run without the native library here, or None."""
    return torch_ops.LIBRARY_ABSENT


def library_refused() -> str | None:
    """Why a library that is there does not serve, or None."""
    try:
        torch_library_path()
    except RoastError:
        return None
    return library_absent()


def open_script(path: str | bytes, names: Sequence[str] = ()) -> Run:
    with quiet():
        module = torch.jit.load(_path(path), map_location="cpu")
    return run_on(module, names=names)


def open_lite(path: str | bytes, names: Sequence[str] = ()) -> Run:
    from torch.jit.mobile import _load_for_lite_interpreter

    return run_on(_load_for_lite_interpreter(_path(path), map_location="cpu"), names=names)


def open_pt2(path: str | bytes, names: Sequence[str] = ()) -> Run:
    with quiet():
        program = torch.export.load(Path(_path(path)))
    program._guards_code = []
    return run_on(program.module(check_guards=False), program.call_spec.in_spec, names)


def script_runtimes(portable: bool, names: Sequence[str] = ()) -> list[Runtime]:
    """For a .ts file. The native form runs in aten operators where the library is absent."""
    return _forms("torchscript", partial(open_script, names=names), portable)


def lite_runtimes(portable: bool, names: Sequence[str] = ()) -> list[Runtime]:
    return _forms("lite interpreter", partial(open_lite, names=names), portable)


def pt2_runtimes(portable: bool, names: Sequence[str] = ()) -> list[Runtime]:
    return _forms("torch.export", partial(open_pt2, names=names), portable)


def torch_runtimes() -> list[Runtime]:
    """Every runtime of torch, in the order in which they are tried."""
    forms = (script_runtimes, lite_runtimes, pt2_runtimes)
    return [runtime for form in forms for portable in (False, True) for runtime in form(portable)]


def _forms(name: str, opener: Callable[[str | bytes], Run], portable: bool) -> list[Runtime]:
    if portable:
        return [Runtime(f"{name} portable", opener, lambda: None)]
    native = Runtime(f"{name} native", opener, library_absent, native=True, refused=library_refused)
    if library_absent() is None:
        return [native]
    return [native, Runtime(f"{name} without library", opener, lambda: None)]


def _path(path: str | bytes) -> str:
    assert isinstance(path, str), "torch's formats are opened from files"
    return path


def run_on(module: Callable[..., Any], spec: Any = None, names: Sequence[str] = ()) -> Run:
    """A function from named arrays to all outputs. spec: how the traced call took its arguments.

    names: what the outputs are called, where they are in a dict; the function raises RoastError at others,
    and where the module changes the shape of an input. What the module writes into a contiguous input is
    in the array afterwards.
    """

    def run(inputs: dict[str, Array]) -> list[Array]:
        values = [tensor_of(value) for value in inputs.values()]
        with torch.no_grad():
            if spec is None:
                outputs = module(*values)
            else:
                args, kwargs = pytree.tree_unflatten(values, spec)
                outputs = module(*args, **kwargs)
        for (name, given), value in zip(inputs.items(), values, strict=True):
            if value.shape != given.shape or not value.is_contiguous():
                raise RoastError(f"the file changes the shape of its input {name!r}")
        if names:
            _check_keys(outputs, names, list(inputs))
        leaves = pytree.tree_leaves(outputs)
        return [array_of(leaf) for leaf in leaves if _is_output(leaf)]

    return run


def _check_keys(outputs: Any, names: Sequence[str], inputs: Sequence[str]) -> None:
    """Raise RoastError where a dict of tensors has other keys than `names`, in another order or not."""
    if not isinstance(outputs, dict) or not all(_is_output(value) for value in outputs.values()):
        return
    # A name that an input has too is written with a suffix (leaf_names), or as it is in scripted source.
    if list(names) not in ([str(key) for key in outputs], leaf_names(outputs, inputs)):
        found = ", ".join(map(str, outputs))
        raise RoastError(f"the file calls its outputs {found}; the model calls them {', '.join(names)}")


def _is_output(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | int | float | bool)
