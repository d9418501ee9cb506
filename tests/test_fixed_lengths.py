"""Pooling over a whole axis takes any length; a length that stays fixed is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import roast_export


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        x = self.table(ids).transpose(1, 2)
        image = x.unsqueeze(1)
        length = x.size(2)
        return (
            functional.max_pool1d(x, length),
            functional.avg_pool1d(x, kernel_size=x.shape[-1]),
            functional.avg_pool2d(image, image.shape[2:]),
            functional.max_pool2d(image, (2, length), (2, 1)),
            functional.avg_pool2d(image, (1, length), stride=1),
        )


def placeholder(program: torch.export.ExportedProgram, name: str) -> Tensor:
    return next(node for node in program.graph.nodes if node.name == name).meta["val"]


def test_the_length_of_a_pooled_axis_is_free(tmp_path):
    model = roast_export.compress(Pooled().eval(), 2, min_params=64)
    roast_export.save(model, tmp_path / "model.pt", (torch.randint(0, 40, (2, 8)),))
    loaded = roast_export.load(tmp_path / "model.pt")
    assert not any(isinstance(n, int) for n in placeholder(loaded.program, "ids").shape)
    for length in (3, 13):
        ids = torch.randint(0, 40, (3, length))
        for right, found in zip(model(ids), loaded(ids), strict=True):
            torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: functional.max_pool1d(x, x.size(2) // 2),
        lambda x: functional.max_pool1d(x, x.size(2), padding=x.size(2) // 4),
        lambda x: functional.avg_pool2d(x, x.shape[-2:], stride=1, padding=1),
    ],
)
def test_control_other_windows_are_what_they_were(tmp_path, pool):
    class Model(Pooled):
        def forward(self, ids: Tensor) -> Tensor:
            return pool(self.table(ids).transpose(1, 2))

    model = roast_export.compress(Model().eval(), 2, min_params=64)
    ids = torch.randint(0, 40, (2, 8))
    roast_export.save(model, tmp_path / "model.pt", (ids,))
    torch.testing.assert_close(roast_export.load(tmp_path / "model.pt")(ids), model(ids))


class Loop(nn.Module):
    """A loop in Python over the places, and an image of one size: only the first is told."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.flat = nn.Embedding(40, 16), nn.Linear(36, 16)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        found = self.flat(image.flatten(1))
        for k in range(ids.size(1)):
            found = torch.tanh(found + self.table(ids[:, k]))
        return found


def test_a_length_that_only_the_trace_fixes_is_told(tmp_path):
    model = roast_export.compress(Loop().eval(), 2, min_params=64)
    inputs = torch.randint(0, 40, (2, 5)), torch.randn(2, 6, 6)
    roast_export.save(model, tmp_path / "model.pt", inputs)
    report = roast_export.export(roast_export.load(tmp_path / "model.pt"), tmp_path / "m.onnx", verify=False)
    told = [text for text in report.warnings if "is fixed at" in text]
    assert len(told) == 1, report.warnings
    assert told[0].startswith("ids:1 is fixed at 5: the model takes other lengths"), told
