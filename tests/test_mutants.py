"""The proof refuses every changed file whose outputs differ: a small part of `make mutants`."""

import onnx
import pytest
import torch
from torch import nn

import roast_export
from tests.mutants.judge import Judged, verdicts_only
from tests.mutants.models import models
from tests.mutants.mutate import KINDS, mutants


@pytest.fixture(scope="module", params=["tiny_outputs"])
def judged(request, tmp_path_factory):
    with verdicts_only():
        yield Judged(models()[request.param], tmp_path_factory.mktemp(request.param))


def test_control_the_unchanged_file_is_right_and_passes(judged):
    assert judged.differs(judged.right) is False
    assert not judged.refused(judged.right)


def test_every_mutant_that_differs_is_refused(judged):
    score = judged.score(12)
    assert score.mutants == 12
    assert score.differ >= 8
    assert score.survivors == []


def test_control_a_proof_with_a_wide_bound_lets_mutants_through(judged):
    """The judge does not ask the proof: with a bound that allows anything, it counts survivors."""
    right = judged.proof
    judged.proof = {"atol": 1e9}
    try:
        score = judged.score(12)
    finally:
        judged.proof = right
    assert score.differ >= 8
    assert score.survivors


def test_mutants_are_of_every_kind(tmp_path):
    class Kinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x, mask):
            y = torch.relu(self.layer(x)) - 2 * x
            return torch.where(mask & (y > 0.5), y, x / 3 - 1.25)[:, 1:]

    model = roast_export.compress(Kinds().eval(), 4)
    inputs = (torch.randn(3, 64), torch.ones(3, 64, dtype=torch.bool))
    roast_export.export(model, tmp_path / "m.onnx", example_inputs=inputs, verify=False)
    right = onnx.load(tmp_path / "m.onnx")
    found = list(mutants(right, seed=0))
    assert {mutant.kind for mutant in found} == set(KINDS) - {"constant"}
    assert all(mutant.model != right for mutant in found)
    assert len({mutant.model.SerializeToString() for mutant in found}) > 0.9 * len(found)
