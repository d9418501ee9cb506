"""ExecuTorch for 64-bit ARM under qemu: both forms of a .pte, every instruction set, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import roast_export
from roast_export import runtime_executorch_arm64, runtime_qemu, to_executorch
from roast_export.compare import compare_values
from roast_export.errors import RoastError
from roast_export.runtimes import Run, run_all
from tests.emulated import AVX2, NEON, PORTABLE
from tests.mappings import pattern
from tests.models import Small, small_inputs
from tests.test_executorch import FORMS, TABLE, WRAPS, Rows, Weight
from tests.test_native_kernel import LARGE, assert_same_bits

RUNTIMES = {runtime.name.rpartition(" ")[2]: runtime for runtime in runtime_executorch_arm64.runtimes()}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = RUNTIMES[name].unavailable()
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture
def native() -> None:
    reason = runtime_executorch_arm64.native_unavailable()
    if reason:
        pytest.skip(reason)


def written(model: nn.Module, args: tuple[torch.Tensor, ...], path: Path, form: str) -> Run:
    pytest.importorskip("executorch", reason="the package executorch, which writes .pte files, is missing")
    to_executorch.write(torch.export.export(model, args), path, portable=FORMS[form])
    return RUNTIMES[form].open(str(path))


def test_a_model_agrees_with_torch(form, tmp_path):
    torch.manual_seed(0)
    model = roast_export.compress(Small().eval(), ratio=4)
    inputs = small_inputs()
    run = written(model, tuple(inputs.values()), tmp_path / "model.pte", form)
    with torch.no_grad():
        expected = [value.numpy() for value in model(**inputs).values()]
    outputs = run({name: value.numpy() for name, value in inputs.items()})
    assert len(outputs) == len(expected)
    for want, got in zip(expected, outputs, strict=True):
        assert compare_values(form, "y", "example", want, got, 1e-5, 1e-5).passed
        wrong = want + np.asarray(1e-3 * np.abs(want).max() + 1, want.dtype)
        assert not compare_values(form, "y", "example", wrong, got, 1e-5, 1e-5).passed


@pytest.mark.parametrize("name", ["matrices", "as is", "wraps"])
def test_weights_are_equal_in_every_bit(form, name, tmp_path):
    m = WRAPS if name == "wraps" else LARGE[name]
    zero = np.zeros(1, np.float32)
    run = written(Weight(m), (torch.from_numpy(zero),), tmp_path / "weight.pte", form)
    weight = m.weight(pattern(m.n_memory), -1.7)
    assert_same_bits(run({"x": zero})[0], weight + zero)
    assert (run({"x": zero + 1})[0] != weight + zero).any()


@pytest.mark.parametrize("isa", [PORTABLE, NEON])
def test_an_instruction_set_gives_equal_bits(native, isa, tmp_path):
    m = LARGE["matrices"]
    zero = np.zeros(1, np.float32)
    written(Weight(m), (torch.from_numpy(zero),), tmp_path / "weight.pte", "native")
    run = runtime_executorch_arm64.open_native(str(tmp_path / "weight.pte"), isa)
    assert_same_bits(run({"x": zero})[0], m.weight(pattern(m.n_memory), -1.7) + zero)


def test_control_an_instruction_set_of_other_processors_is_refused(native, tmp_path):
    zero = np.zeros(1, np.float32)
    written(Weight(TABLE), (torch.from_numpy(zero),), tmp_path / "weight.pte", "native")
    run = runtime_executorch_arm64.open_native(str(tmp_path / "weight.pte"), AVX2)
    with pytest.raises(RoastError, match="is no instruction set of this machine"):
        run({"x": zero})


def test_rows_are_equal_in_every_bit(form, tmp_path):
    ids = np.array([[0, 49, 3], [3, 3, 20]], np.int64)
    run = written(Rows(TABLE), (torch.from_numpy(ids),), tmp_path / "rows.pte", form)
    assert_same_bits(run({"ids": ids})[0], TABLE.weight(pattern(TABLE.n_memory), 0.5)[ids])
    with pytest.raises(RoastError, match="executorch on arm64 cannot run the model"):
        run({"ids": np.where(ids == 20, 50, ids)})


def test_one_process_takes_any_number_of_inputs(form, tmp_path):
    sets = [np.full((2, 3), k, np.int64) for k in (0, 49, 7, 7)]
    run = written(Rows(TABLE), (torch.from_numpy(sets[0]),), tmp_path / "rows.pte", form)
    table = TABLE.weight(pattern(TABLE.n_memory), 0.5)
    for ids, (rows,) in zip(sets, run_all(run, [{"ids": ids} for ids in sets]), strict=True):
        assert_same_bits(rows, table[ids])
    with pytest.raises(RoastError, match="executorch on arm64 cannot run the model"):
        run_all(run, [{"ids": ids} for ids in (sets[0], sets[0] + 50)])


def test_a_native_file_needs_the_operators(native, tmp_path):
    zero = np.zeros(1, np.float32)
    written(Weight(TABLE), (torch.from_numpy(zero),), tmp_path / "weight.pte", "native")
    with pytest.raises(RoastError, match="OperatorMissing"):
        runtime_executorch_arm64.open_portable(str(tmp_path / "weight.pte"))({"x": zero})


@pytest.mark.parametrize("content", [b"text" * 50, bytes(100)], ids=["text", "zeros"])
def test_what_is_no_program_is_refused(form, content, tmp_path):
    (tmp_path / "bad.pte").write_bytes(content)
    with pytest.raises(RoastError, match="executorch on arm64 cannot run the model"):
        RUNTIMES[form].open(str(tmp_path / "bad.pte"))({})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "run: "),
        ({"x": np.zeros((2, 3), np.float32)}, "run: "),
        ({"x": np.zeros(1, np.complex64)}, "does not fill its dimensions"),
    ],
    ids=["none", "another shape", "another type"],
)
def test_inputs_that_do_not_fit_are_refused(form, inputs, message, tmp_path):
    run = written(Weight(TABLE), (torch.zeros(1),), tmp_path / "weight.pte", form)
    with pytest.raises(RoastError, match=message):
        run(inputs)


def test_verification_uses_it_where_it_is_asked_for(native, tmp_path):
    runtime = RUNTIMES["native"]
    torch.manual_seed(0)
    model = roast_export.compress(Small().eval(), ratio=4)
    inputs, path = small_inputs(), tmp_path / "model.pte"
    roast_export.export(model, path, to="executorch", example_inputs=inputs, verify=False)
    usual = roast_export.verify(model, path, example_inputs=inputs)
    assert runtime.name not in {check.runtime for check in usual.checks}
    report = roast_export.verify(model, path, example_inputs=inputs, runtimes=[runtime.name])
    assert report.passed
    assert {check.runtime for check in report.checks if check.kind == "output"} == {runtime.name}
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.1)
    assert not roast_export.verify(model, path, example_inputs=inputs, runtimes=[runtime.name]).passed


def test_missing_programs_are_named_with_what_makes_them(monkeypatch, tmp_path):
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path))
    assert "qemu-aarch64 is missing; run `make mobile`" in str(runtime_executorch_arm64.unavailable())
    for name in ("qemu/bin/qemu-aarch64", "executorch-arm64/et_run"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert runtime_executorch_arm64.unavailable() is None
    reason = str(runtime_executorch_arm64.native_unavailable())
    assert "libroast_executorch.so is missing; run `make mobile`" in reason
    assert runtime_qemu.unavailable() is not None
