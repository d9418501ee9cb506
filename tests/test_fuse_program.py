"""linear(x, gather(array), bias) becomes roast::linear, and nothing else does."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import roast_export
from roast_export import torch_ops
from roast_export.fuse_program import fuse_program
from roast_export.modules import virtual_weights
from roast_export.program import LoadedProgram, layers_of, quiet
from roast_export.trace import trace

GATHER, FUSED = torch.ops.roast.gather.default, torch.ops.roast.linear.default


class ByHand(nn.Module):
    """A product written by hand over a weight that is read like any parameter."""

    def __init__(self, bias=True, twice=False, turned=False):
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=bias)
        self.twice, self.turned = twice, turned

    def forward(self, x):
        weight = self.layer.weight
        y = linear(x, weight.t() if self.turned else weight, self.layer.bias)
        return y + weight.sum() if self.twice else y


def traced(model):
    """As torch.export leaves it, before anything is fused; the model compressed, and its inputs."""
    torch.manual_seed(0)
    small = roast_export.compress(model.eval(), 4)
    x = torch.randn(2, 3, 64)
    with quiet(), torch.no_grad():
        return torch.export.export(small, (x,)), small, x


def count(program, target):
    return sum(node.target is target for node in program.graph.nodes)


@pytest.mark.parametrize("bias", [False, True])
def test_case_1_a_weight_that_only_feeds_a_product(bias):
    program, small, x = traced(ByHand(bias))
    assert (count(program, GATHER), count(program, FUSED)) == (1, 0)
    assert fuse_program(program) == 1
    assert (count(program, GATHER), count(program, FUSED)) == (0, 1)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), small(x), atol=2e-5, rtol=1e-5)
    (layer,) = layers_of(program)
    assert (layer.name, layer.kind) == ("layer.weight", "linear")
    assert layer.mapping == virtual_weights(small)["layer.weight"].mapping


def test_another_reader_keeps_the_weight():
    program, small, x = traced(ByHand(twice=True))
    assert fuse_program(program) == 1
    assert (count(program, GATHER), count(program, FUSED)) == (1, 1)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), small(x), atol=2e-4, rtol=1e-5)


def test_a_turned_weight_is_left_alone():
    program, *_ = traced(ByHand(turned=True))
    assert fuse_program(program) == 0
    assert (count(program, GATHER), count(program, FUSED)) == (1, 0)


def test_layers_of_ours_are_fused_from_the_start():
    program, *_ = traced(nn.Sequential(nn.Linear(64, 64)))
    assert (count(program, GATHER), count(program, FUSED)) == (0, 1)
    assert fuse_program(program) == 0


def test_fusing_again_changes_nothing():
    program, *_ = traced(ByHand())
    fuse_program(program)
    before = str(program.graph)
    assert fuse_program(program) == 0
    assert str(program.graph) == before


def test_a_fused_program_is_saved_and_traced_anew(tmp_path):
    """The output was renamed with its node: signature and graph must agree."""
    program, small, x = traced(ByHand())
    fuse_program(program)
    program.validate()
    with quiet():
        torch.export.save(program, tmp_path / "p.pt2")
        again = LoadedProgram(torch.export.load(tmp_path / "p.pt2"))
    assert count(again.program, FUSED) == 1
    with torch.no_grad(), torch_ops.without_library():
        torch.testing.assert_close(again(x), small(x), atol=2e-5, rtol=1e-5)
    assert [layer.kind for layer in layers_of(trace(again, (x,)))] == ["linear"]
