"""Reading a pickle of torch that holds data only, within the limits of budget.py.

torch's own loader (weights_only) runs no code from the file. But it lets a file of 45 bytes call
`bytearray(2_000_000_000)`, count what a tensor without end repeats, or hash pairs of pairs of pairs. So
what it lets a file call is replaced, while a file is read, by functions that take what torch.save writes
and nothing else.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch import _weights_only_unpickler as unpickler

from roast_export.budget import check_storages, check_values
from roast_export.errors import LoadError

TUPLE = 1 << 16
"""Values in a tuple that is reached more than once; hashing it walks through all of them."""


def load_plain(file: IO[bytes]) -> Any:
    """What torch.load(weights_only=True) gives for a file of data only, on the CPU.

    file: open, at its beginning; a zip archive of torch.save, or its legacy format.

    Raises:
        LoadError: it calls something with other arguments than torch.save writes, or is too large.
        Exception: whatever torch raises; pickle.UnpicklingError where the file would run code.
    """
    with _guarded():
        content = torch.load(file, map_location="cpu", weights_only=True)
    check_values(content)
    file.seek(0, 2)
    check_storages(content, file.tell())
    return content


_LOCK = threading.RLock()


@contextmanager
def _guarded() -> Iterator[None]:
    """Put the functions below in the places of those that torch lets a file call."""
    allowed = unpickler._get_allowed_globals()
    with _LOCK:
        old, plain = dict(allowed), unpickler.Unpickler
        try:
            allowed.update(_guards(old))
            unpickler.Unpickler = _Unpickler  # type: ignore[misc]
            yield
        finally:
            unpickler.Unpickler = plain  # type: ignore[misc]
            allowed.clear()
            allowed.update(old)


def _guards(allowed: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """By the name that a pickle writes."""
    guards = {name: _of_limited(what) for name, what in allowed.items() if name.startswith("torch._utils.")}
    for name, what in allowed.items():
        if what in torch._tensor_classes or name in ("torch.Tensor", "torch.storage.TypedStorage"):
            guards[name] = _refused(name)
    tensor = guards["torch.Tensor"]

    def rebuild(function: Any, kind: Any, *rest: Any) -> Any:
        check_values(rest)
        return torch._tensor._rebuild_from_type_v2(function, torch.Tensor if kind is tensor else kind, *rest)

    return guards | {
        "torch._tensor._rebuild_from_type_v2": rebuild,
        "torch.Size": _only("torch.Size", torch.Size, (tuple, list)),
        "collections.Counter": _only("collections.Counter", Counter, (dict,)),
        "collections.OrderedDict": _only("collections.OrderedDict", OrderedDict, (dict, list, tuple)),
        "builtins.set": _only("builtins.set", set, (list, tuple)),
        "builtins.bytearray": _text("builtins.bytearray", bytearray),
        "_codecs.encode": _text("_codecs.encode", str.encode),
    }


def _of_limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gets its tensors only if they are within budget.ELEMENTS: some copy them."""

    def call(*arguments: Any) -> Any:
        check_values(arguments)
        return function(*arguments)

    return call


def _only(name: str, made: Callable[..., Any], kinds: tuple[type, ...]) -> Callable[..., Any]:
    """Takes nothing, or one value of these kinds."""

    def call(*arguments: Any) -> Any:
        if len(arguments) > 1 or any(type(argument) not in kinds for argument in arguments):
            raise _strange(name, arguments)
        return made(*arguments)

    return call


def _text(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """Takes a text that stands for bytes, as pickles of protocol 2 write them; bytearray takes bytes too."""

    def call(*arguments: Any) -> Any:
        if made is bytearray and all(type(argument) is bytes for argument in arguments[:2]):
            return bytearray(*arguments)
        if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] not in ("latin1", "latin-1"):
            raise _strange(name, arguments)
        return made(*arguments)

    return call


def _refused(name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        raise _strange(name, arguments)

    return call


def _strange(name: str, arguments: tuple[Any, ...]) -> LoadError:
    kinds = ", ".join(type(argument).__name__ for argument in arguments) or "nothing"
    return LoadError(
        f"it calls {name} with {kinds}, which can take any amount of memory and which torch.save does not "
        "write; save the state dict again with torch.save"
    )


class _Memo(dict[int, Any]):
    """What a pickle may reach again. Holds each tuple to TUPLE values on all of its levels."""

    def __init__(self) -> None:
        super().__init__()
        self._counted: dict[int, tuple[Any, int]] = {}
        """Each tuple and its values, by identity. The tuple is kept, so that no other gets its identity."""

    def __setitem__(self, place: int, value: Any) -> None:
        if isinstance(value, tuple):
            count = self._count(value)
            if count > TUPLE:
                raise LoadError(f"it holds a tuple of more than {TUPLE:,} values, which no model does")
            self._counted[id(value)] = (value, count)
        super().__setitem__(place, value)

    def _count(self, value: Any) -> int:
        if not isinstance(value, tuple):
            return 1
        known = self._counted.get(id(value))
        return known[1] if known else 1 + sum(map(self._count, value))


class _Unpickler(unpickler.Unpickler):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.memo = _Memo()
