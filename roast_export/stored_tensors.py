"""Whether an archive of torch holds as many bytes as its tensors take.

torch.export.load makes zeros of an empty member, and torch.jit.load reads on behind a short one. Both
believe what the file says of a storage's size and of a tensor's place in it. So that is compared with the
members here, before anything is loaded.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from roast_export.errors import LoadError

_SCALARS = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2, 29: 1, 30: 1,
    31: 1, 32: 1, 33: 1,
}  # fmt: skip
"""Bytes of an element by torch.export's number for its type (torch._export.serde.schema.ScalarType)."""

_STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip
"""Bytes of an element by the class that a pickle names."""


def check_stored(copy: Path, path: Path) -> None:
    """Hold the members of a torch.export archive or of a TorchScript file to what its tensors take.

    copy: the archive. path: what messages call it.

    Raises:
        LoadError: a member is missing, empty or short, or a tensor lies outside of its member.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(copy))
        records = set(reader.get_all_records())
        found = next(_complaints(reader, records), None)
    except _MALFORMED as error:
        # torch explains its errors at length.
        why = str(error).partition(". This")[0][:200] or type(error).__name__
        raise LoadError(f"{path} is truncated or damaged ({why}); copy it again") from error
    if found is not None:
        raise LoadError(f"{path} is truncated or damaged: {found}; copy it again")


_MALFORMED = (
    RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RecursionError,
    pickle.UnpicklingError, OverflowError, MemoryError, ImportError,
)  # fmt: skip
"""What torch's reader, json and pickle raise on bytes that are not theirs."""


def _complaints(reader: Any, records: set[str]) -> Iterator[str]:
    for name in sorted(records):
        folder, _, last = name.rpartition("/")
        if folder in ("data/weights", "data/constants") and last.endswith("_config.json"):
            for payload in json.loads(reader.get_record(name).decode())["config"].values():
                member = f"{folder}/{payload['path_name']}"
                if member in records:
                    yield from _payload(reader, member, payload)
                else:
                    yield f"its member {member} is missing"
        elif name in _PICKLES:
            yield from _pickled(reader, records, name)


def _payload(reader: Any, member: str, payload: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a tensor of a torch.export archive."""
    meta = payload.get("tensor_meta")
    if payload.get("use_pickle") or meta is None:
        return
    held = reader.get_record_size(member)
    sizes, strides = ([int(item["as_int"]) for item in meta[key]] for key in ("sizes", "strides"))
    place = int(meta["storage_offset"]["as_int"])
    needed = _elements(place, sizes, strides) * _SCALARS[meta["dtype"]]
    if held < needed:
        yield _short(member, held, needed)


_PICKLES = {
    "data.pkl": ("data",),
    "constants.pkl": ("constants",),
    "bytecode.pkl": ("bytecode", "constants", "data"),
}
"""The pickles of a TorchScript file, with the folders that may hold their storages."""


def _pickled(reader: Any, records: set[str], name: str) -> Iterator[str]:
    """What is wrong with the tensors that a pickle of a TorchScript file speaks of."""
    found = _Tensors(reader.get_record(name))
    found.load()
    for key, size in found.storages:
        members = [f"{folder}/{key}" for folder in _PICKLES[name] if f"{folder}/{key}" in records]
        if not members:
            yield f"its member {_PICKLES[name][0]}/{key} is missing"
        for member in members:
            held = reader.get_record_size(member)
            if held != size:
                yield _short(member, held, size)
    for key, place, sizes, strides, held in found.tensors:
        if _elements(place, sizes, strides) > held:
            yield f"a tensor of {list(sizes)} lies outside of the member {key} of its tensors"


def _short(member: str, held: int, needed: int) -> str:
    return f"its member {member} has {held:,} bytes, and its tensors take {needed:,}"


def _elements(place: int, sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements of a storage up to the last one that a tensor reads."""
    if place < 0 or len(sizes) != len(strides) or min([0, *sizes, *strides]) < 0:
        raise ValueError(f"a tensor of {list(sizes)}, strides {list(strides)} and offset {place}")
    if 0 in sizes:
        return 0
    return 1 + place + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


_OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "BINPERSID", "BINGET", "LONG_BINGET",
    "BINPUT", "LONG_BINPUT", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
}  # fmt: skip
"""What torch writes into the pickles of a TorchScript file."""


class _Anything:
    """Stands for every class and every object of a pickle: nothing of the file is called."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __new__(cls, *arguments: Any, **options: Any) -> _Anything:
        return super().__new__(cls)

    def __call__(self, *arguments: Any) -> _Anything:
        return _Anything(*arguments)

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Tensors(pickle.Unpickler):
    """Notes the storages and the tensors in a pickle, and makes none of them."""

    def __init__(self, blob: bytes) -> None:
        for opcode, argument, _ in pickletools.genops(blob):
            if opcode.name not in _OPCODES:
                raise ValueError(f"the pickle opcode {opcode.name}")
            if opcode.name.endswith("PUT") and int(argument or 0) > len(blob):
                # Readers make a table as long as the largest place in it.
                raise ValueError(f"place {argument} of a pickle of {len(blob):,} bytes")
        super().__init__(io.BytesIO(blob))
        self.storages: list[tuple[str, int]] = []
        """Key and bytes."""
        self.tensors: list[tuple[str, int, Sequence[int], Sequence[int], int]] = []
        """Key, offset, lengths, strides, and elements of the storage."""

    def find_class(self, module: str, name: str) -> Any:
        if name.endswith("Storage"):
            return _Storage(name)
        return self._tensor if name == "_rebuild_tensor_v2" else _Class

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, elements = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
            raise ValueError("a reference to something else than a storage")
        if not isinstance(elements, int) or elements < 0:
            raise ValueError(f"a storage of {elements!r} elements")
        self.storages.append((key, elements * _STORAGES[storage.name]))
        return _Stored(key, elements)

    def _tensor(self, *arguments: Any) -> _Anything:
        storage, place, sizes, strides = arguments[:4]
        if not isinstance(storage, _Stored) or not all(isinstance(n, int) for n in (place, *sizes, *strides)):
            raise ValueError("a tensor without a storage")
        self.tensors.append((storage.key, place, tuple(sizes), tuple(strides), storage.elements))
        return _Anything()


class _Class(_Anything):
    """What a pickle calls, or makes an object of."""


class _Storage:
    def __init__(self, name: str) -> None:
        self.name = name


class _Stored:
    def __init__(self, key: str, elements: int) -> None:
        self.key, self.elements = key, elements
