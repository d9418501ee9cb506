"""Whether opening a torch.export archive would run code that it carries.

`runs_code` lets only members, names, expressions and calls through that hold data, as torch 2.13 reads
them; tests/test_load.py has the attempts to get past it.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from roast_export.errors import ExportError, LoadError
from roast_export.functional_ops import is_functional
from roast_export.plain_pickle import load_plain
from roast_export.shape_cost import too_costly

ARCHIVE_NOTE = "roast.json"
"""Member of our archives that says what they are."""

_SAMPLES = "data/sample_inputs/model.pt"
_TREES = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_MEMBER = re.compile(
    "|".join(re.escape(name) for name in (_SAMPLES, *_TREES))
    + r"|data/weights/weight_\d+|data/constants/tensor_\d+|extra/.+|\.(?:data/)?\w+|archive_\w+|byteorder"
)
"""Every member that torch.export.save writes for one model of plain tensors."""


def runs_code(path: Path) -> str | None:
    """Why torch.export.load would run code from this archive; None if it holds data only.

    torch unpickles whatever its safe loader refuses, evaluates shape expressions as Python, writes
    names from the archive into Python source, imports modules named in input specs, loads compiled
    code, and calls any function below `torch`. So what is not known to be harmless is refused.

    The members are read with torch's own reader: it takes names without regard to case and the first
    of two equal ones, where zipfile differs. zipfile's names count too: torch falls back on it for the
    format of torch 2.7.
    """
    with zipfile.ZipFile(path) as archive:
        listed = [name.partition("/")[2] or name for name in archive.namelist()]
    unknown = [name for name in listed if not _MEMBER.fullmatch(name)]
    if not unknown:
        reader = torch._C.PyTorchFileReader(os.fspath(path))
        unknown = [name for name in reader.get_all_records() if not _MEMBER.fullmatch(name)]
    if unknown:
        return f"its member {unknown[0][:60]!r}"
    if len({name.lower() for name in listed}) != len(listed):
        return "two members of one name"
    samples = reader.get_record(_SAMPLES)
    reason = _samples_reason(samples) if samples else None
    if reason:
        return f"{reason} in {_SAMPLES}"
    for name in _TREES:
        tree = json.loads(reader.get_record(name).decode())
        reason = too_costly(tree) or _payload_reason(tree) or _json_reason(tree)
        if reason:
            return f"{reason} in {name}"
    return None


def _samples_reason(blob: bytes) -> str | None:
    try:
        load_plain(io.BytesIO(blob))
    except LoadError as error:
        return str(error).partition(", which")[0]
    except Exception:
        return "pickled objects"
    return None


_CALLABLE = re.compile(
    r"torch\.ops\.(?:aten|prims|roast|quantized_decomposed|torchvision)"
    r"\.(?!from_file\.|save\.)(?:(?!__)\w+|__(?:and|or|xor|lshift|rshift)__)\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop|map_impl|scan|associative_scan|flex_attention"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(?:abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow"
    r"|rshift|sub|truediv|xor)|math\.[a-z]\w*|torch\._?sym_\w+"
)
"""What a graph may call: pure operators. aten::from_file and aten::save write files."""


def _may_call(target: str) -> bool:
    aten = re.match(r"torch\.ops\.aten\.(\w+)\.", target)
    return bool(_CALLABLE.fullmatch(target)) and (aten is None or is_functional(f"aten::{aten[1]}"))


_FREE = {
    "as_string", "as_strings", "custom", "from_node", "guards_code", "nn_module_stack", "source_fn_stack",
    "stack_trace", "torch_fn", "torch_version",
}  # fmt: skip
"""Fields whose text torch only copies or quotes; LoadedProgram drops the guards."""

_WORD = re.compile(r"\w*")
_DOTTED = re.compile(r"[\w.:/@ -]*")
"""Names that are harmless in Python source: as an identifier, and in quotes."""


def check_names(names: Iterable[str]) -> None:
    """Raises ExportError for a name of a stored tensor with which an archive would be refused."""
    for name in names:
        if not _DOTTED.fullmatch(name):
            odd = next(letter for letter in name if not _DOTTED.fullmatch(letter))
            raise ExportError(
                f"{name!r} is the name of a parameter or buffer, and an archive may not hold {odd!r} in it; "
                "rename the module with letters, digits, spaces and any of _ - . : / @"
            )


def _payload_reason(tree: Any) -> str | None:
    """Stored tensors must be plain bytes in a member of their own."""
    for payload in tree.get("config", {}).values():
        if payload["use_pickle"] is not False:
            return "pickled tensors"
        if not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            return "pickled objects"
    return None


def _json_reason(tree: Any, key: str = "") -> str | None:
    """`key`: the field that holds `tree`, for items the one that holds their list.

    A model may call an input "target" or "name": fields are told from such names by holding text.
    """
    if isinstance(tree, dict):
        if "__enum__" in tree or tree.get("type") == "collections.defaultdict":
            return "an import"
        # torch names the range of a derived length by its expression (s27 + s64), and looks it up by that.
        items = (
            (not (key == "range_constraints" and _is_shape_expression(name)) and _json_reason(name))
            or _json_reason(value, name)
            for name, value in tree.items()
        )
        return next((found for found in items if found), None)
    if isinstance(tree, list):
        return next((found for item in tree if (found := _json_reason(item, key))), None)
    if not isinstance(tree, str) or key in _FREE:
        return None
    if key == "expr_str":
        return None if _is_shape_expression(tree) else f"the expression {tree[:40]!r}"
    if key in ("target", "as_operator"):
        return None if _may_call(tree) else f"a call of {tree[:40]!r}"
    if key in ("in_spec", "out_spec", "context"):
        return _json_reason(_inner(tree), "context" if key != "context" else "")
    names = _WORD if key in ("name", "as_name", "forward_arg_names") else _DOTTED
    return None if names.fullmatch(tree) else f"the name {tree[:40]!r}"


def _inner(text: str) -> Any:
    """A treespec is JSON in a string of JSON, and so are most of its contexts."""
    try:
        return json.loads(text)
    except ValueError:
        return text


_CALLS = {
    "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "Float", "FloatPow",
    "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv", "Integer",
    "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Pow",
    "PowByNatural", "PythonMod", "RShift", "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan",
    "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where",
}  # fmt: skip
"""What torch writes into shape expressions; it reads them back with Python's eval."""

_SHAPE_NODES = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.Load, ast.BinOp, ast.UnaryOp,
    ast.Compare, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def _is_shape_expression(text: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _SHAPE_NODES) and _is_harmless(node) for node in nodes)


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _CALLS
    if isinstance(node, ast.Name):
        return node.id in _CALLS or bool(re.fullmatch(r"[a-z]+\d+|true|false", node.id))
    # sympy evaluates some strings in their turn.
    return not isinstance(node, ast.Constant) or bool(re.fullmatch(r"[\w.+-]*", str(node.value)))
