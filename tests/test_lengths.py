"""Dynamic dimensions: which lengths are tried, and that one which no case varies is a failure."""

from __future__ import annotations

import logging

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from roast_export import cli, compress, export, load, save, verify
from roast_export.errors import InputError, VerificationError
from roast_export.lengths import WANTED, Dimensions
from roast_export.program import flat_inputs


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return compress(kind(), 4, min_params=512).eval()


class Past(Layer):
    """The mask is as long as past and new tokens together."""

    def forward(self, x, past, mask):
        whole = torch.cat([past, self.a(x)], 1)
        return whole * mask[..., None]


class Patches(Layer):
    """The length is a multiple of 4."""

    def forward(self, x):
        batch, length, _ = x.shape
        return self.a(x).reshape(batch, length // 4, 4 * 32)


class Window(Layer):
    """The length is 9 at least."""

    def forward(self, x):
        return self.a(x).unfold(1, 9, 2)


class Tied(Layer):
    """Both lengths are one."""

    def forward(self, x, mask):
        return self.a(x) * mask[..., None]


class Attending(Layer):
    """Keys and values of a cache, which torch's fused attention takes at different lengths too."""

    def forward(self, x, past_key, past_value):
        x = self.a(x)
        key, value = torch.cat([past_key, x], 1), torch.cat([past_value, x], 1)
        heads = (tensor.unsqueeze(1) for tensor in (x, key, value))
        return nn.functional.scaled_dot_product_attention(*heads)


LENGTHS = {
    Attending: (torch.randn(2, 1, 32), torch.randn(2, 4, 32), torch.randn(2, 4, 32)),
    Past: (torch.randn(2, 4, 32), torch.randn(2, 3, 32), torch.ones(2, 7)),
    Patches: (torch.randn(2, 8, 32),),
    Window: (torch.randn(2, 12, 32),),
    Tied: (torch.randn(2, 6, 32), torch.ones(2, 6)),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_a_model_is_proved_at_lengths_that_its_shapes_allow(kind, tmp_path):
    save(made(kind), tmp_path / "m.pt", LENGTHS[kind])
    loaded = load(tmp_path / "m.pt")
    report = export(loaded, tmp_path / "m.onnx")
    assert report.passed
    assert not any("fewer than" in warning for warning in report.warnings)
    example = flat_inputs(loaded.program, loaded.program.example_inputs[0])
    ran = []
    Dimensions(loaded.program, example).vary(lambda name, shapes: ran.append(shapes) or True)
    for name, value in example.items():
        if value.shape[1] == 1:
            continue
        seen = {shapes[name][1] for shapes in ran} - {value.shape[1]}
        assert len(seen) >= WANTED, name
        assert len({shapes[name][0] for shapes in ran} - {value.shape[0]}) >= WANTED


def shapes_tried(kind, tmp_path):
    save(made(kind), tmp_path / "m.pt", LENGTHS[kind])
    goldens = load(tmp_path / "m.pt").goldens
    return [{name: tuple(value.shape) for name, value in one.inputs.items()} for one in goldens]


def test_the_lengths_tried_keep_the_relations_of_the_model(tmp_path):
    for shapes in shapes_tried(Past, tmp_path):
        assert shapes["mask"][1] == shapes["x"][1] + shapes["past"][1]
    assert all(shapes["x"][1] % 4 == 0 for shapes in shapes_tried(Patches, tmp_path))
    assert all(shapes["x"][1] >= 9 for shapes in shapes_tried(Window, tmp_path))


def test_keys_and_values_have_one_length(tmp_path):
    for shapes in shapes_tried(Attending, tmp_path):
        assert shapes["past_key"] == shapes["past_value"]
    dynamic = {"past_key": {1: "keys"}, "past_value": {1: "values"}}
    save(made(Attending), tmp_path / "apart.pt", LENGTHS[Attending], dynamic_shapes=dynamic)
    goldens = load(tmp_path / "apart.pt").goldens
    assert len({one.inputs["past_key"].shape for one in goldens}) > WANTED
    assert all(one.inputs["past_key"].shape == one.inputs["past_value"].shape for one in goldens)


class OneLength(Layer):
    """Its shapes allow any batch, and it runs at one: what a trace cannot know."""

    def forward(self, x):
        if not torch.compiler.is_exporting() and x.shape[0] != 4:
            raise ValueError("four rows, please")
        return self.a(x)


FOUR = (torch.randn(4, 32),)
BATCH = {"x": {0: "batch"}}


def test_a_dimension_that_no_case_varies_is_a_failure(tmp_path):
    model = made(OneLength)
    with pytest.raises(VerificationError, match=r"batch \(axis 0 of x\) is called dynamic.*--allow-unproved"):
        export(model, tmp_path / "m.onnx", example_inputs=FOUR, dynamic_shapes=BATCH)
    assert not list(tmp_path.iterdir())
    report = export(
        model, tmp_path / "m.onnx", example_inputs=FOUR, dynamic_shapes=BATCH, allow_unproved=True
    )
    assert report.passed
    assert any("Not proved at any other length: batch" in warning for warning in report.warnings)
    assert not verify(model, tmp_path / "m.onnx", example_inputs=FOUR).passed
    assert verify(model, tmp_path / "m.onnx", example_inputs=FOUR, allow_unproved=True).passed


def test_control_a_fixed_length_needs_no_other(tmp_path):
    assert export(made(OneLength), tmp_path / "m.onnx", example_inputs=FOUR).passed


def test_the_commands_exit_with_2_unless_the_option_is_given(tmp_path):
    save(made(OneLength), tmp_path / "m.pt", FOUR, dynamic_shapes=BATCH, allow_unproved=True)
    torch.save(made(OneLength), tmp_path / "live.pt")
    runner, example = CliRunner(), ["--trust", "--input", "x:float32[4,32]"]
    asked = [str(tmp_path / "live.pt"), "-o", str(tmp_path / "m.onnx"), "--dynamic", "x:0=batch", *example]
    refused = runner.invoke(cli.export_command, asked)
    assert refused.exit_code == 2
    assert "batch (axis 0 of x)" in refused.output
    assert not (tmp_path / "m.onnx").exists()
    assert runner.invoke(cli.export_command, [*asked, "--allow-unproved"]).exit_code == 0
    proof = [str(tmp_path / "live.pt"), str(tmp_path / "m.onnx"), *example]
    assert runner.invoke(cli.verify_command, proof).exit_code == 2
    assert runner.invoke(cli.verify_command, [*proof, "--allow-unproved"]).exit_code == 0


def dynamic_axes(path) -> dict[str, list[int]]:
    program = load(path).program
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return {
        name: [axis for axis, n in enumerate(nodes[name].shape) if not isinstance(n, int)]
        for name in program.graph_signature.user_inputs
    }


def test_save_fixes_what_it_cannot_vary_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="roast_export"):
        save(made(OneLength), tmp_path / "m.pt", FOUR)
    assert "fixed at the example's lengths" in caplog.text
    assert dynamic_axes(tmp_path / "m.pt") == {"x": []}


def test_save_makes_dynamic_what_it_is_told(tmp_path):
    model, inputs = made(Tied), LENGTHS[Tied]
    save(model, tmp_path / "all.pt", inputs)
    save(model, tmp_path / "one.pt", inputs, dynamic_shapes={"x": {0: "batch"}, "mask": {0: "batch"}})
    save(model, tmp_path / "none.pt", inputs, dynamic_shapes={})
    assert dynamic_axes(tmp_path / "all.pt") == {"x": [0, 1], "mask": [0, 1]}
    assert dynamic_axes(tmp_path / "one.pt") == {"x": [0], "mask": [0]}
    assert dynamic_axes(tmp_path / "none.pt") == {"x": [], "mask": []}
    with pytest.raises(InputError, match="the model runs at no other length"):
        save(made(OneLength), tmp_path / "m.pt", FOUR, dynamic_shapes=BATCH)


class Disliking(Layer):
    """torch.export cannot trace its second dimension as dynamic."""

    def forward(self, x):
        if torch.compiler.is_exporting() and not isinstance(x.shape[1], int):
            raise RuntimeError("a symbolic length")
        return self.a(x)


def test_a_model_that_dislikes_some_dimensions_is_saved_with_fewer(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="roast_export"):
        save(made(Disliking), tmp_path / "m.pt", (torch.randn(2, 5, 32),))
    assert "only the first dimension of each input is dynamic" in caplog.text
    assert dynamic_axes(tmp_path / "m.pt") == {"x": [0]}


class Placed(Layer):
    """A table says something of each of 24 places; nothing longer can be looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.randn(24, 32), persistent=False)

    def forward(self, x):
        return self.a(x) + self.places[: x.shape[1]]


@pytest.mark.parametrize(("kind", "longest"), [(Placed, 24), (Tied, 12)])
def test_a_dimension_is_run_beyond_the_example(kind, longest, tmp_path):
    """Up to its bound, where a file may hold what only the longest input reads; else at twice the example."""
    inputs = (torch.randn(2, 6, 32), torch.ones(2, 6))[: 1 if kind is Placed else 2]
    save(made(kind), tmp_path / "m.pt", inputs)
    model = load(tmp_path / "m.pt")
    example = flat_inputs(model.program, inputs)
    tried = []
    Dimensions(model.program, example).lengthen(lambda name, shapes: not tried.append((name, shapes)))
    (name, shapes) = tried[-1]
    assert name.startswith("long ")
    assert {shape[1] for shape in shapes.values()} == {longest}
