"""Dynamic dimensions: those that must have one length, and what the options --static and --dynamic do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import roast_export
from roast_export.dimensions import dim_names
from roast_export.errors import InputError
from roast_export.inputs import parse_shapes
from roast_export.load import load
from roast_export.open_file import open_artifact
from roast_export.program import LoadedProgram, flat_inputs, layers_of, signature
from roast_export.ranges import named_ranges
from roast_export.restrict import restricted
from roast_export.trace import trace
from roast_export.verify import example_of


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


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "masked.pt"
    roast_export.save(small(Masked), path, example())
    return path


def lengths_of(path: Path, shapes: Any) -> tuple[dict[str, list[int | str]], dict[str, Any]]:
    """What restricting an archive makes of its dimensions, and of their bounds."""
    loaded = load(path)
    assert isinstance(loaded, LoadedProgram)
    program, inputs = restricted(loaded, None, shapes)
    names = dim_names(shapes)
    values = flat_inputs(program, example_of(program) if inputs is None else inputs)
    with torch.no_grad():
        found, wanted = program.module()(**values), loaded(**values)
    torch.testing.assert_close(found, wanted)
    assert [layer.name for layer in layers_of(program)] == [layer.name for layer in layers_of(loaded.program)]
    return {name: dims for name, (_, dims) in signature(program, names).items()}, named_ranges(program, names)


@pytest.mark.parametrize(
    ("dynamic", "static", "rows", "columns", "bounds"),
    [
        ([], [], "ids_0", "ids_1", {}),
        (["ids:0=batch"], [], "batch", 5, {}),
        ([], ["all"], 2, 5, {}),
        ([], ["mask:1"], "ids_0", 5, {}),
        ([], ["ids:1=7"], "ids_0", 7, {}),
        (["mask:0=batch[..4]"], ["all"], "batch", 5, {"batch": (None, 4)}),
        (["ids:0=batch[4..8]"], ["mask:1=9"], "batch", 9, {"batch": (4, 8)}),
    ],
)
def test_dimensions_of_an_archive_are_fixed_and_bounded(archive, dynamic, static, rows, columns, bounds):
    dims, found = lengths_of(archive, parse_shapes(dynamic, static))
    assert dims == {"ids": [rows, columns], "mask": [rows, columns]}
    assert found == bounds


@pytest.mark.parametrize(
    ("dynamic", "static", "says"),
    [
        (["mask:0=rows"], ["ids:0=3"], r"one dimension for ids:0, mask:0, and it cannot be both"),
        ([], ["mask:0=2", "ids:0=3"], "cannot be both"),
        ([], ["ids:2"], "no axis 2"),
        ([], ["tokens:0"], "no input is called 'tokens'; the model takes ids, mask"),
        (["ids:0=a[..4]", "mask:0=a[6..]"], [], "from 6 to 4 long, and no length is"),
    ],
)
def test_what_no_archive_can_have_is_refused(archive, dynamic, static, says):
    with pytest.raises(InputError, match=says):
        lengths_of(archive, parse_shapes(dynamic, static))


@pytest.mark.parametrize(
    ("dynamic", "static", "says"),
    [
        (["x:0=batch[1..]]"], [], "the form is NAME:AXIS=DIM"),
        (["x:0=batch[8..1]"], [], "upper bound is below its lower"),
        (["x:0=batch[3..3]"], [], "has one length"),
        (["x:0=batch[-1..3]"], [], "must be a name, or a name with bounds"),
        ([], ["x"], "the form is NAME:AXIS, NAME:AXIS=LENGTH or all"),
        ([], ["x:0=0"], "the form is NAME:AXIS"),
        (["x:0=batch"], ["x:0=2"], "axis 0 of 'x' is given twice"),
    ],
)
def test_a_wrong_option_is_refused(dynamic, static, says):
    with pytest.raises(InputError, match=says):
        parse_shapes(dynamic, static)


def test_a_live_model_is_traced_at_the_length_asked_for(tmp_path):
    report = roast_export.export(
        small(Masked), tmp_path / "m.onnx", example_inputs=example(),
        dynamic_shapes={"ids": {0: "batch[3..8]", 1: 7}}, verify=False,
    )  # fmt: skip
    file = open_artifact(Path(report.path))
    assert {name: dims for name, (_, dims) in file.inputs.items()} == {
        "ids": ["batch", 7],
        "mask": ["batch", 7],
    }
    assert file.ranges == {"batch": (3, 8)}


def test_a_length_that_the_model_does_not_run_at_is_refused(tmp_path):
    model = roast_export.compress(nn.Sequential(nn.Linear(64, 64)), 4, min_params=512)
    with pytest.raises(InputError, match="does not run with axis 1 of 'input' at 63"):
        roast_export.export(
            model, tmp_path / "m.onnx", example_inputs=(torch.ones(2, 64),), dynamic_shapes={"input": {1: 63}}
        )
    assert not list(tmp_path.iterdir())


def test_a_batch_of_one_that_nobody_named_stays_one():
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    program = trace(Sum(), {"x": torch.ones(1, 5, 3)}, {"x": {1: "length"}})
    _, dims = signature(program)["x"]
    assert dims == [1, "x_1", 3]
