"""Dynamic dimensions: those that must have one length, and what the options --static and --dynamic do."""

from __future__ import annotations

import torch
from torch import nn

import roast_export
from roast_export.program import signature
from roast_export.trace import trace


class Masked(nn.Module):
    """Rows of a mask are taken one by one, so that a trace sees no reason why there are as many as ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 64)
        self.layer = nn.Linear(64, 64)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = mask[torch.arange(ids.shape[0])]
        return self.layer(self.table(ids)) * rows.unsqueeze(-1)


class Apart(Masked):
    """The second input has lengths of its own."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(ids)) * mask.sum()


def small(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return roast_export.compress(kind().eval(), 4, min_params=512)


def example(rows: int = 2, length: int = 5) -> dict[str, torch.Tensor]:
    return {
        "ids": torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(0)),
        "mask": torch.ones(rows, length),
    }


def test_dimensions_that_must_have_one_length_get_one_name():
    program = trace(small(Masked), example(), every_dimension=True)
    dims = {name: lengths for name, (_, lengths) in signature(program).items()}
    assert dims["ids"] == dims["mask"]
    assert len(set(dims["ids"])) == 2


def test_control_dimensions_that_only_the_example_has_equal_stay_apart():
    program = trace(small(Apart), example(), every_dimension=True)
    dims = [lengths for _, lengths in signature(program).values()]
    assert len({*dims[0], *dims[1]}) == 4


def test_naming_one_takes_along_what_must_have_its_length():
    program = trace(small(Masked), example(), {"ids": {0: "batch"}})
    dims = {name: lengths for name, (_, lengths) in signature(program, {"ids": {0: "batch"}}).items()}
    assert dims == {"ids": ["batch", 5], "mask": ["batch", 5]}
