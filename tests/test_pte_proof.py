"""The proof of a .pte: each weight is cut out of the file, and what was tampered with is red and named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import roast_export
from roast_export import pte_program, runtime_executorch, runtime_executorch_arm64
from roast_export.errors import RoastError
from roast_export.pte_program import PteProgram, read_program, with_note, written
from roast_export.report import Report
from roast_export.runtimes import Runtime
from tests.models import Small, small_inputs

PLAIN = [*runtime_executorch.runtimes(), *runtime_executorch_arm64.runtimes()]
XNNPACK = [*runtime_executorch.xnnpack_runtimes(False), *runtime_executorch.xnnpack_runtimes(True)]
RUNTIMES = {
    **{runtime.name: runtime for runtime in PLAIN},
    **{f"{runtime.name} {'native' if runtime.native else 'portable'}": runtime for runtime in XNNPACK},
}
ARRAY = "last.virtual.weight.memory"
LAYERS = ("table.weight", "first.weight", "last.weight")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return roast_export.compress(Small().eval(), ratio=4)


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found = RUNTIMES[request.param]
    reason = found.unavailable()
    if reason:
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("exported")
    return lambda form: folder / f"{form}.pte"


@pytest.fixture(scope="module")
def exported(runtime: Runtime, model: nn.Module, files: Callable[[str], Path]) -> Path:
    """The model in the form that the runtime takes, written once for all runtimes that take it."""
    pytest.importorskip("executorch", reason="the package executorch, which writes .pte files, is missing")
    path = files(f"{'native' if runtime.native else 'portable'} {'xnnpack' in runtime.name}")
    if path.is_file():
        return path
    roast_export.export(
        model,
        path,
        to="executorch",
        example_inputs=small_inputs(),
        portable=not runtime.native,
        delegate="xnnpack" if "xnnpack" in runtime.name else None,
        verify=False,
    )
    return path


def verified(model: nn.Module, path: Path, runtime: Runtime) -> Report:
    return roast_export.verify(model, path, example_inputs=small_inputs(), runtimes=[runtime.name])


def red(report: Report, kind: str) -> set[str]:
    return {check.name for check in report.failures if check.kind == kind}


def tampered(path: Path, to: Path, change: Callable[[PteProgram], Any]) -> Path:
    """The file with something changed in it. change: may give another executorch program."""
    program = read_program(path)
    to.write_bytes(written(change(program) or program.file))
    return to


def stored_by_name(program: PteProgram, name: str) -> int:
    extras = [getattr(value, "extra_tensor_info", None) for value in program.values]
    return next(
        k for k, extra in enumerate(extras) if extra is not None and extra.fully_qualified_name == name
    )


def change_bytes(program: PteProgram, value: int, place: int) -> None:
    """Flip the lowest bit of one element of a stored tensor, for all values that share its bytes."""
    tensor = program.values[value]
    buffer = program.file.program.constant_buffer[tensor.data_buffer_idx]
    data = bytearray(buffer.storage)
    data[place * program.dtype(value).itemsize] ^= 1
    buffer.storage = bytes(data)


def weights_of(program: PteProgram) -> dict[str, list[int]]:
    weights = json.loads(program.note())["weights"]
    return {weight["name"]: [int(value) for value in weight["place"].split()] for weight in weights}


def change_coefficient(program: PteProgram, layer: str) -> None:
    """Add 1 to a factor of the hash of one layer."""
    place = weights_of(program)[layer]
    call = next((c for c in program.calls if place[0] in c.writes and c.operator.startswith("roast")), None)
    if call is not None:
        program.values[program.values[call.args[-4]].items[12]].int_val += 1
        return
    factor = next(v for v in factors_behind(program, place))
    tensor = program.values[factor]
    buffers = program.file.program.constant_buffer
    # A buffer of its own: equal numbers of all layers share one.
    buffers.append(type(buffers[0])(np.int64(program.stored(factor) + 1).tobytes()))
    tensor.data_buffer_idx = len(buffers) - 1


def factors_behind(program: PteProgram, place: list[int]) -> list[int]:
    kept, _ = program._slice(place[:1], frozenset(place[1:]))
    products = [program.calls[k] for k in kept if program.calls[k].operator == "aten::mul.out"]
    return [
        value
        for call in products
        for value in sorted(call.reads)
        if program.is_stored(value) and program.shape(value) == [] and program.stored(value) > 1000
    ]


def without_layer(program: PteProgram, name: str) -> Any:
    note = json.loads(program.note())
    note["weights"] = [weight for weight in note["weights"] if weight["name"] != name]
    return with_note(program.file, json.dumps(note))


def test_every_weight_and_parameter_is_compared(exported, runtime, model):
    report = verified(model, exported, runtime)
    assert report.passed, report
    weights = [check for check in report.checks if check.kind == "weight"]
    assert {check.name for check in weights if check.runtime == runtime.name} == set(LAYERS)
    names = {check.name for check in weights if check.runtime == "file"}
    assert names == {"first.bias", "norm.weight", "norm.bias", "last.bias", ARRAY}
    assert {check.elements for check in weights if check.name == "table.weight"} == {50 * 48}
    assert not any("no names" in warning for warning in report.warnings)


# The form that needs operators: what a process knows does not depend on the delegate, and an emulated run
# is a process of its own anyway.
@pytest.mark.parametrize("runtime", ["executorch native"], indirect=True, scope="module")
def test_a_process_that_has_written_nothing_can_verify(exported, runtime, model, tmp_path):
    archive = tmp_path / "model.pt"
    roast_export.save(model, archive, small_inputs())
    command = "from roast_export.cli import verify_command; verify_command()"
    arguments = [str(archive), str(exported), "--runtime", runtime.name]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_control_an_unchanged_copy_passes(exported, runtime, model, tmp_path):
    assert verified(model, tampered(exported, tmp_path / "m.pte", lambda program: None), runtime).passed


def test_one_bit_of_the_array_is_seen(exported, runtime, model, tmp_path):
    def change(program: PteProgram) -> None:
        change_bytes(program, stored_by_name(program, ARRAY), 1000)

    report = verified(model, tampered(exported, tmp_path / "m.pte", change), runtime)
    failures = [check for check in report.failures if check.kind == "weight"]
    assert ARRAY in {check.name for check in failures if check.runtime == "file"}
    assert {check.name for check in failures if check.runtime == runtime.name} & set(LAYERS)
    first = next(check for check in failures if check.name == ARRAY)
    assert first.index == (1000,)


@pytest.mark.parametrize("layer", LAYERS)
def test_one_coefficient_of_a_hash_is_seen_in_its_layer(exported, runtime, model, layer, tmp_path):
    path = tampered(exported, tmp_path / "m.pte", lambda program: change_coefficient(program, layer))
    report = verified(model, path, runtime)
    assert red(report, "weight") == {layer}


def test_one_bit_of_a_bias_is_seen(exported, runtime, model, tmp_path):
    def change(program: PteProgram) -> None:
        change_bytes(program, stored_by_name(program, "first.bias"), 17)

    report = verified(model, tampered(exported, tmp_path / "m.pte", change), runtime)
    assert red(report, "weight") == {"first.bias"}
    assert next(check for check in report.failures).index == (17,)


def test_a_weight_that_is_not_compared_is_seen(exported, runtime, model, tmp_path):
    path = tampered(exported, tmp_path / "m.pte", lambda program: without_layer(program, "first.weight"))
    report = verified(model, path, runtime)
    assert red(report, "weight") == {"first.weight"}
    assert red(report, "structure") == {"arrays are read through weights only"}


def test_a_use_hidden_behind_an_equal_one_is_seen(exported, runtime, model, tmp_path):
    """Both uses of last.weight are said to be the second one."""

    def change(program: PteProgram) -> Any:
        note = json.loads(program.note())
        first, second = (weight for weight in note["weights"] if weight["name"] == "last.weight")
        first["place"] = second["place"]
        return with_note(program.file, json.dumps(note))

    report = verified(model, tampered(exported, tmp_path / "m.pte", change), runtime)
    assert red(report, "structure") == {"arrays are read through weights only"}


def test_a_note_of_another_mapping_is_seen(exported, runtime, model, tmp_path):
    def change(program: PteProgram) -> Any:
        note = json.loads(program.note())
        note["weights"][1]["mapping"][12] += 1
        return with_note(program.file, json.dumps(note))

    report = verified(model, tampered(exported, tmp_path / "m.pte", change), runtime)
    assert red(report, "weight") == {"first.weight"}
    assert "states another mapping" in report.failures[0].note


def test_a_place_that_is_no_weight_is_seen(exported, runtime, model, tmp_path):
    def change(program: PteProgram) -> Any:
        note = json.loads(program.note())
        note["weights"][1]["place"] = str(program.plan.outputs[0])
        return with_note(program.file, json.dumps(note))

    report = verified(model, tampered(exported, tmp_path / "m.pte", change), runtime)
    assert "first.weight" in red(report, "weight")


def test_a_file_without_a_note_is_refused(exported, model, tmp_path):
    path = tampered(exported, tmp_path / "m.pte", lambda program: replace(program.file, named_data=None))
    with pytest.raises(RoastError, match="was not written by this roast-export"):
        roast_export.verify(model, path, example_inputs=small_inputs())


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"target": 1}'])
def test_a_damaged_note_is_refused(exported, model, note, tmp_path):
    path = tampered(exported, tmp_path / "m.pte", lambda program: with_note(program.file, note))
    with pytest.raises(RoastError, match="damaged or of another version"):
        roast_export.verify(model, path, example_inputs=small_inputs())


@pytest.mark.parametrize("place", ["", "x", "99999", "-1"])
def test_a_place_that_the_file_has_not_is_refused(exported, model, place, tmp_path):
    def change(program: PteProgram) -> Any:
        note = json.loads(program.note())
        note["weights"][0]["place"] = place
        return with_note(program.file, json.dumps(note))

    path = tampered(exported, tmp_path / "m.pte", change)
    with pytest.raises(RoastError, match="damaged"):
        roast_export.verify(model, path, example_inputs=small_inputs())


def _short(program: PteProgram) -> None:
    stored = max(
        (k for k in range(len(program.values)) if program.is_stored(k)), key=lambda k: program.stored(k).size
    )
    buffer = program.file.program.constant_buffer[program.values[stored].data_buffer_idx]
    # What is written is padded up to a line.
    buffer.storage = buffer.storage[: len(buffer.storage) // 2]


def _elsewhere(program: PteProgram) -> None:
    stored = next(value for k, value in enumerate(program.values) if program.is_stored(k))
    stored.data_buffer_idx = 10_000


def _negative(program: PteProgram) -> None:
    stored = next(value for k, value in enumerate(program.values) if program.is_stored(k) and value.sizes)
    stored.sizes = [-1]


@pytest.mark.parametrize("change", [_short, _elsewhere, _negative])
def test_a_tensor_without_its_bytes_is_refused(exported, model, change, tmp_path):
    path = tampered(exported, tmp_path / "m.pte", change)
    with pytest.raises(RoastError, match=r"damaged or of another version.*export it again"):
        roast_export.verify(model, path, example_inputs=small_inputs())


@pytest.mark.parametrize("keep", [12, 100, 5000, -200])
def test_a_truncated_file_is_refused_or_red(exported, model, keep, tmp_path):
    path = tmp_path / "m.pte"
    path.write_bytes(exported.read_bytes()[:keep])
    with pytest.raises(RoastError, match="damaged or of another version"):
        roast_export.verify(model, path, example_inputs=small_inputs())


def test_missing_executorch_is_named_with_what_installs_it(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir._serialize._program", None)
    with pytest.raises(RoastError, match=r"pip install executorch==1\.5\.1"):
        pte_program.read_program(exported)
