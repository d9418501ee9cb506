"""Both forms of a .pte in ExecuTorch's own runtime: weights bit by bit, models, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import roast_export
from roast_export import runtime_executorch, size, to_executorch, torch_ops
from roast_export.compare import compare_values
from roast_export.errors import ExportError, RoastError
from roast_export.mapping import Hash, Mapping, Sign
from tests.mappings import pattern
from tests.models import Small, small_inputs
from tests.test_native_kernel import LARGE, assert_same_bits

FORMS = {"portable": True, "native": False}
TABLE = Mapping((50, 12), 100, (50, 12), tile=(1, 8), hash1=Hash(45007, 5, 7), range=93)
# Past 2^63 sums wrap around, and negative ones must be divided as in Python.
WRAPS = Mapping((33, 70), 1000, (1, 2310), origin=(0, 2**47), range=1000,
                hash1=Hash(2038074743, 0, 478274215, 1768736291, 1208996517))  # fmt: skip


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    check = runtime_executorch.unavailable if FORMS[name] else runtime_executorch.native_unavailable
    reason = check()
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture
def executorch() -> None:
    reason = runtime_executorch.unavailable()
    if reason:
        pytest.skip(reason)


class Weight(nn.Module):
    """One virtual weight, and a sum that makes the input count."""

    def __init__(self, m: Mapping, dtype: type = np.float32):
        super().__init__()
        self.memory = nn.Parameter(torch.from_numpy(pattern(m.n_memory, dtype)))
        self.fields = m.to_list()

    def forward(self, x):
        return torch_ops.gather(self.memory, self.fields, -1.7) + x


class Rows(Weight):
    def forward(self, ids):
        return torch_ops.embedding(self.memory, ids, self.fields, 0.5)


def exported(
    model: nn.Module, args: tuple[torch.Tensor, ...], path: Path, form: str
) -> Callable[..., list[np.ndarray]]:
    """The model, written in a form and opened again, as a function of arrays."""
    to_executorch.write(torch.export.export(model, args), path, portable=FORMS[form])
    run = runtime_executorch.open_portable if FORMS[form] else runtime_executorch.open_native
    opened = run(str(path))
    return lambda *arrays: opened({str(k): array for k, array in enumerate(arrays)})


def test_a_model_agrees_with_torch(form, tmp_path):
    torch.manual_seed(0)
    model = roast_export.compress(Small().eval(), ratio=4)
    inputs = small_inputs()
    run = exported(model, tuple(inputs.values()), tmp_path / "model.pte", form)
    with torch.no_grad():
        expected = [value.numpy() for value in model(**inputs).values()]
    outputs = run(*(value.numpy() for value in inputs.values()))
    assert len(outputs) == len(expected)
    for want, got in zip(expected, outputs, strict=True):
        assert compare_values(form, "y", "example", want, got, 1e-5, 1e-5).passed
        wrong = want + np.asarray(1e-3 * np.abs(want).max() + 1, want.dtype)
        assert not compare_values(form, "y", "example", wrong, got, 1e-5, 1e-5).passed


@pytest.mark.parametrize("name", ["matrices", "as is", "wraps"])
def test_weights_are_equal_in_every_bit(form, name, tmp_path):
    m = WRAPS if name == "wraps" else LARGE[name]
    zero = np.zeros(1, np.float32)
    run = exported(Weight(m), (torch.from_numpy(zero),), tmp_path / "weight.pte", form)
    weight = m.weight(pattern(m.n_memory), -1.7)
    assert_same_bits(run(zero)[0], weight + zero)
    assert (run(zero + 1)[0] != weight + zero).any()


def test_control_a_remainder_as_executorch_has_it_gives_other_weights(executorch, tmp_path, monkeypatch):
    monkeypatch.setattr(to_executorch, "_floored", lambda program: program)
    zero = np.zeros(1, np.float32)
    try:
        run = exported(Weight(WRAPS), (torch.from_numpy(zero),), tmp_path / "weight.pte", "portable")
        found = run(zero)[0]
    except RoastError:
        return  # a negative slot
    assert (found != WRAPS.weight(pattern(WRAPS.n_memory), -1.7)).any()


def test_rows_are_equal_in_every_bit(form, tmp_path):
    ids = np.array([[0, 49, 3], [3, 3, 20]], np.int64)
    run = exported(Rows(TABLE), (torch.from_numpy(ids),), tmp_path / "rows.pte", form)
    assert_same_bits(run(ids)[0], TABLE.weight(pattern(TABLE.n_memory), 0.5)[ids])


@pytest.mark.parametrize("bad", [50, -1, 2**62])
def test_an_id_outside_the_table_is_an_error(form, bad, tmp_path):
    ids = np.array([0, 1], np.int64)
    run = exported(Rows(TABLE), (torch.from_numpy(ids),), tmp_path / "rows.pte", form)
    with pytest.raises(RoastError, match="executorch cannot run the file"):
        run(np.array([0, bad], np.int64))


def test_a_file_stays_small(form, tmp_path):
    m = LARGE["matrices"]
    args = (torch.zeros(1),)
    found = to_executorch.write(
        torch.export.export(Weight(m), args), tmp_path / "w.pte", portable=FORMS[form]
    )
    assert found == (tmp_path / "w.pte").stat().st_size
    assert found < 4 * m.numel / 10


def test_control_a_file_that_is_too_large_is_refused(executorch, tmp_path, monkeypatch):
    monkeypatch.setattr(size, "GRAPH_BYTES", -(1 << 20))
    program = torch.export.export(Weight(TABLE), (torch.zeros(1),))
    with pytest.raises(ExportError, match=r"has \d+ bytes beside its tensors, more than -\d+"):
        to_executorch.write(program, tmp_path / "w.pte")
    assert not (tmp_path / "w.pte").exists()


def test_signs_from_a_stream_have_no_portable_form(executorch, tmp_path):
    m = Mapping((6, 4), 40, (6, 4), hash1=Hash(7, 1, 2), range=36, sign=Sign.MT19937, sign_seed=7)
    program = torch.export.export(Weight(m), (torch.zeros(1),))
    with pytest.raises(ExportError, match="MT19937"):
        to_executorch.write(program, tmp_path / "w.pte", portable=True)


@pytest.mark.parametrize("content", [b"text" * 50, bytes(100)], ids=["text", "zeros"])
def test_what_is_no_program_is_refused(executorch, content, tmp_path):
    (tmp_path / "bad.pte").write_bytes(content)
    with pytest.raises(RoastError, match="executorch cannot load the file"):
        runtime_executorch.open_portable(str(tmp_path / "bad.pte"))


def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch):
    # What other tests have imported is found by its own name.
    for name in {"executorch.exir", *(name for name in sys.modules if name.startswith("executorch.exir."))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(runtime_executorch.importlib.util, "find_spec", lambda name: None)
    assert "pip install executorch==1.5.1" in str(runtime_executorch.unavailable())
    program = torch.export.export(Weight(TABLE), (torch.zeros(1),))
    with pytest.raises(ExportError, match=r"pip install executorch==1\.5\.1"):
        to_executorch.write(program, tmp_path / "w.pte")
