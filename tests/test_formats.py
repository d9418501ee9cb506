"""The proof of torch's formats must fail when anything is wrong: each test changes one thing in a file."""

import importlib
import random
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from models import SMALL_DYNAMIC, Small, small_inputs
from torch import nn
from torch_files import FORMS, edit_pt2, edit_script, rewrite, with_note

import roast_export
from roast_export.errors import RoastError
from roast_export.open_file import open_artifact
from roast_export.program import ROAST_TARGETS, quiet

verifying = importlib.import_module("roast_export.verify")
forms = pytest.mark.parametrize("form", FORMS)
SCRIPTS = [form for form, (target, _) in FORMS.items() if target != "pt2"]
scripts = pytest.mark.parametrize("form", SCRIPTS)


pytestmark = pytest.mark.usefixtures("nothing_is_measured")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return roast_export.compress(Small().eval(), 8)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    """Files by form."""
    folder, found = tmp_path_factory.mktemp("good"), {}
    for form, (target, portable) in FORMS.items():
        found[form] = folder / f"{form.replace(' ', '_')}.pt2"
        options = {"example_inputs": small_inputs(), "dynamic_shapes": SMALL_DYNAMIC, "verify": False}
        roast_export.export(model, found[form], to=target, portable=portable, **options)
    return found


def verdict(model, path):
    return roast_export.verify(model, path, example_inputs=small_inputs())


def failures(model, path, kind):
    report = verdict(model, path)
    assert not report.passed
    return {check.name for check in report.failures if check.kind == kind}


def edited(good, form, tmp_path, script, pt2):
    """A copy of a file; `script` gets its module, or `pt2` its exported program."""
    edit, change = (edit_pt2, pt2) if FORMS[form][0] == "pt2" else (edit_script, script)
    return edit(good[form], tmp_path / "changed.pt2", change)


@forms
def test_control_nothing_changed(model, good, form, tmp_path):
    report = verdict(model, good[form])
    assert report.passed
    assert report.inputs == {"ids": "int64[batch, 5]", "extra": "float32[batch, 5, 48]"}
    assert {check.kind for check in report.checks} == {"size", "structure", "weight", "output"}
    runtimes = {check.runtime for check in report.checks if check.kind == "output"}
    assert len(runtimes) == 1
    assert {c.name for c in report.checks if c.kind == "weight" and c.runtime in runtimes} == {
        "table.weight",
        "first.weight",
        "last.weight",
    }
    assert [item.path for item in report.measurements] == list(runtimes)
    # Written once more without a change it still passes: what the tests below refuse is the change.
    again = edited(good, form, tmp_path, lambda module: None, lambda program: None)
    assert verdict(model, again).passed


@forms
def test_one_array_value(model, good, form, tmp_path):
    def script(module):
        module.table.weight.memory[100] *= 1 + 2**-20

    def pt2(program):
        name = next(n for n in program.state_dict if n.endswith("memory"))
        program.state_dict[name].data[100] *= 1 + 2**-20

    found = failures(model, edited(good, form, tmp_path, script, pt2), "weight")
    assert any(name.endswith("memory") for name in found), found
    assert {"table.weight", "first.weight", "last.weight"} & found


@scripts
@pytest.mark.parametrize("place", [7, 11, 15, 21, 22, 28])
def test_one_integer_of_a_record(model, good, form, place, tmp_path):
    def script(module):
        fields = list(module.first.weight.mapping)
        fields[place] += -1 if place in (21, 22) else 1
        module.first.weight.mapping = fields

    assert failures(model, edited(good, form, tmp_path, script, None), "weight") == {"first.weight"}


@pytest.mark.parametrize("place", [15, 21, 28])
def test_one_integer_of_a_record_in_a_graph(model, good, place, tmp_path):
    def pt2(program):
        node = next(n for n in program.graph.nodes if ROAST_TARGETS.get(n.target) == "linear")
        fields = list(node.args[-2])
        fields[place] += -1 if place == 21 else 1
        node.args = (*node.args[:-2], fields, node.args[-1])

    found = failures(model, edited(good, "pt2", tmp_path, None, pt2), "weight")
    assert found == {"first.weight"}


def test_one_integer_of_the_arithmetic_in_a_graph(model, good, tmp_path):
    added = model.first.virtual["weight"].mapping.hash1.g

    def pt2(program):
        node = next(n for n in program.graph.nodes if added in n.args)
        node.args = tuple(added + 1 if arg == added else arg for arg in node.args)

    found = failures(model, edited(good, "pt2 portable", tmp_path, None, pt2), "weight")
    assert found == {"first.weight"}


@forms
def test_one_scale(model, good, form, tmp_path):
    right = model.table.virtual["weight"].scale
    wrong = right * (1 + 2**-22)

    def script(module):
        module.table.weight.scale = wrong

    def pt2(program):
        node = next(n for n in program.graph.nodes if right in n.args)
        node.args = tuple(wrong if arg == right else arg for arg in node.args)

    assert failures(model, edited(good, form, tmp_path, script, pt2), "weight") == {"table.weight"}


@forms
def test_one_bias(model, good, form, tmp_path):
    def script(module):
        module.first.bias[3] *= 1.5

    def pt2(program):
        program.state_dict["first.bias"].data[3] *= 1.5

    report = verdict(model, edited(good, form, tmp_path, script, pt2))
    wrong = [check for check in report.failures if check.kind == "weight"]
    assert [(check.name, check.index) for check in wrong] == [("first.bias", (3,))]
    assert any(check.kind == "output" for check in report.failures)


@forms
def test_the_bound_can_be_set(model, good, form):
    report = roast_export.verify(model, good[form], example_inputs=small_inputs(), atol=0.0, rtol=1e-12)
    assert {check.kind for check in report.failures} <= {"output"}


@forms
def test_another_model_of_the_same_shape(good, form):
    torch.manual_seed(1)
    other = roast_export.compress(Small().eval(), 8, seed=9)
    found = failures(other, good[form], "weight")
    assert {"table.weight", "first.weight", "last.weight"} <= found


@forms
def test_another_model_altogether(good, form):
    torch.manual_seed(1)
    with torch.no_grad():
        other = roast_export.compress(nn.Sequential(nn.Embedding(70, 64)).eval(), 4)
    with pytest.raises(RoastError, match="no input is called"):
        roast_export.verify(other, good[form], example_inputs=(torch.zeros(2, 5).long(),))


@forms
def test_a_weight_that_the_note_does_not_speak_of(model, good, form, tmp_path):
    note = open_artifact(good[form]).note
    kept = [weight.__dict__ for weight in note.weights if weight.name != "first.weight"]
    path = with_note(good[form], tmp_path / "changed.pt2", weights=kept)
    report = verdict(model, path)
    assert any(c.name == "first.weight" and c.note == "the file has no such layer" for c in report.failures)


@forms
def test_a_weight_that_is_somewhere_else(model, good, form, tmp_path):
    weights = [weight.__dict__ for weight in open_artifact(good[form]).note.weights]
    weights[0] = weights[0] | {"name": "elsewhere.weight"}
    report = verdict(model, with_note(good[form], tmp_path / "changed.pt2", weights=weights))
    assert any(c.name == "elsewhere.weight" and "no such layer" in c.note for c in report.failures)


@forms
@pytest.mark.parametrize("place", ["", "nowhere", "nowhere at all", "forward", "first", "../.."])
def test_a_place_that_is_none(model, good, form, place, tmp_path):
    weights = [weight.__dict__ | {"place": place} for weight in open_artifact(good[form]).note.weights]
    report = verdict(model, with_note(good[form], tmp_path / "changed.pt2", weights=weights))
    # TorchScript files have a method for their weights and need the place for products alone.
    assert report.passed == (FORMS[form][0] == "lite" or form == "torchscript portable")


@forms
def test_junk_breaks_the_size_gate_whatever_the_note_says(model, good, form, tmp_path):
    weights = [weight.__dict__ for weight in open_artifact(good[form]).note.weights]
    junk = random.Random(0).randbytes(1 << 18).hex()
    fields = {"producer": junk, "array_bytes": 10**9, "weights": weights * 99}
    path = with_note(good[form], tmp_path / "changed.pt2", **fields)
    limit = verdict(model, good[form]).limit_bytes
    report = verdict(model, path)
    assert report.limit_bytes <= limit + 1024  # pt2 names a layer for each use
    assert "size gate" in {check.name for check in report.failures}


@forms
def test_inputs_that_the_file_does_not_have(model, good, form, tmp_path):
    for inputs in ({}, {"ids": ["int64", ["batch", 5]]}, {"nope": ["int64", [2]]}, {"ids": ["int64", [2]]}):
        path = with_note(good[form], tmp_path / "changed.pt2", inputs=inputs)
        with suppress(RoastError):
            assert not verdict(model, path).passed
    path = with_note(good[form], tmp_path / "changed.pt2", inputs={"nope": ["int64", ["batch"]]})
    with pytest.raises(RoastError, match="no input is called 'nope'"):
        verdict(model, path)


@forms
def test_outputs_that_the_file_does_not_have(model, good, form, tmp_path):
    for outputs in ([], ["scores"], ["scores", "best", "more"]):
        path = with_note(good[form], tmp_path / "changed.pt2", outputs=outputs)
        assert not verdict(model, path).passed


@forms
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_truncated_file(model, good, form, share, tmp_path):
    content = good[form].read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RoastError, match=r"cut\.pt2"):
        verdict(model, path)


@forms
def test_a_damaged_member(model, good, form, tmp_path):
    """Everything but the note is noise."""
    path = rewrite(good[form], tmp_path / "noise.pt2", lambda n, old: old if "extra" in n else b"\x80noise")
    with pytest.raises(RoastError, match=r"noise\.pt2 .*; export it again"):
        verdict(model, path)


def test_files_of_others(model, tmp_path):
    dense = nn.Linear(3, 2).eval()
    with quiet():
        torch.jit.save(torch.jit.script(dense), str(tmp_path / "dense.ts"))
        torch.jit.script(dense)._save_for_lite_interpreter(str(tmp_path / "dense.ptl"))
        torch.export.save(torch.export.export(dense, (torch.zeros(1, 3),)), tmp_path / "dense.pt2")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(RoastError, match="was not written by roast-export"):
            verdict(model, path)
    roast_export.save(model, tmp_path / "saved.pt", small_inputs())
    with pytest.raises(RoastError, match=r"saved\.pt"):
        verdict(model, tmp_path / "saved.pt")


def test_an_archive_that_runs_code_is_not_opened(model, good, tmp_path):
    """roast-verify reads a file before it opens it, whatever the note calls it."""
    ran = tmp_path / "ran"
    pickled = b"cbuiltins\nopen\n(V" + str(ran).encode() + b"\nVw\ntR."

    def change(name, old):
        return pickled if name.endswith("sample_inputs/model.pt") else old

    path = rewrite(good["pt2"], tmp_path / "evil.pt2", change)
    with pytest.raises(RoastError, match=r"evil\.pt2 runs code when opened"):
        verdict(model, path)
    assert not ran.exists()


def test_a_target_from_the_future(model, good, tmp_path):
    path = with_note(good["pt2"], tmp_path / "x.pt2", target="quantum")
    with pytest.raises(RoastError, match="unknown kind 'quantum'; upgrade roast-export"):
        verdict(model, path)


@pytest.mark.parametrize(("form", "lie"), [("pt2", "torchscript"), ("torchscript", "pt2"), ("pt2", "lite")])
def test_a_target_that_it_is_not(model, good, form, lie, tmp_path):
    path = with_note(good[form], tmp_path / "x.pt2", target=lie)
    with pytest.raises(RoastError, match=r"x\.pt2"):
        verdict(model, path)


def command(*arguments):
    program = Path(sys.executable).parent / "roast-verify"
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_command_line_over_all_of_them(model, good, tmp_path):
    """One table; exit code 2 and the layer's name as soon as one file is wrong."""
    roast_export.save(model, tmp_path / "m.pt", small_inputs())

    def script(module):
        module.last.weight.scale *= 2.0

    wrong = edited(good, "torchscript portable", tmp_path, script, None)
    done = command(tmp_path / "m.pt", good["lite"], wrong)
    assert done.returncode == 2, done.stderr
    assert re.search(r"lite interpreter portable.*pass", done.stdout)
    assert re.search(r"torchscript portable.*FAIL", done.stdout)
    assert "last.weight" in done.stdout
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr
