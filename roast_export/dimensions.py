"""What a user says of dimensions: which are dynamic, within what bounds, and which are fixed.

| for an axis of an input | means |
|---|---|
| "batch" | any length, called so |
| "batch[1..8]" | a length from 1 to 8, called batch |
| 16 | this length |
| None | the example's length |
| what torch.export takes (Dim, Dim.AUTO) | as torch.export has it; names are left to the exporter |

{"*": None} fixes what is not spoken of; a live model has it fixed anyway.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping as Lookup
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import Dim

from roast_export.calls import Axis, PlainModel, holes
from roast_export.errors import InputError

_BOUNDED = re.compile(r"(?P<label>[A-Za-z_]\w*)(?:\[(?P<least>\d{0,9})\.\.(?P<most>\d{0,9})\])?")


EVERY_OTHER = "*"
"""What stands for every dimension that is not spoken of."""


@dataclass(frozen=True)
class Dynamic:
    """A dimension of many lengths. least, most: None for no bound."""

    label: str
    least: int | None = None
    most: int | None = None

    def met(self, other: Dynamic) -> Dynamic:
        """Within the bounds of both, under the name of this one. Raises InputError if no length is."""
        leasts = [n for n in (self.least, other.least) if n is not None]
        mosts = [n for n in (self.most, other.most) if n is not None]
        least, most = max(leasts, default=None), min(mosts, default=None)
        if least is not None and most is not None and least > most:
            raise InputError(
                f"the dimension {self.label!r} is to be from {least} to {most} long, and no length is"
            )
        return Dynamic(self.label, least, most)


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
    if most is not None and most == max(least or 1, 1):
        raise InputError(f"the dimension {text!r} has one length; fix it (--static) instead of bounding it")
    return Dynamic(match["label"], least, most)


def wishes(ranks: Lookup[str, int], shapes: Lookup[str, Any]) -> dict[Axis, Dynamic | int | None]:
    """What is asked of each dimension that is spoken of: a length, None for the example's, or any.

    ranks: the number of dimensions of each input.

    Raises:
        InputError: an input or axis that is not there, or a form that is not known.
    """
    found: dict[Axis, Dynamic | int | None] = {}
    for name, axes in shapes.items():
        if name == EVERY_OTHER:
            continue
        if name not in ranks:
            raise InputError(f"no input is called {name!r}; the model takes {', '.join(ranks)}")
        if axes is None:
            axes = dict.fromkeys(range(ranks[name]))
        elif not isinstance(axes, Lookup):
            axes = dict(enumerate(axes))
        for axis, value in axes.items():
            if not isinstance(axis, int) or not 0 <= axis < ranks[name]:
                raise InputError(f"input {name!r} has no axis {axis}; its axes are 0 to {ranks[name] - 1}")
            if value in (Dim.AUTO, Dim.DYNAMIC):
                continue
            found[name, axis] = _wish(name, axis, value)
    return found


def _wish(name: str, axis: int, value: Any) -> Dynamic | int | None:
    if isinstance(value, str):
        return parse_dimension(value)
    if isinstance(value, Dynamic):
        return value
    if value is None or value == Dim.STATIC:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, Dim):
        return Dynamic(value.__name__, value.min, value.max if value.max < 1 << 31 else None)
    raise InputError(
        f'input {name!r}, axis {axis}: {value!r} is no name such as "batch[1..8]", and no length'
    )


def named_axes(example: Lookup[str, Tensor], shapes: Lookup[str, Any]) -> Axes | None:
    """The axes asked for by name; None if no name is there, and the form is torch.export's own.

    Raises:
        InputError: an input or axis that is not there, or a length that the example does not have.
    """
    shapes = {name: axes for name, axes in shapes.items() if name != EVERY_OTHER}
    values = [x for axes in shapes.values() if isinstance(axes, Lookup) for x in axes.values()]
    if values and not any(isinstance(value, str | int | Dynamic) for value in values):
        return None
    if not values and any(axes is not None and not isinstance(axes, Lookup) for axes in shapes.values()):
        return None
    found: Axes = {}
    labels: dict[str, Dynamic] = {}
    for (name, axis), wish in wishes({name: v.dim() for name, v in example.items()}, shapes).items():
        length = example[name].shape[axis]
        if isinstance(wish, Dynamic):
            labels[wish.label] = labels.get(wish.label, wish).met(wish)
            found.setdefault(name, {})[axis] = wish
        elif wish is not None and wish != length:
            raise InputError(
                f"input {name!r}, axis {axis} is to be {wish}, and the example has {length}; "
                "give an example of that length"
            )
    return {name: {axis: labels[d.label] for axis, d in axes.items()} for name, axes in found.items()}


def dim_names(shapes: Any) -> dict[str, dict[int, str]] | None:
    """{"input": {axis: "name"}} where that form is used; other forms leave naming to the exporter."""
    if not isinstance(shapes, Lookup):
        return None
    names = {
        name: {
            axis: value.label if isinstance(value, Dynamic) else parse_dimension(value).label
            for axis, value in axes.items()
            if isinstance(value, str | Dynamic)
        }
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
    if isinstance(shapes, Lookup):
        # What is not spoken of is fixed anyway.
        shapes = {name: axes for name, axes in shapes.items() if name != EVERY_OTHER}
        if all(name in model.names for name in shapes):
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
