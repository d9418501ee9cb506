"""Text as it leaves for a terminal, a page or a report, where names come from files that somebody else wrote.

A name with an escape sequence moves the cursor, and a name with a newline can forge a line such as "PASSED".
Everything that is shown goes through here; what is written for programs (JSON) keeps the names as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

T = TypeVar("T")


def one_line(text: str) -> str:
    """The text with everything but printable characters and spaces written as Python writes it in a string.

    That covers controls, newlines, marks that reverse the direction of writing, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def message(text: str) -> str:
    """The same for a text of several lines, of which all but the first are indented."""
    return "\n  ".join(map(one_line, text.split("\n")))


def printable(value: T) -> T:
    """A copy of a report, or of any dataclass, list, tuple or dict, with `one_line` of each string in it."""
    return changed(value, one_line)


def changed(value: T, change: Callable[[str], str]) -> T:
    """A copy of a dataclass, list, tuple or dict with `change` of each string in it, keys among them."""
    found: Any = value
    if isinstance(value, str):
        found = change(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: changed(getattr(value, f.name), change) for f in fields(value) if f.init}
        found = replace(value, **parts)
    elif isinstance(value, dict):
        found = {changed(key, change): changed(item, change) for key, item in value.items()}
    elif isinstance(value, list):
        found = [changed(item, change) for item in value]
    elif isinstance(value, tuple):
        found = tuple(changed(item, change) for item in value)
    return cast("T", found)


def to_json(value: Any, indent: int | None = 1) -> str:
    """JSON (RFC 8259); it has no NaN: such numbers become the strings "NaN", "Infinity" and "-Infinity".

    indent: as in json.dumps; None writes one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
