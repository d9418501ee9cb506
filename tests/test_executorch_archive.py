"""Archive of `save` -> command line -> .pte, with lengths bounded by --dynamic, in both forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import roast_export
from roast_export import pte_program, runtime_executorch, to_executorch
from roast_export.cli import export_command, verify_command
from roast_export.errors import RoastError
from tests.test_executorch import FORMS, executorch, form  # noqa: F401

IDS = torch.tensor([[5, 9, 1, 30, 2], [7, 8, 0, 0, 0], [40, 1, 2, 3, 0]])


class Padded(nn.Module):
    """A mean over the rows that are no padding: the mask comes of the very ids that are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 64)
        self.layer = nn.Linear(64, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        kept = (ids != 0).unsqueeze(-1)
        return (self.layer(self.table(ids)) * kept).sum(1) / kept.sum(1).clamp(min=1)


class Masked(Padded):
    """The first input gives the length, the second is looked up."""

    def forward(self, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(ids)) * mask.unsqueeze(-1)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.layer = nn.Linear(32 * 16, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.conv(x)).reshape(x.shape[0], -1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(32, 64, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


KINDS: dict[str, tuple[type[nn.Module], tuple[torch.Tensor, ...], list[str]]] = {
    "padded": (Padded, (IDS,), ["ids:0=batch[1..6]", "ids:1=length[2..9]"]),
    "masked": (Masked, (torch.ones(3, 5), IDS), ["ids:0=batch[1..6]"]),
    "pictures": (Pictures, (torch.randn(2, 3, 4, 4),), ["x:0=batch[1..4]"]),
    "recurrent": (Recurrent, (torch.randn(2, 4, 32),), ["x:0=batch[1..4]"]),
    "fixed": (Padded, (IDS,), []),
}


pytestmark = pytest.mark.usefixtures("nothing_is_measured")


def command(main: Callable[[list[str]], object], *args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main([*map(str, args)])
    return int(done.value.code or 0)


def archive(kind: str, folder: Path) -> tuple[nn.Module, str, list[str]]:
    """The model, the archive of it, and the options that bound its lengths."""
    torch.manual_seed(0)
    make, example, dynamic = KINDS[kind]
    model = roast_export.compress(make().eval(), 4, min_params=512)
    roast_export.save(model, folder / "m.pt", example)
    return model, str(folder / "m.pt"), [word for spec in dynamic for word in ("--dynamic", spec)]


def other_lengths(kind: str) -> tuple[torch.Tensor, ...]:
    """Inputs at the upper bounds of the batch."""
    most = 6 if kind in ("padded", "masked") else 4
    return tuple(value[torch.arange(most) % len(value)] for value in KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_becomes_a_pte(kind, form, tmp_path, capsys):  # noqa: F811
    model, saved, bounds = archive(kind, tmp_path)
    file = str(tmp_path / "m.pte")
    portable = ["--portable"] if FORMS[form] else []
    code = command(export_command.main, saved, "--to", "executorch", "-o", file, *bounds, *portable)
    assert code == 0, capsys.readouterr().err
    run = (runtime_executorch.open_portable if FORMS[form] else runtime_executorch.open_native)(file)
    inputs = other_lengths(kind) if bounds else KINDS[kind][1]
    with torch.no_grad():
        expected = model(*inputs).numpy()
    found = run({str(k): value.numpy() for k, value in enumerate(inputs)})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    longer = tuple(value[torch.arange(7) % len(value)] for value in inputs)
    with pytest.raises(RoastError):
        run({str(k): value.numpy() for k, value in enumerate(longer)})


def test_control_a_weight_that_differs_is_found_at_dynamic_lengths(form, tmp_path, capsys):  # noqa: F811
    _, saved, bounds = archive("padded", tmp_path)
    file = tmp_path / "m.pte"
    portable = ["--portable"] if FORMS[form] else []
    options = ["--to", "executorch", "-o", str(file), *bounds, *portable, "--no-verify"]
    assert command(export_command.main, saved, *options) == 0
    program = pte_program.read_program(file)
    name, array = max(program.named(), key=lambda pair: pair[1].size)
    changed = array.copy()
    changed[-1] += 1
    bytes_ = file.read_bytes().replace(array.tobytes(), changed.tobytes())
    assert len(bytes_) == file.stat().st_size, name
    file.write_bytes(bytes_)
    capsys.readouterr()
    assert command(verify_command.main, saved, str(file)) == 2
    assert "m.pte" in capsys.readouterr().err


def test_control_without_views_of_their_own_a_program_is_not_followed(executorch, tmp_path, monkeypatch):  # noqa: F811
    _, saved, bounds = archive("padded", tmp_path)
    monkeypatch.setattr(to_executorch, "_is_static", lambda node: True)
    options = ["--to", "executorch", "-o", str(tmp_path / "m.pte"), *bounds, "--portable"]
    assert command(export_command.main, saved, *options) == 1
    assert not (tmp_path / "m.pte").exists()


def test_a_length_without_an_upper_bound_is_refused(form, tmp_path, capsys):  # noqa: F811
    _, saved, _ = archive("padded", tmp_path)
    file = tmp_path / "m.pte"
    code = command(
        export_command.main, saved, "--to", "executorch", "-o", str(file), "--dynamic", "ids:0=batch"
    )
    assert code == 1
    assert "has no upper bound; give one, such as --dynamic ids:0=batch[1..8]" in capsys.readouterr().err
    assert not file.exists()
