"""ONNX files that share one data file beside them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from roast_export import ExportError, InputError, compress, export, verify
from roast_export.files import staging

PLAIN = ["onnxruntime portable"]
X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def layers(count):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(count)))


def array_of(path):
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return next(tensor for tensor in tensors if tensor.name == "roast_memory")


def test_two_files_of_one_model_share_its_array(tmp_path):
    model = compress(layers(3), 2)
    first = export(model, tmp_path / "a.onnx", example_inputs=(X,), data_file="m.data")
    size = (tmp_path / "m.data").stat().st_size
    second = export(model[:2], tmp_path / "b.onnx", example_inputs=(X,), data_file="m.data")
    assert first.passed
    assert second.passed
    memory = model[0].virtual["weight"].memory
    assert (tmp_path / "m.data").stat().st_size == size == memory.nbytes
    assert array_of(tmp_path / "a.onnx").external_data == array_of(tmp_path / "b.onnx").external_data
    assert first.file_bytes == (tmp_path / "a.onnx").stat().st_size + size
    assert (tmp_path / "a.onnx").stat().st_size < size
    for path, module in ((tmp_path / "a.onnx", model), (tmp_path / "b.onnx", model[:2])):
        session = onnxruntime.InferenceSession(path)
        [found] = session.run(None, {session.get_inputs()[0].name: X.numpy()})
        assert np.abs(found - module(X).detach().numpy()).max() < 1e-5
    # Control: with one element of the data changed, neither is the model's.
    values = np.fromfile(tmp_path / "m.data", np.float32)
    values[7] += 1
    values.tofile(tmp_path / "m.data")
    assert not verify(model, tmp_path / "a.onnx", example_inputs=(X,), runtimes=PLAIN).passed


def test_another_model_adds_its_array_and_leaves_the_first(tmp_path):
    one, other = compress(layers(2), 2), compress(layers(3), 2)
    export(one, tmp_path / "a.onnx", example_inputs=(X,), data_file="m.data", verify=False)
    before = (tmp_path / "m.data").read_bytes()
    export(other, tmp_path / "b.onnx", example_inputs=(X,), data_file="m.data", verify=False)
    assert (tmp_path / "m.data").read_bytes()[: len(before)] == before
    assert verify(one, tmp_path / "a.onnx", example_inputs=(X,), runtimes=PLAIN).passed
    assert verify(other, tmp_path / "b.onnx", example_inputs=(X,), runtimes=PLAIN).passed


@pytest.mark.parametrize("name", ["../m.data", "sub/m.data"])
def test_a_data_file_lies_beside(tmp_path, name):
    with pytest.raises(InputError, match="a name beside the file, not a path"):
        export(compress(layers(2), 2), tmp_path / "a.onnx", example_inputs=(X,), data_file=name)


def test_a_file_that_belongs_to_nobody_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.data").write_text("mine")

    def write(content):
        with staging(tmp_path / "out") as folder:
            (folder / "m.data").write_text("new")
            (folder / "a.onnx").write_text(content)

    with pytest.raises(ExportError, match="does not belong to"):
        write("reads m.data")
    assert (tmp_path / "out" / "m.data").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    # Control: once a model there names it, it is that model's, and both are replaced.
    (tmp_path / "out" / "a.onnx").write_text("reads m.data")
    write("reads m.data too")
    assert (tmp_path / "out" / "m.data").read_text() == "new"
