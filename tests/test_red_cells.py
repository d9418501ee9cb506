"""roast-verify on broken files, as a user runs it: the right cell is red, the layer named, the status 2.

One thing is changed in each file: a value of the array, a coefficient of a hash, a bias. And the library is
one whose operators are of another version.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from ort_bytes import with_array_value, with_coefficient, with_number
from torch import nn
from torch_files import edit_pt2, edit_script

import roast_export
from roast_export.libraries import KERNEL_ABI, torch_library_path
from roast_export.program import ROAST_TARGETS
from roast_export.torch_ops import LIBRARY_ABSENT

ROOT = Path(__file__).parent.parent
FORMS = {
    "onnx": ("onnx", False, ["onnxruntime native", "onnxruntime portable", "onnxruntime folded"]),
    "ort": ("ort", False, ["onnxruntime .ort native"]),
    "ort portable": ("ort", True, ["onnxruntime .ort portable"]),
    "torchscript": ("torchscript", False, ["torchscript native"]),
    "torchscript portable": ("torchscript", True, ["torchscript portable"]),
    "lite": ("lite", True, ["lite interpreter portable"]),
    "pt2": ("pt2", False, ["torch.export native"]),
    "pt2 portable": ("pt2", True, ["torch.export portable"]),
}
"""Target, `portable`, and the runtimes whose cell a wrong weight turns red."""
SUFFIXES = {"onnx": ".onnx", "ort": ".ort", "torchscript": ".ts", "lite": ".ptl", "pt2": ".pt2"}
forms = pytest.mark.parametrize("form", FORMS)

if LIBRARY_ABSENT:
    pytest.skip(LIBRARY_ABSENT, allow_module_level=True)


@pytest.fixture(scope="module")
def model():
    """Wide enough that no runtime stores the places of the second layer's tiles."""
    torch.manual_seed(0)
    parts = {"table": nn.Embedding(90, 64), "wide": nn.Linear(64, 1100), "last": nn.Linear(1100, 33)}
    return roast_export.compress(nn.Sequential(OrderedDict(parts)).eval(), 20)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The model, and a good file of every form."""
    folder = tmp_path_factory.mktemp("good")
    inputs = (torch.randint(0, 90, (2, 3)),)
    roast_export.save(model, folder / "m.pt", inputs)
    for form, (target, portable, _) in FORMS.items():
        options = {"portable": portable, "verify": False, "dynamic_shapes": {"input": {0: "batch"}}}
        roast_export.export(model, good(folder, form), to=target, example_inputs=inputs, **options)
    return folder


def good(folder, form):
    return folder / f"{form.replace(' ', '_')}{SUFFIXES[FORMS[form][0]]}"


def verified(folder, *arguments, **environment):
    command = [str(Path(sys.executable).parent / "roast-verify"), str(folder / "m.pt"), *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def cells(matrix):
    """Whether each (file, runtime) passed, out of the JSON of a matrix or of one report."""
    found = {}
    for report in matrix.get("reports", [matrix]):
        for check in report["checks"]:
            if check["kind"] in ("weight", "output") and check["runtime"] != "file":
                key = (Path(report["path"]).name, check["runtime"])
                found[key] = found.get(key, True) and check["passed"]
    return found


def broken(folder, form, path, model, what):
    """A copy of the form's file with one thing changed."""
    source, target = good(folder, form), FORMS[form][0]
    memory, bias = model.wide.virtual["weight"].memory.detach().numpy(), model.wide.bias.detach().numpy()
    mapping = model.wide.virtual["weight"].mapping
    slot = int(mapping.indices()[7, 5])
    if target == "ort":
        more = bias * np.where(np.arange(bias.size) == 3, 9, 1).astype(np.float32)
        return {
            "array": lambda: with_array_value(source, path, memory, slot),
            "seed": lambda: with_coefficient(source, path, mapping.hash1.b),
            "bias": lambda: with_number(source, path, bias, more),
        }[what]()
    if target == "onnx":
        return break_onnx(source, path, slot, what)
    edit, change = (edit_pt2, break_program) if target == "pt2" else (edit_script, break_module)
    return edit(source, path, lambda opened: change(opened, slot, what, mapping.hash1.b))


def break_onnx(source, path, slot, what):
    proto = onnx.load(source)
    if what == "seed":
        node = next(n for n in proto.graph.node if n.name == "wide.weight")
        next(a for a in node.attribute if a.name == "hash1").ints[2] += 1
    else:
        name, place, factor = {"array": ("roast_memory", slot, 1 + 2**-20), "bias": ("wide.bias", 3, 9)}[what]
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values[place] *= np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    return path


def break_module(module, slot, what, coefficient):
    weight = module.wide.weight
    if what == "array":
        weight.memory[slot] *= 1 + 2**-20
    elif what == "bias":
        module.wide.bias[3] *= 9
    else:
        weight.mapping = [field + 1 if field == coefficient else field for field in weight.mapping]


def break_program(program, slot, what, coefficient):
    state = program.state_dict
    if what == "array":
        state[next(name for name in state if name.endswith("memory"))].data[slot] *= 1 + 2**-20
    elif what == "bias":
        state["wide.bias"].data[3] *= 9
    else:
        for node in program.graph.nodes:
            if node.target in ROAST_TARGETS:
                fields = [field + 1 if field == coefficient else field for field in node.args[-2]]
                node.args = (*node.args[:-2], fields, node.args[-1])
            elif coefficient in node.args:
                node.args = tuple(coefficient + 1 if arg == coefficient else arg for arg in node.args)


def test_control_the_good_files_are_green(folder, tmp_path):
    done = verified(folder, *(good(folder, form) for form in FORMS), "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = cells(json.loads((tmp_path / "r.json").read_text()))
    assert all(found.values())
    for form, (_, _, runtimes) in FORMS.items():
        for runtime in runtimes:
            assert (good(folder, form).name, runtime) in found


@forms
def test_an_array_value_a_seed_and_a_bias(model, folder, form, tmp_path):
    """Three broken copies and the good file in one matrix: the copies are red, the good one is green."""
    suffix = good(folder, form).suffix
    copies = {
        what: broken(folder, form, tmp_path / f"{what}{suffix}", model, what)
        for what in ("array", "seed", "bias")
    }
    done = verified(folder, good(folder, form), *copies.values(), "--report", tmp_path / "r.json")
    assert done.returncode == 2, done.stdout + done.stderr
    matrix = json.loads((tmp_path / "r.json").read_text())
    found = cells(matrix)
    for runtime in FORMS[form][2]:
        assert {name: passed for (name, where), passed in found.items() if where == runtime} == {
            good(folder, form).name: True,
            **{path.name: False for path in copies.values()},
        }
    wrong = {
        Path(report["path"]).stem: [check for check in report["checks"] if not check["passed"]]
        for report in matrix["reports"]
    }
    of_array = [check for check in wrong["array"] if check["kind"] == "weight"]
    mapping = model.wide.virtual["weight"].mapping
    slot = int(mapping.indices()[7, 5])
    at = next(c for c in of_array if c["name"].partition("#")[0] == "wide.weight" and c["runtime"] != "file")
    assert mapping.indices()[tuple(at["index"])] == slot
    assert f"memory[{slot}] * " in at["source"]
    assert f"b={mapping.hash1.b}" in at["source"]
    assert {c["name"].partition("#")[0] for c in wrong["seed"] if c["kind"] == "weight"} == {"wide.weight"}
    assert [(c["name"], c["index"]) for c in wrong["bias"] if c["runtime"] == "file"] == [("wide.bias", [3])]
    layers = {c["note"] for c in wrong["bias"] if c["note"].startswith("first differing layer")}
    assert layers
    assert all(note.startswith("first differing layer: wide ") for note in layers), layers
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAIL ")]
    for what, name in (("array", "wide.weight"), ("seed", "wide.weight"), ("bias", "wide.bias")):
        assert any(str(copies[what]) in line and name in line for line in lines), what


def test_every_form_of_the_report_has_index_values_slot_and_layer(model, folder, tmp_path):
    path = broken(folder, "onnx", tmp_path / "seed.onnx", model, "seed")
    for suffix in ("json", "xml", "html", "txt"):
        done = verified(folder, path, "--runtime", "onnxruntime native", "--report", tmp_path / f"r.{suffix}")
        assert done.returncode == 2
    report = json.loads((tmp_path / "r.json").read_text())
    check = next(c for c in report["checks"] if c["name"] == "wide.weight" and not c["passed"])
    place, values = ",".join(map(str, check["index"])), (check["expected"], check["actual"])
    at = "[{}] {:.9g} in PyTorch, {:.9g} here".format(place, *values)
    messages = [
        failure.get("message")
        for failure in ElementTree.parse(tmp_path / "r.xml").getroot().iter("failure")
        if failure.get("message").startswith("[")
    ]
    page = re.sub(r"\s+", " ", (tmp_path / "r.html").read_text(encoding="utf-8"))
    texts = [(tmp_path / "r.txt").read_text(encoding="utf-8"), done.stdout, "\n".join(messages), page]
    for text in texts:
        assert at in text
        assert check["source"] in text
        assert "first differing layer: wide" in text or text is texts[2]


def stub(path, version):
    """A library that has the entry points of ours and operators of another version."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler on the path")
    source = path.with_suffix(".c")
    source.write_text(
        f"unsigned roast_kernel_abi(void) {{ return {version}; }}\n"
        "void* RegisterCustomOps(void* options, const void* base) { return 0; }\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return path


@pytest.mark.parametrize("form", ["onnx", "ort"])
def test_a_library_of_another_version_for_onnxruntime(folder, form, tmp_path):
    library = stub(tmp_path / "libroast_ort.so", KERNEL_ABI + 1)
    runtime = FORMS[form][2][0]
    report = ["--report", tmp_path / "r.json"]
    done = verified(folder, good(folder, form), *report, ROAST_ORT_LIBRARY=str(library))
    assert "Traceback" not in done.stderr
    message = f"{library} has operators of version {KERNEL_ABI + 1}, roast-export "
    assert done.returncode == 2, done.stdout + done.stderr
    found = cells(json.loads((tmp_path / "r.json").read_text()))
    assert found[good(folder, form).name, runtime] is False
    assert form == "ort" or found[good(folder, form).name, "onnxruntime portable"] is True
    assert message in done.stdout
    assert f"FAIL {runtime}, output all outputs, open: " in done.stdout


def test_a_library_of_another_version_for_torch(folder, tmp_path):
    ours = roast_export.__version__.encode() + b"\0"
    library = tmp_path / "libroast_torch.so"
    library.write_bytes(Path(torch_library_path()).read_bytes().replace(ours, b"9" * (len(ours) - 1) + b"\0"))
    files = [good(folder, form) for form in ("torchscript", "pt2", "lite")]
    report = ["--report", tmp_path / "r.json"]
    done = verified(folder, *files, *report, ROAST_TORCH_LIBRARY=str(library))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"{library} is of another version than roast-export" in done.stdout
    found = cells(json.loads((tmp_path / "r.json").read_text()))
    assert {runtime for (_, runtime), passed in found.items() if not passed} == {
        "torchscript native",
        "torch.export native",
    }
    assert found[files[2].name, "lite interpreter portable"] is True


def test_control_a_library_that_is_not_there_is_a_named_skip(folder, tmp_path):
    report = ["--report", tmp_path / "r.json"]
    done = verified(folder, good(folder, "onnx"), *report, ROAST_ORT_LIBRARY=str(tmp_path / "gone.so"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gone.so" in json.loads((tmp_path / "r.json").read_text())["skipped"]["onnxruntime native"]
    required = verified(
        folder,
        good(folder, "onnx"),
        "--require",
        "onnxruntime native",
        ROAST_ORT_LIBRARY=str(tmp_path / "gone.so"),
    )
    assert required.returncode == 2
