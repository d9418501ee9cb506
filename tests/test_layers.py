"""Layer rules. Each checker takes source text and gives complaints; each is shown a source it must refuse."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "roast_export"
PYTHON = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob("**/*.py"))}
NATIVE = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "custom_ops").glob("*"))
    if path.suffix in (".h", ".cc")
}

PURE = ("mapping", "families", "errors")
TWINS = ("mapping", "torch_mapping", "onnx_ops", "onnx_lookup")
NATIVE_TWIN = "roast_mapping.h"
NATIVE_VECTORS = "roast_simd.h"
KERNEL_FILES = [name for name in NATIVE if name.startswith("roast_")]
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"}
OPTIONAL = {
    "executorch",
    "transformers",
    "safetensors",
    "tokenizers",
    "peft",
    "sklearn",
    "triton",
    "tensorflow",
    "openvino",
}
IMPORTERS_MAY_USE = {"torch", "numpy", "roast_export"} | set(sys.stdlib_module_names)
COEFFICIENTS = ("p", "a", "b", "q", "g")
HASH_NAMES = ("hash1", "hash2", "sign_hash")


class Import(NamedTuple):
    """One imported module, in full; `eager` if it is imported when the file itself is."""

    module: str
    eager: bool


def imports(source: str) -> Iterator[Import]:
    """Every import of a source: statements anywhere in it, and import_module("name")."""

    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ("roast_export." if node.level else "") + (node.module or "")
            yield Import(base.rstrip("."), eager)
            yield from (Import(f"{base.rstrip('.')}.{alias.name}", eager) for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (Import(a.value, eager) for a in node.args if _is_text(a))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            eager = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            eager = False
        for child in ast.iter_child_nodes(node):
            yield from visit(child, eager)

    yield from visit(ast.parse(source), True)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def top(module: str) -> str:
    return module.partition(".")[0]


def own(module: str) -> str:
    """`x` of roast_export.x.y, or nothing."""
    parts = module.split(".")
    return parts[1] if parts[0] == "roast_export" and len(parts) > 1 else ""


def reaches(sources: dict[str, str], start: str) -> set[str]:
    """Modules outside the package that `start` imports, itself or through modules of the package."""
    seen, todo, outside = set(), [start], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in sources:
            continue
        seen.add(name)
        for item in imports(sources[name]):
            outside |= {top(item.module)} - {"roast_export"}
            todo.append(own(item.module))
    return outside


def pure_complaints(sources: dict[str, str], name: str) -> list[str]:
    found = sorted(reaches(sources, name) & HEAVY)
    return [
        f"{name} imports {module}: it is the reference, and must run with numpy alone" for module in found
    ]


def onnx_ops_complaints(sources: dict[str, str]) -> list[str]:
    found = reaches(sources, "onnx_ops") & {"torch"}
    return ["onnx_ops imports torch: a file must open where torch is not installed" for _ in found]


def importer_complaints(name: str, source: str) -> list[str]:
    complaints = []
    for item in imports(source):
        if own(item.module).startswith("to_"):
            complaints.append(f"{name} imports {item.module}: sources and targets meet in modules.py only")
        if top(item.module) not in IMPORTERS_MAY_USE:
            complaints.append(f"{name} imports {item.module}: files must open without their author's code")
    return complaints


def cli_complaints(name: str, source: str) -> list[str]:
    if name.startswith("cli"):
        return []
    found = [item.module for item in imports(source) if own(item.module).startswith("cli")]
    return [f"{name} imports {module}: the command line is the outermost layer" for module in found]


def optional_complaints(name: str, source: str) -> list[str]:
    late = OPTIONAL | (set() if "runtime" in name or "measure" in name else {"onnxruntime"})
    found = [item.module for item in imports(source) if item.eager and top(item.module) in late]
    return [f"{name} imports {m} when it is imported: runtimes are imported inside functions" for m in found]


def hash_complaints(name: str, source: str) -> list[str]:
    """Products, sums and remainders of a hash's coefficients, and its call, outside the twins."""

    def is_coefficient(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and len(node.args) == 1:
            return is_coefficient(node.args[0])
        if isinstance(node, ast.Subscript):
            return any(hash_name in ast.unparse(node.value) for hash_name in HASH_NAMES)
        return isinstance(node, ast.Attribute) and node.attr in COEFFICIENTS

    def is_arithmetic(node: ast.AST) -> bool:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Add | ast.Mod):
            return is_coefficient(node.left) or is_coefficient(node.right)
        if isinstance(node, ast.Call):
            verb = ast.unparse(node.func).rpartition(".")[2]
            if verb in HASH_NAMES:
                return True
            return verb.lower() in ("mod", "fmod", "remainder", "mul", "multiply") and any(
                map(is_coefficient, node.args)
            )
        return False

    places = [node.lineno for node in ast.walk(ast.parse(source)) if is_arithmetic(node)]
    return [f"{name}:{place} computes a hash: that stands in {', '.join(TWINS)} only" for place in places]


def without_comments(source: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)


def native_hash_complaints(name: str, source: str) -> list[str]:
    field = r"(?:\.|->)[pabqg]\b"
    pattern = rf"[*+%]\s*[\w.\[\]]*{field}|{field}\s*[*+%]|\bhash[12]?\w*\[\w+\]\s*[*+%]"
    found = re.findall(pattern, without_comments(source))
    return [f"{name} computes a hash ({text}): that stands in {NATIVE_TWIN} only" for text in found]


def include_complaints(name: str, source: str) -> list[str]:
    allowed = {"<stdint.h>", "<stddef.h>"}
    if name == NATIVE_VECTORS:  # the compiler's own headers, of functions that are instructions
        allowed |= {"<immintrin.h>", "<arm_neon.h>"}
    found = re.findall(r'^\s*#\s*include\s*(<[^>]*>|"[^"]*"|\w+)', without_comments(source), re.MULTILINE)
    return [
        f"{name} includes {header}: the kernel is freestanding, so that it builds for every platform"
        for header in found
        if header not in allowed and not header.startswith('"roast_')
    ]


@pytest.mark.parametrize("name", PURE)
def test_the_reference_needs_numpy_only(name):
    assert name in PYTHON
    assert pure_complaints(PYTHON, name) == []


def test_onnx_ops_needs_no_torch():
    assert onnx_ops_complaints(PYTHON) == []


@pytest.mark.parametrize("name", [name for name in PYTHON if name.startswith("from_")])
def test_importers_know_neither_targets_nor_research_code(name):
    assert importer_complaints(name, PYTHON[name]) == []


@pytest.mark.parametrize("name", PYTHON)
def test_nothing_imports_the_command_line(name):
    assert cli_complaints(name, PYTHON[name]) == []


@pytest.mark.parametrize("name", PYTHON)
def test_runtimes_are_imported_inside_functions(name):
    assert optional_complaints(name, PYTHON[name]) == []


@pytest.mark.parametrize("name", [name for name in PYTHON if name not in TWINS])
def test_hash_arithmetic_stands_in_the_python_twins_only(name):
    assert hash_complaints(name, PYTHON[name]) == []


@pytest.mark.parametrize("name", [name for name in NATIVE if name != NATIVE_TWIN])
def test_hash_arithmetic_stands_in_the_native_twin_only(name):
    assert native_hash_complaints(name, NATIVE[name]) == []


@pytest.mark.parametrize("name", KERNEL_FILES)
def test_kernel_files_are_freestanding(name):
    assert include_complaints(name, NATIVE[name]) == []


@pytest.mark.parametrize("name", [name for name in TWINS if name in PYTHON and name != "onnx_ops"])
def test_control_the_hash_check_finds_the_twins(name):
    assert hash_complaints(name, PYTHON[name])


@pytest.mark.skipif(NATIVE_TWIN not in NATIVE, reason="no native twin")
def test_control_the_hash_check_finds_the_native_twin():
    assert native_hash_complaints(NATIVE_TWIN, NATIVE[NATIVE_TWIN])


@pytest.mark.parametrize(
    "sources",
    [
        {"mapping": "import torch"},
        {"mapping": "from torch import Tensor"},
        {"mapping": "def f():\n    import onnx.helper"},
        {"mapping": "from roast_export.errors import E", "errors": "import onnx"},
        {"mapping": "from . import errors", "errors": "import onnxruntime"},
        {"mapping": "from importlib import import_module\nimport_module('torch.nn')"},
    ],
)
def test_control_a_heavy_reference_is_refused(sources):
    assert pure_complaints(sources, "mapping")


@pytest.mark.parametrize(
    "sources",
    [
        {"onnx_ops": "import torch"},
        {"onnx_ops": "from roast_export import torch_ops", "torch_ops": "import torch"},
        {"onnx_ops": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"},
    ],
)
def test_control_torch_in_onnx_ops_is_refused(sources):
    assert onnx_ops_complaints(sources)


@pytest.mark.parametrize(
    "source",
    [
        "from roast_export.to_onnx import export",
        "from roast_export import to_onnx",
        "from .to_onnx import export",
        "def convert(x):\n    import FakeRoast",
        "import hashedEmbeddingBag",
        "from rz_linear import RzLinear",
    ],
)
def test_control_an_importer_that_knows_too_much_is_refused(source):
    assert importer_complaints("from_bad", source)


@pytest.mark.parametrize(
    "source",
    [
        "from roast_export import cli",
        "import roast_export.cli",
        "from .cli import export_command",
        "from roast_export.cli_options import opened",
    ],
)
def test_control_importing_the_command_line_is_refused(source):
    assert cli_complaints("bad", source)


@pytest.mark.parametrize(
    "source",
    [
        "import onnxruntime",
        "from executorch.runtime import Runtime",
        "try:\n    import sklearn\nexcept ImportError:\n    pass",
        "class A:\n    import transformers",
        "import importlib\nx = importlib.import_module('onnxruntime')",
    ],
)
def test_control_an_eager_runtime_is_refused(source):
    assert optional_complaints("bad", source)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import onnxruntime",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onnxruntime",
        "import torch",
    ],
)
def test_control_a_late_runtime_is_accepted(source):
    assert optional_complaints("good", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "x = i * m.hash1.a",
        "x = m.hash2.q * j * j",
        "x = np.int64(h.b) * j",
        "x = y % level.p",
        "x = torch.remainder(y, h.p)",
        "x = hash1[1] * i",
        "x = fields['hash2'][3] * j",
        "x = m.sign_hash(i, j)",
        "x = np.mod(y, np.int64(h.p))",
    ],
)
def test_control_a_fifth_hash_is_refused(source):
    assert hash_complaints("bad", source)


@pytest.mark.parametrize(
    "source",
    [
        "x = Hash(P, a=a, b=b, g=g)",
        "x = list(m.hash1.to_list())",
        "x = a * b + q % p",
        "x = r.range * r.align",
    ],
)
def test_control_other_arithmetic_is_accepted(source):
    assert hash_complaints("good", source) == []


@pytest.mark.parametrize(
    "source",
    ["x = i * h.a;", "x = m->hash1.q * j;", "x = y % h->p;", "x = hash1[1] * i;", "x = s + m.sign_hash.g;"],
)
def test_control_a_fifth_native_hash_is_refused(source):
    assert native_hash_complaints("bad.cc", source)


@pytest.mark.parametrize("source", ["x = a * b;  // h.a * i", "/* y % h.p */", "copy(m.hash1, fields + 11);"])
def test_control_other_native_arithmetic_is_accepted(source):
    assert native_hash_complaints("good.cc", source) == []


@pytest.mark.parametrize(
    "line",
    [
        "#include <vector>",
        "#include <string.h>",
        '#include "ort_abi.h"',
        "  #  include <math.h>",
        "#include FILE",
    ],
)
def test_control_a_kernel_with_a_runtime_header_is_refused(line):
    assert include_complaints("roast_kernel.cc", f'#include "roast_kernel.h"\n{line}\n')


def test_control_a_freestanding_kernel_is_accepted():
    source = f'#include <stdint.h>\n#include <stddef.h>\n#include "{NATIVE_TWIN}"\n// #include <vector>\n'
    assert include_complaints("roast_kernel.cc", source) == []
