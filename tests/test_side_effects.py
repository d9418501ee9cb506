"""Files that compute the right outputs under the proof and do something else to whoever loads them."""

import importlib
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import Small, small_inputs
from torch import nn
from torch.utils import _pytree as pytree

import roast_export
from roast_export import outputs
from roast_export.errors import RoastError
from roast_export.torch_runtimes import open_pt2, run_on

verifying = importlib.import_module("roast_export.verify")
FORMS = {"native": ("torchscript", False), "portable": ("torchscript", True), "lite": ("lite", True)}
forms = pytest.mark.parametrize("form", FORMS)


pytestmark = pytest.mark.usefixtures("nothing_is_measured")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return roast_export.compress(Small().eval(), 8)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("files"), {}
    for form, (target, portable) in FORMS.items():
        found[form] = folder / f"{form}.ts"
        options = {"to": target, "portable": portable, "example_inputs": small_inputs(), "verify": False}
        roast_export.export(model, found[form], **options)
    return found


def with_line(path, line, new, *, at_end):
    """The file with one more line in the source of its forward."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(new, "w") as changed:
        for name in source.namelist():
            text = source.read(name)
            if "/to_torchscript" in name:
                begin = text.index(b"def forward")
                place = text.index(b"\n    return" if at_end else b":\n    ", text.index(b"->", begin))
                place += 1 if at_end else 2
                text = text[:place] + line.encode() + text[place:]
            changed.writestr(name, text)
    return new


def saved_again(path, form, change, new):
    """The file as torch itself saves it after a change of its module."""
    extra = {"roast.json": ""}
    module = torch.jit.load(path, _extra_files=extra)
    change(module)
    if form == "lite":
        module._save_for_lite_interpreter(str(new), _extra_files=extra)
    else:
        torch.jit.save(module, new, _extra_files=extra)
    return new


def verdict(model, path):
    return roast_export.verify(model, path, example_inputs=small_inputs())


@forms
def test_a_file_in_training_mode_is_refused(model, files, form, tmp_path):
    """Whoever loads it runs the branch for training, so the proof may not run the other one."""
    branch = "    if self.training:\n      extra = torch.mul(extra, 3)\n    else:\n      pass\n"
    changed = with_line(files[form], branch, tmp_path / "changed.ts", at_end=False)
    control = saved_again(changed, form, lambda module: module.eval(), tmp_path / "eval.ts")
    assert verdict(model, control).passed
    report = verdict(model, saved_again(changed, form, lambda module: module.train(), tmp_path / "train.ts"))
    assert any("training mode" in check.note for check in report.failures)
    assert any(check.kind == "output" for check in report.failures), "it is run as it is loaded"


@forms
def test_one_layer_in_training_mode_is_named(model, files, form, tmp_path):
    path = saved_again(files[form], form, lambda module: module.norm.train(), tmp_path / "m.ts")
    named = [check.case for check in verdict(model, path).failures if "training mode" in check.note]
    assert named == ["norm"]


@forms
def test_a_file_that_writes_over_its_input_is_refused(model, files, form, tmp_path):
    for word, passes in (("zeros_like", True), ("zero_", False)):
        line = f"    _0q = torch.{word}(ids)\n"
        changed = with_line(files[form], line, tmp_path / f"{word}.ts", at_end=True)
        report = verdict(model, saved_again(changed, form, lambda module: None, tmp_path / f"{word}2.ts"))
        assert report.passed is passes
        assert passes or all("writes over its input 'ids'" in check.note for check in report.failures)


class Adds(nn.Module):
    def forward(self, x):
        return x + 1


class Clears(nn.Module):
    def forward(self, x):
        y = x + 1
        x.zero_()
        return y


class Turns(nn.Module):
    def forward(self, x):
        y = x + 1
        x.t_()
        return y


VALUE = np.arange(9, dtype=np.float32).reshape(3, 3)


def run_of(kind):
    """Every runtime of torch runs what it opened by `run_on`."""
    return run_on(kind(), pytree.tree_flatten(((0,), {}))[1])


def of_archive(kind, path):
    torch.export.save(torch.export.export(kind(), (torch.zeros(3, 3),)), path)
    return open_pt2(str(path))


def clears_its_arrays(inputs):
    inputs["x"][:] = 0
    return [VALUE + 1]


def guarded(run, model=Adds):
    subject = SimpleNamespace(model=model(), program=torch.export.export(Adds(), (torch.zeros(3, 3),)))
    return outputs._on_copies(subject, run)


@pytest.mark.parametrize("runtime", ["torch", "torch.export", "numpy"])
def test_a_runtime_has_arrays_of_its_own(runtime, tmp_path):
    runs = {
        "torch": lambda: (run_of(Adds), run_of(Clears)),
        "torch.export": lambda: [of_archive(kind, tmp_path / "m.pt2") for kind in (Adds, Clears)],
        "numpy": lambda: (lambda inputs: [inputs["x"] + 1], clears_its_arrays),
    }
    control, clearing = runs[runtime]()
    for given in (VALUE, np.asfortranarray(VALUE)):
        before = given.copy()
        assert np.array_equal(guarded(control)({"x": given})[0], before + 1)
        with pytest.raises(RoastError, match="writes over its input 'x'"):
            guarded(clearing)({"x": given})
        assert np.array_equal(given, before)


def test_an_input_that_is_turned_is_refused():
    with pytest.raises(RoastError, match="changes the shape of its input 'x'"):
        guarded(run_of(Turns))({"x": VALUE})


def test_control_a_file_may_write_what_its_model_writes():
    assert np.array_equal(guarded(run_of(Clears), Clears)({"x": VALUE})[0], VALUE + 1)
