"""Whether opening a TorchScript file, or one for the lite interpreter, could do more than compute tensors.

torch.jit.load compiles the source in the archive and runs its `__setstate__` methods; running the model
runs the rest. That source, and the lite interpreter's bytecode, may call any operator that torch has.
"""

from __future__ import annotations

import ast
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from roast_export.errors import RoastError
from roast_export.functional_ops import is_functional, refused_namespaces, refused_words

_MEMBER = re.compile(
    r"extra/.+|(?:data|constants)/\d+|code/[\w/.]+\.py(?:\.debug_pkl)?|(?:data|constants|bytecode)\.pkl"
    r"|mobile_debug_handles\.pkl|(?:\.data/)?version|byteorder|\.data/serialization_id"
)
"""Every member that torch writes for a scripted module of plain tensors.

The version has the longer name where the module calls an operator that torch has changed since (gelu).
"""

_GLOBAL = re.compile(
    r"torch\._utils _rebuild_(?:tensor_v2|parameter)|collections OrderedDict"
    r"|torch\.jit\._pickle (?:build_\w+|restore_type_tag)|torch (?:\w+Storage|[a-z]\w*)"
)
"""Classes that its pickles name: the archive's own, and those of tensors and lists."""

_BUILTINS = {
    "annotate", "bool", "complex", "device", "dict", "dtype", "enumerate", "float", "getattr", "if",
    "int", "isinstance", "len", "list", "max", "min", "range", "return", "str", "sum", "tuple",
    "unchecked_cast", "uninitialized", "while", "zip", "and", "or", "not", "in", "for", "raise", "assert",
}  # fmt: skip
"""What may stand before a parenthesis without a dot: functions of the language, and its keywords."""

_FORBIDDEN = {
    "print",
    "fork",
    "rpc_async",
    "rpc_sync",
    "rpc_remote",
    "awaitable",
    "classes",
    "import",
    "exec",
}
_STRING = re.compile(r'"(?:[ !#-\[\]-~]|\\(?:[\\\'"abfnrtv]|[0-3][0-7]{2}))*"')
"""A string as torch writes it: in double quotes, with these escapes only."""

_STRANGE = re.compile(r"[^\w \n()\[\]{},.:=+>-]")
"""What torch never writes outside strings: comments, continuations, operators in symbols."""

_BEFORE_STRING = {"(", "[", "{", ",", ":", "=", "return"}
_AFTER_STRING = {")", "]", "}", ",", ":", "\n"}
"""Tokens beside a string. Two strings side by side are one string to TorchScript: "sa" "ve" is "save"."""

_ATTRIBUTE = re.compile(r'getattr\([\w.]+, "(?![A-Za-z_]\w*")[^"\\:.]+"\)')
"""The one form of getattr that torch writes: for attributes whose names cannot follow a dot."""


def script_runs_code(path: Path) -> str | None:
    """Why the file at `path` could do more than compute; None if it calls functional operators only.

    The members are read with torch's own reader, because names mean to it what they mean to torch.jit.load.

    Raises:
        RoastError: the archive is damaged.
    """
    try:
        return _reason(path)
    except (RuntimeError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise RoastError(f"{path} is damaged ({str(error).splitlines()[0]}); export it again") from error


def _reason(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        listed = [name.partition("/")[2] or name for name in archive.namelist()]
    reader = torch._C.PyTorchFileReader(os.fspath(path))
    names = list(reader.get_all_records())
    unknown = [name for name in [*listed, *names] if not _MEMBER.fullmatch(name)]
    if unknown:
        return f"its member {unknown[0][:60]!r}"
    if len({name.lower() for name in listed}) != len(listed):
        return "two members of one name"
    for name in names:
        if name.endswith(".py"):
            reason = source_reason(reader.get_record(name))
        elif name.endswith("pkl"):
            reason = _pickle_reason(reader.get_record(name))
        else:
            continue
        if reason:
            return f"{reason} in {name}"
    return None


def source_reason(blob: bytes) -> str | None:
    """What in TorchScript source could do more than compute, whichever way it is reached.

    Words count, not calls: TorchScript lets a program give `torch.save` another name. Only what torch itself
    writes is let through, because each other spelling of a name would be one more to know.
    """
    try:
        text = blob.decode("ascii")
    except UnicodeDecodeError:
        return "source that is not ASCII"
    if _STRANGE.search(_STRING.sub("", text)):
        return "a comment, a line continuation or another character that torch does not write"
    strings = [found.group() for found in _STRING.finditer(text)]
    # Every string becomes one token of the same length, so that places in both texts agree.
    bare = _STRING.sub(lambda found: '"'.ljust(len(found.group()), "$"), text)
    tokens = ["\n", *re.findall(r'"\$+|\w+|[^\w ]', bare), "\n"]
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token[0] == '"' and (before not in _BEFORE_STRING or after not in _AFTER_STRING):
            return "a string in a place where torch writes none"
    if any(not _ATTRIBUTE.match(text, found.start()) for found in re.finditer(r"\bgetattr\b", bare)):
        return "a getattr that torch does not write"
    words = set(re.findall(r"\w+", bare))
    named = set(re.findall(r"\.\s*(\w+)", bare)) | {_text(literal) for literal in strings}
    called = set(re.findall(r"(?<![\w.])(\w+)\s*\(", bare))
    defined = set(re.findall(r"\b(?:def|class)\s+(\w+)", bare))
    # The printer gives functions and classes of the archive a local name before it calls them.
    defined |= {name for line in re.findall(r"^\s*([\w, ]+) = ", bare, re.M) for name in line.split(", ")}
    for word in sorted(words & _FORBIDDEN):
        return f"the word {word!r}"
    for word in sorted(named & (refused_words() | refused_namespaces())):
        return f"the operator {word!r}"
    for word in sorted(called - _BUILTINS - defined):
        if not re.fullmatch(r"\w+(?:Error|Exception)", word):
            return f"a call of {word!r}"
    return None


def _text(literal: str) -> str:
    try:
        return str(ast.literal_eval(literal))
    except (SyntaxError, ValueError):
        return literal


def _pickle_reason(blob: bytes) -> str | None:
    try:
        items = list(_items(blob))
    except Exception:
        return "a pickle that cannot be read"
    for kind, value in items:
        if kind == "global" and not _GLOBAL.fullmatch(value.replace("\n", " ")) and not _own(value):
            return f"the class {value!r}"
        if kind == "string" and "::" in value and not is_functional(value):
            return f"the operator {value[:60]!r}"
    return None


def _own(name: str) -> bool:
    """A class of the archive itself; pickle writes its module and its name apart."""
    return name.startswith("__torch__") and "torch.classes" not in name.replace(" ", ".")


def _items(blob: bytes) -> Iterator[tuple[str, str]]:
    for opcode, argument, _ in pickletools.genops(blob):
        if opcode.name in ("GLOBAL", "INST"):
            yield "global", str(argument)
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise ValueError(opcode.name)
        elif opcode.name.endswith("PUT") and int(argument or 0) > len(blob):
            # Readers make a table as long as the largest place in it.
            raise ValueError(argument)
        elif isinstance(argument, str):
            yield "string", argument
        elif isinstance(argument, bytes):
            yield "string", argument.decode("latin-1")
