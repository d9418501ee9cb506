"""Which line of a model makes a Python number of a length, and so fixes it in every trace."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from roast_export.untraceable import is_own, place_of

_NUMBERS = (
    str(Path(torch.__file__)),
    str(Path(torch.__file__).parent / "fx" / "experimental") + os.sep,
)
"""Where torch makes a number of a symbolic length."""

_SOURCE = re.compile(r"\['(\w+)'\](?:\[\d+\])?\.(?:size\(\)|shape)\[(\d+)\]")


@contextmanager
def length_lines(found: dict[tuple[str, int], str]) -> Iterator[None]:
    """While this lasts, traces note in `found` (input, axis) -> the line that fixes it: "net.py:7 in ...".

    A line counts that takes the length as a number itself, as `for t in range(x.shape[1])` does. What an
    operator needs to be fixed, such as the columns of a matrix product, does not count.
    """
    original: Any = ShapeEnv._set_replacement

    def noted(env: Any, symbol: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(target, "is_number", False):
            line = _line()
            for source in env.var_to_sources.get(symbol, ()) if line else ():
                name = source.name() if callable(source.name) else source.name
                place = _SOURCE.search(name)
                if place:
                    found.setdefault((place[1], int(place[2])), line)
        original(env, symbol, target, *args, **kwargs)

    replaced: Any = ShapeEnv
    replaced._set_replacement = noted
    try:
        yield
    finally:
        replaced._set_replacement = original


def _line() -> str:
    """The line of the model's own code that calls straight into where torch makes numbers; or nothing."""
    frames = traceback.extract_stack()[:-2]
    own = max((k for k, frame in enumerate(frames) if is_own(frame.filename)), default=None)
    if own is None or own + 1 >= len(frames) or not frames[own + 1].filename.startswith(_NUMBERS):
        return ""
    return place_of(frames[own])
