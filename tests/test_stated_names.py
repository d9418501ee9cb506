"""Inputs and outputs of a file have the model's names, in its order: a file with others is refused."""

import json

import onnx
import pytest
import torch
from models import SMALL_DYNAMIC, Small, small_inputs
from torch import nn
from torch_files import note_text, rewrite, with_note

import roast_export
from roast_export.note import NOTE


class TwoMasks(nn.Module):
    """Two inputs and two outputs of one kind: a swap of their names changes no shape."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 64)
        self.last = nn.Linear(64, 32)

    def forward(self, ids, mask):
        hidden = self.last(torch.relu(self.inner(ids.float())))
        return {"logits": hidden * mask, "hidden": hidden + mask}


def two_inputs():
    torch.manual_seed(1)
    return torch.randint(0, 9, (2, 32)), torch.randint(0, 2, (2, 32))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return roast_export.compress(TwoMasks().eval(), 8)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    files = {}
    for to in ("onnx", "torchscript", "lite", "pt2"):
        files[to] = folder / f"good.{to}"
        roast_export.export(model, files[to], to=to, example_inputs=two_inputs(), verify=False)
    return files


def failures(model, path):
    report = roast_export.verify(model, path, example_inputs=two_inputs())
    return {check.name for check in report.failures}


@pytest.mark.parametrize("to", ["onnx", "torchscript", "lite", "pt2"])
def test_control_the_files_as_they_are_written_pass(model, good, to):
    assert failures(model, good[to]) == set()


def swap_names(proto, names):
    first, second = names
    other = {first: second, second: first}
    for node in proto.graph.node:
        for values in (node.input, node.output):
            values[:] = [other.get(value, value) for value in values]
    for value in [*proto.graph.input, *proto.graph.output]:
        value.name = other.get(value.name, value.name)


@pytest.mark.parametrize(
    ("names", "rule"), [(("logits", "hidden"), "output names"), (("ids", "mask"), "input names")]
)
def test_swapped_names_in_an_onnx_file(model, good, tmp_path, names, rule):
    proto = onnx.load(good["onnx"])
    swap_names(proto, names)
    onnx.save(proto, tmp_path / "x.onnx")
    assert rule in failures(model, tmp_path / "x.onnx")


@pytest.mark.parametrize("to", ["torchscript", "lite", "pt2"])
@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_another_order_in_the_note(model, good, tmp_path, to, field):
    stated = json.loads(note_text(good[to]))[field]
    other = dict(reversed(stated.items())) if isinstance(stated, dict) else stated[::-1]
    path = with_note(good[to], tmp_path / "x", **{field: other})
    assert f"{field[:-1]} names" in failures(model, path)


def test_another_dtype_in_the_note(model, good, tmp_path):
    stated = json.loads(note_text(good["torchscript"]))["inputs"]
    path = with_note(good["torchscript"], tmp_path / "x.ts", inputs=stated | {"mask": ["int32", [2, 32]]})
    assert "input names" in failures(model, path)


SCRIPTS = {
    "the arguments in another order": ("ids: Tensor,\n    mask: Tensor)", "mask: Tensor,\n    ids: Tensor)"),
    "the outputs under each other's keys": ("logits", "hidden"),
}


@pytest.mark.parametrize("note", ["right", "with the same change"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_names_them_otherwise(model, good, tmp_path, name, note):
    first, second = SCRIPTS[name]

    def change(member, content):
        if member == f"extra/{NOTE}" and note != "right":
            stated = json.loads(content)
            stated["inputs"] = (
                dict(reversed(stated["inputs"].items())) if "arguments" in name else stated["inputs"]
            )
            stated["outputs"] = stated["outputs"][::-1] if "outputs" in name else stated["outputs"]
            return json.dumps(stated).encode()
        # torch may add something to the name of the member.
        if not (member.endswith(".py") and first in content.decode()):
            return content
        text = content.decode()
        return text.replace(first, "#").replace(second, first).replace("#", second).encode()

    assert failures(model, rewrite(good["torchscript"], tmp_path / "x.ts", change))


def test_a_script_whose_arguments_have_each_others_names(model, good, tmp_path):
    """By position it computes what the model does; by name it does not."""

    def change(member, content):
        if not (member.endswith(".py") and "ids" in content.decode()):
            return content
        text = content.decode()
        return text.replace("ids", "#").replace("mask", "ids").replace("#", "mask").encode()

    path = rewrite(good["torchscript"], tmp_path / "x.ts", change)
    assert failures(model, path) == {"arguments of forward"}


def test_an_example_by_name_in_another_order_passes(tmp_path):
    torch.manual_seed(0)
    model = roast_export.compress(Small().eval(), 8)
    inputs = small_inputs()
    inputs = inputs if isinstance(inputs, dict) else dict(zip(("ids", "extra"), inputs, strict=True))
    other = dict(reversed(inputs.items()))
    for to in ("onnx", "torchscript", "pt2"):
        path = tmp_path / to
        roast_export.export(
            model, path, to=to, example_inputs=inputs, dynamic_shapes=SMALL_DYNAMIC, verify=False
        )
        assert roast_export.verify(model, path, example_inputs=other).passed
