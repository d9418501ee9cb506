"""Ten architectures of the zoo, and controls: its comparison and its verdicts must be able to fail.

`make zoo` runs all of them, in more forms.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.zoo.__main__ import enough
from tests.zoo.architecture import Draw, architectures
from tests.zoo.compare import all_differences, bounds, call, difference, leaves
from tests.zoo.document import page
from tests.zoo.rows import (
    BUG,
    FEW,
    PASSED,
    REFUSED,
    SHAPES,
    TOLD,
    UNHELPFUL,
    WRONG,
    Form,
    Row,
    _compared,
    _fixed,
    _refusal,
    context,
    run_row,
)
from tests.zoo.steps import _blind

TEN = (
    "siamese",
    "two_tower",
    "wavenet",
    "dlrm",
    "gcn",
    "cached_decoder",
    "lstm_cells",
    "soft_mixture",
    "diffusion_unet",
    "mobilenet_v3",
)


@pytest.fixture(scope="module")
def starter():
    return context()


@pytest.mark.parametrize("name", TEN)
def test_an_architecture_passes(starter, name):
    row = run_row(replace(architectures()[name], forms=("onnx",)), starter)
    assert row.verdict == PASSED, row
    assert row.forms["onnx"].held >= SHAPES, row


def test_control_a_wrong_file_is_seen(starter, tmp_path):
    entry = replace(architectures()["highway"], forms=("onnx",))
    assert run_row(entry, starter, tmp_path).verdict == PASSED
    right = onnx.load(tmp_path / "model.onnx")
    for spoil in (spoil_one_bias, spoil_the_array, spoil_an_activation):
        model = onnx.ModelProto()
        model.CopyFrom(right)
        spoil(model.graph)
        onnx.save(model, tmp_path / "model.onnx")
        form = _compared(entry, starter, "onnx", tmp_path)
        assert form.verdict == WRONG, spoil
        assert "off by" in form.message


def spoil_one_bias(graph: onnx.GraphProto) -> None:
    change(graph, "bias", lambda values: values[:1] + 1e-3)


def spoil_the_array(graph: onnx.GraphProto) -> None:
    change(graph, "roast_memory", lambda values: values[: len(values) // 8] * 1.001)


def spoil_an_activation(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Softplus"


def change(graph: onnx.GraphProto, name: str, of: Callable[[np.ndarray], np.ndarray]) -> None:
    """Put other values at the front of the first tensor whose name ends so."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name.endswith(name))
    values = numpy_helper.to_array(tensor).copy()
    changed = of(values)
    values[: len(changed)] = changed
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_control_differences_of_every_kind_are_seen():
    right = np.array([1.0, 2.0, np.nan], np.float32)
    assert difference(right, right.copy(), 0.0) is None
    assert "off by" in difference(right, right + np.float32(0.01), 1e-3)
    assert "NaN" in difference(right, np.zeros(3, np.float32), 1e9)
    assert "shape" in difference(right, right[:2], 1e9)
    assert "int64" in difference(right, np.zeros(3, np.int64), 1e9)
    assert "1 of 2" in difference(np.array([1, 2]), np.array([1, 3]), 1e9)
    assert all_differences([right], [], []) == ["0 outputs instead of 1"]


def test_the_bound_follows_the_size_of_an_output():
    model, x = nn.Linear(64, 64), (torch.randn(2, 64),)
    large = bounds(model, x, call(model, x))[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1e-6
    assert 0 < bounds(model, x, call(model, x))[0] < 1e-5 * large


def test_control_outputs_that_do_not_move_prove_nothing():
    same = [torch.ones(4)]
    assert _blind(same, same, [1e-6])
    assert not _blind(same, [torch.zeros(4)], [1e-6])


def test_control_a_refusal_must_help():
    entry = architectures()["highway"]
    assert _refusal("x is on cuda; move it with model.cpu()", entry).verdict == REFUSED
    assert _refusal("RuntimeError: expected scalar type Float", entry).verdict == UNHELPFUL
    assert _refusal("it does not work", entry).verdict == UNHELPFUL
    assert _refusal("list index out of range", entry, bug=True).verdict == BUG
    assert Form(PASSED).verdict == PASSED


def test_outputs_are_flattened_in_order():
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert [float(leaf) for leaf in leaves({"x": (a, None, [b]), "y": 3, "z": c})] == [0.0, 1.0, 2.0]


def test_every_architecture_is_tried_at_three_shapes():
    """Or at three batches, and then it says why."""
    for name, entry in architectures().items():
        tensors = [leaves_of(entry.inputs(Draw(0), *size)) for size in entry.sizes]
        assert len({tuple(tuple(tensor.shape) for tensor in given) for given in tensors}) >= SHAPES, name
        assert (len({length for _, length in entry.sizes}) > 1) == (entry.fixed is None), name


def leaves_of(inputs: object) -> list[torch.Tensor]:
    return leaves(list(inputs.values()) if isinstance(inputs, dict) else inputs)


def test_control_a_file_of_one_length_is_no_pass():
    fixed = ["case 1: ids:1 is fixed at 8", "case 2: ids:1 is fixed at 8"]
    assert _fixed(fixed, 1, "warning: ids:1 is fixed at 8: forward loops; ...").verdict == TOLD
    assert _fixed(fixed, 1, "  input ids: int64[ids_0, 8]").verdict == FEW
    assert _fixed(fixed, 1, "warning: other:1 is fixed at 8: forward loops; ...").verdict == FEW
    assert _fixed([], 2, "warning: ids:1 is fixed at 8").verdict == FEW


def test_control_the_zoo_fails_below_its_share():
    def rows(*verdicts: str) -> list[Row]:
        return [Row(str(k), "text", forms={"onnx": Form(verdict)}) for k, verdict in enumerate(verdicts)]

    most = [PASSED] * 38
    assert enough(rows(*most, PASSED, REFUSED))
    assert not enough(rows(*most, PASSED, UNHELPFUL))
    assert not enough(rows(*most, PASSED, WRONG))
    assert not enough(rows(*most, PASSED, FEW))
    assert not enough(rows(*most, REFUSED, TOLD, REFUSED))


def test_the_page_says_what_passed_and_what_was_said_of_the_rest():
    good = Row("one", "text", 1000, 250, forms={"onnx": Form(PASSED, held=3), "pt2": Form(PASSED, held=3)})
    batches = Row("two", "vision", 10, 10, fixed="a reason", forms={"onnx": Form(PASSED, held=3)})
    bad = Row("three", "text", forms={"save": Form(REFUSED, "a | b; give c")})
    text = page([Row.from_json(json.loads(json.dumps(row.to_json()))) for row in (good, batches, bad)])
    assert "**2 of 3 passed.**" in text
    assert "| `one` | text | 1,000 | 4.0x | onnx, pt2 | 3 |" in text
    assert "| `two` | vision | 10 | 1.0x | onnx | 3 batches |" in text
    assert "- A reason: `two`." in text
    assert "| `three` | text | save | refused | a \\| b; give c |" in text
