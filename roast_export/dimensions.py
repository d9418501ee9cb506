"""What a user says of dimensions: which are dynamic, within what bounds, and which are fixed.

| for an axis of an input | means |
|---|---|
| "batch" | any length, called so |
| "batch[1..8]" | a length from 1 to 8, called batch |
| 16 | this length |
| what torch.export takes (Dim, Dim.AUTO, None) | as torch.export has it; names are left to the exporter |
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping as Lookup
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from roast_export.calls import PlainModel, holes
from roast_export.errors import InputError

_BOUNDED = re.compile(r"(?P<label>[A-Za-z_]\w*)(?:\[(?P<least>\d{0,9})\.\.(?P<most>\d{0,9})\])?")


@dataclass(frozen=True)
class Dynamic:
    """A dimension of many lengths. least, most: None for no bound."""

    label: str
    least: int | None = None
    most: int | None = None


Axes = dict[str, dict[int, Dynamic]]
"""Dynamic dimensions: {"input": {axis: ...}}."""


def parse_dimension(text: str) -> Dynamic:
    """Of "batch" or "batch[1..8]", where a bound may be left out. Raises InputError for any other form."""
    match = _BOUNDED.fullmatch(text.strip())
    if match is None:
        raise InputError(f"the dimension {text!r} must be a name, or a name with bounds such as batch[1..8]")
    least, most = (int(match[key]) if match[key] else None for key in ("least", "most"))
    if most is not None and most < max(least or 0, 1):
        raise InputError(f"the dimension {text!r} has no length: its upper bound is below its lower")
    return Dynamic(match["label"], least, most)


def named_axes(example: Lookup[str, Tensor], shapes: Lookup[str, Any]) -> Axes | None:
    """The axes asked for by name; None if no name is there, and the form is torch.export's own.

    Raises:
        InputError: an input or axis that is not there, or a length that the example does not have.
    """
    values = [x for axes in shapes.values() if isinstance(axes, Lookup) for x in axes.values()]
    if values and not any(isinstance(value, str | int) for value in values):
        return None
    if not values and any(axes is not None and not isinstance(axes, Lookup) for axes in shapes.values()):
        return None
    found: Axes = {}
    for name, axes in shapes.items():
        if name not in example:
            raise InputError(f"no input is called {name!r}; the model takes {', '.join(example)}")
        for axis, value in (axes or {}).items():
            lengths = list(example[name].shape)
            if not isinstance(axis, int) or not 0 <= axis < len(lengths):
                raise InputError(f"input {name!r} has no axis {axis}; its shape is {lengths}")
            if isinstance(value, str):
                found.setdefault(name, {})[axis] = parse_dimension(value)
            elif value != lengths[axis]:
                raise InputError(
                    f"input {name!r}, axis {axis} is to be {value}, and the example has {lengths[axis]}; "
                    "give an example of that length"
                )
    return found


def dim_names(shapes: Any) -> dict[str, dict[int, str]] | None:
    """{"input": {axis: "name"}} where that form is used; other forms leave naming to the exporter."""
    if not isinstance(shapes, Lookup):
        return None
    names = {
        name: {axis: parse_dimension(value).label for axis, value in axes.items() if isinstance(value, str)}
        for name, axes in shapes.items()
        if isinstance(axes, Lookup)
    }
    return names if any(names.values()) else None


def flat_shapes(model: PlainModel, shapes: Any) -> dict[str, Any]:
    """`shapes` by the names of the plain signature, where they follow the structure of the model's own.

    Raises:
        InputError: they follow neither.
    """
    if shapes is None:
        return {}
    if isinstance(shapes, Lookup) and all(name in model.names for name in shapes):
        return dict(shapes)
    args, kwargs = model.template
    bound = inspect.signature(model.__dict__["original"].forward).bind(*args, **kwargs).arguments
    found: dict[str, Any] = {}
    if isinstance(shapes, Lookup):
        unknown = [name for name in shapes if name not in {*bound, *model.names}]
        if unknown:
            raise InputError(f"no input is called {unknown[0]!r}; the model takes {', '.join(model.names)}")
        pairs = [(bound[name], axes) for name, axes in shapes.items() if name in bound]
        found = {name: axes for name, axes in shapes.items() if name not in bound}
    else:
        pairs = list(zip(bound.values(), shapes, strict=False))
    for template, axes in pairs:
        for k, of_tensor in holes(template, axes):
            found[model.names[k]] = of_tensor
    return found
