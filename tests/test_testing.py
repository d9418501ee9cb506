"""The assertion for other people's suites: silent where all is well, a readable report where it is not."""

import numpy as np
import onnx
import pytest
import torch
from models import SMALL_DYNAMIC, Small, small_inputs
from onnx import numpy_helper

import roast_export
from roast_export.errors import InputError
from roast_export.runtimes import library_refused
from roast_export.testing import assert_export_matches

PORTABLE, WEB = "onnxruntime portable", "onnxruntime-web node"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return roast_export.compress(Small().eval(), 8)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    """The same model as .onnx and as TorchScript."""
    folder, options = tmp_path_factory.mktemp("good"), {"dynamic_shapes": SMALL_DYNAMIC, "verify": False}
    paths = [folder / "s.onnx", folder / "s.ts"]
    for path, target in zip(paths, ("onnx", "torchscript"), strict=True):
        roast_export.export(model, path, to=target, example_inputs=small_inputs(), **options)
    return paths


def complaint(model, paths, **options):
    with pytest.raises(AssertionError) as caught:
        assert_export_matches(model, paths, example_inputs=small_inputs(), **options)
    return str(caught.value)


def changed(source, target, name, place, factor):
    proto = onnx.load(source)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[place] *= np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, target)
    return target


def test_what_matches_says_nothing(model, good, capsys):
    assert assert_export_matches(model, good, example_inputs=small_inputs(), require=[PORTABLE]) is None
    assert_export_matches(model, str(good[0]), example_inputs=small_inputs(), runtimes=[PORTABLE])
    assert capsys.readouterr().out == ""


def test_an_archive_brings_its_own_inputs(model, good, tmp_path):
    roast_export.save(model, tmp_path / "m.pt", small_inputs())
    assert_export_matches(roast_export.load(tmp_path / "m.pt"), good[0], runtimes=[PORTABLE])


def test_a_wrong_bias_names_layer_element_values_and_bound(model, good, tmp_path):
    text = complaint(model, [changed(good[0], tmp_path / "x.onnx", "first.bias", 3, 1.5), good[1]])
    assert text.startswith("FAILED: ")
    bias = float(model.first.bias.detach()[3])
    assert f"weight first.bias, stored values: [3] {bias:.9g} in PyTorch, " in text
    assert f"{np.float32(bias) * np.float32(1.5):.9g} here" in text
    assert "allowed equal bits" in text
    assert "first differing layer: first" in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("x.onnx", "s.ts"))]
    verdicts = {(row[0], row[-1]) for row in rows if row[-1] in ("pass", "FAIL")}
    assert ("x.onnx", "FAIL") in verdicts
    assert {v for name, v in verdicts if name == "s.ts"} == {"pass"}


def test_a_wrong_array_names_slot_and_seed(model, good, tmp_path):
    text = complaint(model, changed(good[0], tmp_path / "x.onnx", "roast_memory", 100, 1 + 2**-20))
    assert ".memory[100] * " in text
    assert "from hash1 (p=" in text


def test_the_bound_can_be_set(model, good):
    text = complaint(model, good[0], atol=0.0, rtol=1e-12)
    assert "scores" in text
    assert "allowed" in text


def test_a_required_runtime_that_is_missing(model, good, monkeypatch, tmp_path):
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path))
    text = complaint(model, good, require=[WEB])
    assert WEB in text
    assert "missing" in text or "no node" in text
    # The control: as long as nobody requires it, it is not spoken of.
    assert_export_matches(model, good[0], example_inputs=small_inputs(), runtimes=[PORTABLE])


def test_a_required_runtime_that_takes_none_of_the_files(model, good):
    text = complaint(model, good[1], require=[PORTABLE])
    assert f"no file ran in {PORTABLE}, which is required" in text


def test_nothing_verified_is_a_failure(model, good, monkeypatch, tmp_path):
    assert "NOT VERIFIED" in complaint(model, [])
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path))
    text = complaint(model, good[0], runtimes=[WEB])
    assert f"not used for {good[0]}: {WEB}: " in text


def test_a_library_that_is_refused_is_a_failure_and_a_missing_one_is_not(model, good, monkeypatch, tmp_path):
    monkeypatch.setenv("ROAST_ORT_LIBRARY", str(tmp_path / "nowhere.so"))
    assert_export_matches(model, good[0], example_inputs=small_inputs())
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv("ROAST_ORT_LIBRARY", str(tmp_path / "text.so"))
    text = complaint(model, good[0])
    assert "onnxruntime native" in text
    assert "text.so" in text
    assert library_refused() is not None


def test_a_name_that_no_runtime_has(model, good):
    for options in ({"require": ["tensorrt"]}, {"runtimes": ["tensorrt"]}):
        with pytest.raises(InputError, match="no runtime is called 'tensorrt'"):
            assert_export_matches(model, good[0], example_inputs=small_inputs(), **options)
