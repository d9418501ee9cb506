"""Layers in blocks, branches and loops, layers called several times, and layers on which nothing depends."""

import onnx
import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan

import roast_export
from roast_export import onnx_ops
from roast_export.prepare_program import canonical, unused_layers
from roast_export.program import layers_of, quiet
from roast_export.subgraphs import has_autocast, parts_of
from roast_export.trace import trace


class Two(nn.Module):
    """Two layers, a and b; how they are called is each subclass's own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)


class Gradients(Two):
    def forward(self, x):
        with torch.enable_grad():
            y = self.a(x)
        return self.b(y)


class AutocastOff(Two):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.a(x)
        return self.b(y)


class AutocastOn(Two):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.a(x)
            with torch.autocast("cpu", enabled=False):
                z = self.b(x)
        return y.float() + z


class Branches(Two):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x) + 1, (x,))


class While(Two):
    def forward(self, x):
        def step(i, y):
            return i + 1, torch.tanh(self.a(y))

        return self.b(torch.while_loop(lambda i, y: i < 3, step, (x.sum() * 0, x))[1])


class Scan(Two):
    def forward(self, x):
        def step(h, v):
            h = torch.tanh(self.a(v) + self.b(h))
            return h, h.clone()

        return scan(step, x[0], x)[1]


class Steps(nn.Module):
    """A recurrent cell over three steps, and a layer that is called twice."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.a = cell(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        state = (x, x * 2) if isinstance(self.cell, nn.LSTMCell) else x
        for _ in range(3):
            state = self.cell(x, state)
        return self.a(self.a(state[0] if isinstance(state, tuple) else state))


class Unused(Two):
    """b is called as a pooler whose result nobody takes; c is called for nothing in a branch."""

    def __init__(self):
        super().__init__()
        self.c = nn.Linear(64, 64)

    def forward(self, x):
        self.b(x)
        return torch.cond(x.sum() > 0, lambda x: (self.c(x), self.a(x))[1], lambda x: x + 1, (x,))


class Everything(nn.Module):
    """Every one of them, behind one another, with a branch inside a block."""

    def __init__(self):
        super().__init__()
        kinds = {"block": Gradients, "off": AutocastOff, "branch": Branches, "loop": While, "scan": Scan}
        self.parts = nn.ModuleDict({name: kind() for name, kind in kinds.items()})
        self.steps, self.lstm = Steps(nn.GRUCell), Steps(nn.LSTMCell)

    def forward(self, x):
        for part in self.parts.values():
            with torch.autocast("cpu", enabled=False):
                x = torch.tanh(part(x))
        return self.lstm(self.steps(x))


def compressed(model):
    torch.manual_seed(0)
    return roast_export.compress(model.eval(), 4, min_params=512), torch.randn(2, 64)


@pytest.mark.parametrize("kind", [Gradients, AutocastOff, AutocastOn, Branches, While, Scan])
def test_every_layer_is_found_by_its_name(kind, tmp_path):
    model, x = compressed(kind())
    program = trace(model, (x,))
    assert {layer.name for layer in layers_of(program)} == {"a.weight", "b.weight"}
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)
    roast_export.save(model, tmp_path / "m.pt", (x,))
    opened = roast_export.load(tmp_path / "m.pt")
    assert {layer.name for layer in layers_of(opened.program)} == {"a.weight", "b.weight"}


@pytest.mark.parametrize("to", ["onnx", "ort", "pt2"])
def test_every_kind_is_exported_and_proved(to, tmp_path):
    model, x = compressed(Everything())
    report = roast_export.export(model, tmp_path / f"m.{to}", to=to, example_inputs=(x,))
    names = set(roast_export.modules.virtual_weights(model))
    assert report.passed
    assert not unused_layers(trace(model, (x,)))
    proved = {check.name.partition("#")[0] for check in report.checks if check.kind == "weight"}
    assert names <= proved
    if to == "onnx":
        nodes = onnx_ops.layers_in(onnx.load(tmp_path / "m.onnx").graph)
        assert len({node.name for node in nodes}) == len(nodes)


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    model, x = compressed(Branches())
    path = tmp_path_factory.mktemp("branches") / "m.onnx"
    roast_export.export(model, path, example_inputs=(x,), verify=False)
    return model, x, path


def test_a_weight_changed_in_a_branch_is_refused(branches, tmp_path):
    model, x, path = branches
    proto = onnx.load(path)
    node = onnx_ops.layers_in(proto.graph)[-1]
    assert node not in list(proto.graph.node)
    next(attribute for attribute in node.attribute if attribute.name == "hash1").ints[4] += 1
    onnx.save(proto, tmp_path / "m.onnx")
    report = roast_export.verify(model, tmp_path / "m.onnx", example_inputs=(x,))
    assert any(check.kind == "weight" for check in report.failures)


def test_a_dense_weight_hidden_in_a_branch_is_refused(branches, tmp_path):
    model, x, path = branches
    proto = onnx.load(path)
    layer = layers_of(trace(model, (x,)))[0]
    dense = roast_export.torch_ops.gather(layer.memory, layer.mapping.to_list(), layer.scale)
    value = onnx.numpy_helper.from_array(dense.numpy())
    hidden = onnx.helper.make_node("Constant", [], ["hidden"], value=value)
    list(onnx_ops.graphs_of(proto.graph))[-1].node.insert(0, hidden)
    onnx.save(proto, tmp_path / "m.onnx")
    report = roast_export.verify(model, tmp_path / "m.onnx", example_inputs=(x,))
    assert any("expanded" in check.note for check in report.failures)


def test_a_block_where_autocast_is_on_keeps_its_casts():
    model, x = compressed(AutocastOn())
    with quiet(), torch.no_grad():
        plain = torch.export.export(model, (x,))
    assert has_autocast(plain)
    program = canonical(plain)
    assert not has_autocast(program)
    assert len(list(parts_of(program))) == 1
    assert sorted(layer.name for layer in layers_of(program)) == ["a.weight", "b.weight"]
    with torch.no_grad():
        assert torch.equal(model(x), program.module()(x))
        # Control: without the casts the result is another.
        assert not torch.equal(model(x), model.a(x) + model.b(x))


@pytest.mark.parametrize("archive", [False, True])
def test_a_layer_on_which_nothing_depends_is_left_out_and_said_so(archive, tmp_path):
    model, x = compressed(Unused())
    inputs = (x,)
    if archive:
        roast_export.save(model, tmp_path / "m.pt", inputs)
        model, inputs = roast_export.load(tmp_path / "m.pt"), None
    report = roast_export.export(model, tmp_path / "m.onnx", example_inputs=inputs)
    assert report.passed
    assert [layer.name for layer in report.layers] == ["a.weight"]
    assert any("b.weight, c.weight" in warning for warning in report.warnings)
