"""Programs that end, block or overfill the process that runs them: a child ends, and this process goes on."""

import copy
import signal

import numpy as np
import pytest
import torch

import roast_export
from roast_export import budget, executorch_process, runtime_executorch, to_executorch
from roast_export.errors import RoastError
from roast_export.pte_program import read_program
from tests.models import Small, small_inputs

FEEDS = {name: value.numpy() for name, value in small_inputs().items()}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    reason = runtime_executorch.unavailable()
    if reason:
        pytest.skip(reason)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("executorch") / "m.pte"
    model = roast_export.compress(Small().eval(), ratio=4)
    to_executorch.write(torch.export.export(model, (), small_inputs()), path, portable=True)
    return read_program(path)


def changed(program, change):
    plan = copy.deepcopy(program.plan)
    change(plan)
    return program.rebuilt(plan)


def a_number_for_a_tensor(plan):
    number = next(k for k, value in enumerate(plan.values) if type(value.val).__name__ == "Int")
    plan.chains[0].instructions[-1].instr_args.args[0] = number


def test_a_program_that_ends_its_process_is_an_error_and_the_next_one_runs(program):
    run = runtime_executorch.open_portable(changed(program, lambda plan: None))
    expected = run(FEEDS)
    with pytest.raises(RoastError, match=r"ended the process \(SIGABRT\)"):
        runtime_executorch.open_portable(changed(program, a_number_for_a_tensor))(FEEDS)
    # What was open in that process is gone with it, and says so.
    with pytest.raises(RoastError, match="the process that had it has ended"):
        run(FEEDS)
    again = runtime_executorch.open_portable(changed(program, lambda plan: None))(FEEDS)
    assert all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))


def test_memory_that_a_program_plans_is_limited(program, monkeypatch):
    data = changed(program, lambda plan: setattr(plan, "non_const_buffer_sizes", [0, 3 << 30]))
    monkeypatch.setenv(budget.MEMORY, "4")
    runtime_executorch.open_portable(data)
    monkeypatch.setenv(budget.MEMORY, "2")
    with pytest.raises(RoastError, match="executorch cannot load the file"):
        runtime_executorch.open_portable(data)


def test_a_run_that_takes_too_long_is_ended(program, monkeypatch):
    data = changed(program, lambda plan: None)
    runtime_executorch.open_portable(data)
    runtime_executorch.PROCESS._child.send_signal(signal.SIGSTOP)
    monkeypatch.setenv(budget.SECONDS, "0.5")
    with pytest.raises(RoastError, match=budget.SECONDS):
        runtime_executorch.open_portable(data)


@pytest.mark.parametrize("header", [b"\xff" * 8, b"\0" * 8, b"\x02\0\0\0\0\0\0\0{}", b"\x01\0\0\0\0\0\0\0{"])
def test_an_answer_that_is_none_is_an_error(tmp_path, header):
    (tmp_path / "answer").write_bytes(header)
    with (tmp_path / "answer").open("rb") as file, pytest.raises((ValueError, KeyError)):
        executorch_process._receive(file)
