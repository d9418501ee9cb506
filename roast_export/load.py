"""Opening a model file, and writing the archive that opens without the model's code.

| file | opened as |
|---|---|
| archive of `save`, or any torch.export .pt2 | its traced graph; refused where opening it would run code |
| pickled nn.Module | the module, only with trust: unpickling runs code from the file |
| state dict | the module that `model` = "package.module:factory" makes, with these values |

Anything else is refused by name.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roast_export.errors import LoadError
from roast_export.files import replacing
from roast_export.program import Inputs, LoadedProgram, evaluation, layers_of, quiet, trace

ARCHIVE_NOTE = "roast.json"
"""Member of our archives that says what they are."""


def save(model: nn.Module, path: str | os.PathLike[str], example_inputs: Inputs) -> None:
    """Trace `model` and write one file with graph, arrays and example inputs: a torch.export archive.

    Every dimension that torch.export can prove dynamic stays so; an export can fix it later. The
    archive holds data only, and opens without the model's code.

    Raises:
        InputError: the model does not run on the example inputs.
        ExportError: the model cannot be traced, or the file cannot be written.
    """
    with evaluation(model), replacing(path) as target:
        program = trace(model, example_inputs, every_dimension=True)
        note = {
            "producer": f"roast-export {version('roast-export')}",
            "layers": {layer.name: layer.mapping.to_list() for layer in layers_of(program)},
        }
        with quiet():
            torch.export.save(program, target, extra_files={ARCHIVE_NOTE: json.dumps(note)})


def load(path: str | os.PathLike[str], *, model: str | None = None, trust: bool = False) -> nn.Module:
    """Open a model file (the table above) on the CPU.

    model: "package.module:factory" that builds the module a bare state dict belongs to.
    trust: the file comes from someone you trust with running code on this machine.

    Raises:
        LoadError: the file is missing, damaged, of another kind, or may not be opened like this.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "export archive":
        return _open_archive(path, trust)
    if kind == "torch pickle":
        return _open_pickle(path, model, trust)
    raise LoadError(f"{path} is {kind}; {_NEXT_STEP.get(kind, _WANTED)}")


_WANTED = "give an archive of roast_export.save, a .pt2, a pickled module (--trust) or a state dict (--model)"
_NEXT_STEP = {
    "a TorchScript archive": "export from the Python model it was made from",
    "an ONNX model": "it is exported already; roast-inspect and roast-verify read it",
    "an ORT-format model": "it is exported already",
    "a safetensors file": "load it into the module and save that with roast_export.save",
}


def _kind(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise LoadError(f"{path} does not exist") from None
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        return "empty"
    if head.startswith(b"PK"):
        return _zip_kind(path)
    if head[4:8] == b"ORTM":
        return "an ORT-format model"
    if head.startswith(b"GGUF"):
        return "a GGUF file"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file"
    if path.suffix == ".onnx":
        return "an ONNX model"
    if head[0] == 0x80:
        return "torch pickle"
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "a text file" if printable > 0.95 * len(head) else "of no kind known here"


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise LoadError(f"{path} is truncated or damaged ({error}); copy it again") from error
    if damaged:
        raise LoadError(f"{path} is damaged in its member {damaged}; copy it again")
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return "export archive"
    if "constants.pkl" in inner:
        return "a TorchScript archive"
    if "data.pkl" in inner:
        return "torch pickle"
    return "a numpy archive" if any(name.endswith(".npy") for name in names) else "a zip file without a model"


def _open_archive(path: Path, trust: bool) -> nn.Module:
    try:
        reason = None if trust else _runs_code(path)
        if reason is None:
            with quiet():
                return LoadedProgram(torch.export.load(path))
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path} cannot be opened as a torch.export archive: {message}") from error
    raise LoadError(
        f"{path} is a torch.export archive that runs code when opened ({reason}); add --trust "
        "(trust=True) if you trust where it comes from, or write it anew with roast_export.save"
    )


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


def _runs_code(path: Path) -> str | None:
    """Why torch.export.load would run code from this archive; None if it holds data only.

    torch 2.13 unpickles whatever its safe loader refuses, evaluates shape expressions as Python, writes
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
    if samples and not _is_plain(samples):
        return f"pickled objects in {_SAMPLES}"
    for name in _TREES:
        tree = json.loads(reader.get_record(name).decode())
        reason = _payload_reason(tree) or _json_reason(tree)
        if reason:
            return f"{reason} in {name}"
    return None


def _is_plain(blob: bytes) -> bool:
    try:
        torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except Exception:
        return False
    return True


_CALLABLE = re.compile(
    r"torch\.ops\.(?:aten|prims|roast|quantized_decomposed|torchaudio|torchvision)"
    r"\.(?!from_file\.|save\.)(?:(?!__)\w+|__(?:and|or|xor|lshift|rshift)__)\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop|map_impl|scan|associative_scan|flex_attention"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(?:abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow"
    r"|rshift|sub|truediv|xor)|math\.[a-z]\w*|torch\._?sym_\w+"
)
"""What a graph may call: pure operators. aten::from_file and aten::save write files."""

_FREE = {
    "as_string", "as_strings", "custom", "from_node", "guards_code", "nn_module_stack", "source_fn_stack",
    "stack_trace", "torch_fn", "torch_version",
}  # fmt: skip
"""Fields whose text torch only copies or quotes; LoadedProgram drops the guards."""

_WORD = re.compile(r"\w*")
_DOTTED = re.compile(r"[\w.:/@ -]*")
"""Names that are harmless in Python source: as an identifier, and in quotes."""


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
        items = ((_json_reason(name) or _json_reason(value, name)) for name, value in tree.items())
        return next((found for found in items if found), None)
    if isinstance(tree, list):
        return next((found for item in tree if (found := _json_reason(item, key))), None)
    if not isinstance(tree, str) or key in _FREE:
        return None
    if key == "expr_str":
        return None if _is_shape_expression(tree) else f"the expression {tree[:40]!r}"
    if key in ("target", "as_operator"):
        return None if _CALLABLE.fullmatch(tree) else f"a call of {tree[:40]!r}"
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


def _open_pickle(path: Path, model: str | None, trust: bool) -> nn.Module:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust:
            raise LoadError(
                f"{path} is a pickled object, and unpickling runs code from the file; add --trust "
                f"(trust=True) if you trust where it comes from{_needed(error)}"
            ) from error
        content = _unpickle(path)
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path} is truncated or damaged ({message}); copy it again") from error
    if isinstance(content, nn.Module):
        return content
    state = _state_dict(content)
    if state is None:
        raise LoadError(f"{path} holds a {type(content).__name__}, not a module or a state dict; {_WANTED}")
    if model is None:
        raise LoadError(
            f"{path} is a state dict of {len(state)} entries: values without a model; say what builds "
            "the module with --model package.module:factory (model=...)"
        )
    return _fill(_factory(model)(), state, path, model)


def _needed(error: BaseException) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (it asks for {found.group(1)})" if found else ""


def _unpickle(path: Path) -> Any:
    _see_working_folder()
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ModuleNotFoundError, AttributeError) as error:
        raise LoadError(f"{path} needs its model's code: {error}; put it on PYTHONPATH") from error
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path} cannot be unpickled: {message}") from error


def _state_dict(content: Any) -> dict[str, Any] | None:
    """The state dict in a file, also under the keys that training loops use for it."""
    if not isinstance(content, dict):
        return None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = [value for value in content.values() if isinstance(value, torch.Tensor)]
    return content if tensors and all(isinstance(key, str) for key in content) else None


def _see_working_folder() -> None:
    """Let a user's module beside the command be imported, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _factory(name: str) -> Callable[[], nn.Module]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise LoadError(f"--model {name!r} must look like package.module:factory")
    _see_working_folder()
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LoadError(f"--model {name!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise LoadError(f"--model {name!r} is not callable")
    return factory  # type: ignore[no-any-return]


def _fill(module: Any, state: dict[str, Any], path: Path, name: str) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise LoadError(f"--model {name!r} makes a {type(module).__name__}, not an nn.Module")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise LoadError(f"{path} does not fit what {name} makes: {' '.join(lines)[:400]}") from error
    return module.eval()
