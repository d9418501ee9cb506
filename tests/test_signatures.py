"""Any signature, from `save` over the command line to a file that computes what the module computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import roast_export
from roast_export.calls import plain
from roast_export.cli import export_command
from roast_export.errors import InputError
from roast_export.open_file import open_artifact
from tests.signatures import SIGNATURES, Batch, Call

SUFFIX = {"onnx": ".onnx", "ort": ".ort", "torchscript": ".ts", "pt2": ".pt2"}
OTHERS = {
    "torchscript": ["tuples", "nested", "same", "bfloat16"],
    "pt2": ["constants", "keys", "kinds", "containers"],
    "ort": ["stars", "float16"],
}
"""A third goes into other formats too."""

ALL = [("onnx", name) for name in SIGNATURES if name != "bfloat16"] + [
    (to, name) for to, names in OTHERS.items() for name in names
]


pytestmark = pytest.mark.usefixtures("nothing_is_measured")


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Callable[[str], tuple[nn.Module, Path]]:
    """The compressed model and its archive, once for each signature."""
    made: dict[str, tuple[nn.Module, Path]] = {}
    folder = tmp_path_factory.mktemp("archives")

    def archive(name: str) -> tuple[nn.Module, Path]:
        if name not in made:
            torch.manual_seed(0)
            make, call, _ = SIGNATURES[name]
            model = roast_export.compress(make().eval(), 4)
            roast_export.save(model, folder / f"{name}.pt", example(model, call(0)))
            made[name] = model, folder / f"{name}.pt"
        return made[name]

    return archive


def example(model: nn.Module, call: Call) -> Any:
    """As save takes it: in order, or by name."""
    args, kwargs = call
    parameters = list(inspect.signature(model.forward).parameters.values())
    if not kwargs:
        return args
    if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return {parameters[0].name: args, **kwargs}
    return {p.name: value for p, value in zip(parameters, args, strict=False)} | kwargs


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a structure, in order."""
    if isinstance(value, Batch):
        value = [value.x, value.more]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple) or hasattr(value, "popleft"):
        return [found for item in value for found in tensors(item)]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def array(value: Tensor) -> np.ndarray:
    value = value.detach()
    return value.view(torch.int16).numpy() if value.dtype is torch.bfloat16 else value.numpy()


def run(path: Path, to: str, feeds: dict[str, Tensor]) -> list[np.ndarray]:
    """The outputs of a file in the runtime that it is for; .onnx without the operator library."""
    if to in ("onnx", "ort"):
        options = onnxruntime.SessionOptions()
        if to == "ort":
            options.register_custom_ops_library(str(roast_export.ort_library_path()))
        session = onnxruntime.InferenceSession(path, options)
        given = {i.name: array(feeds[i.name]) for i in session.get_inputs()}
        return session.run(None, given)
    with torch.no_grad():
        if to == "torchscript":
            torch.ops.load_library(str(roast_export.torch_library_path()))
            found = torch.jit.load(path)(*feeds.values())
        else:
            program = torch.export.load(path)
            args, kwargs = pytree.tree_unflatten([*feeds.values()], program.call_spec.in_spec)
            found = program.module()(*args, **kwargs)
    return [array(value) for value in tensors(found)]


@pytest.mark.parametrize(("to", "name"), ALL, ids=[f"{name}-{to}" for to, name in ALL])
def test_a_signature_becomes_named_tensors(to, name, archives, tmp_path, capsys):
    model, saved = archives(name)
    _, call, names = SIGNATURES[name]
    path = tmp_path / f"file{SUFFIX[to]}"
    with pytest.raises(SystemExit) as done:
        export_command.main([str(saved), "--to", to, "-o", str(path)])
    assert done.value.code == 0, capsys.readouterr().err
    assert list(open_artifact(path, trust=True).inputs) == names
    args, kwargs = call(11)
    with torch.no_grad():
        expected = [array(value) for value in tensors(model(*args, **kwargs))]
        before = [array(value) for value in tensors(model(*call(0)[0], **call(0)[1]))]
    feeds = dict(zip(names, [v.contiguous() for v in tensors([args, kwargs])], strict=True))
    found = run(path, to, feeds)
    assert len(found) == len(expected)
    for want, got, other in zip(expected, found, before, strict=True):
        bound = 2e-2 if want.dtype == np.float16 else 300 if want.dtype == np.int16 else 1e-4
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=bound)
        constant = name == "same" and want.shape == (64,)
        assert constant or not np.allclose(got, other, atol=bound), "the control: another example"


def test_a_model_of_bfloat16_is_refused_where_onnxruntime_cannot_compute_it(archives, tmp_path, capsys):
    path = tmp_path / "file.onnx"
    with pytest.raises(SystemExit) as done:
        export_command.main([str(archives("bfloat16")[1]), "-o", str(path)])
    assert done.value.code == 1
    assert "in bfloat16, and ONNX Runtime does not on a CPU; export or save model.float()" in (
        capsys.readouterr().err
    )
    assert not path.exists()


def test_arguments_by_position_alone_may_be_given_by_name():
    model = SIGNATURES["kinds"][0]().eval()
    (x, gain), rest = SIGNATURES["kinds"][1](3)
    plain_model, found = plain(model, {"roast_memory": gain, "input": x, **rest})
    assert list(found) == SIGNATURES["kinds"][2]
    with torch.no_grad():
        assert torch.equal(plain_model(*found.values()), model(x, gain, **rest))
    with pytest.raises(InputError, match="does not run on these inputs"):
        plain(model, {"roast_memory": gain, **rest})
