"""The libraries of `make cross`, run on the processors they are for: every instruction set, bit by bit.

ARM runs under qemu-user. That a result is right says nothing about how fast a real processor gives it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from roast_export.mapping import Mapping
from tests.emulated import (
    AVX2,
    MACHINES,
    NEON,
    Case,
    Machine,
    available_isas,
    gather,
    linear,
    rows,
    run,
)
from tests.mappings import pattern
from tests.test_native_kernel import LARGE, assert_same_bits
from tests.test_native_linear import LIMIT, MAPS, inputs, worst

VECTORS = json.loads((Path(__file__).parent / "vectors" / "mapping.json").read_text())["vectors"]


@pytest.fixture(params=MACHINES, ids=lambda machine: machine.platform, scope="module")
def machine(request: pytest.FixtureRequest) -> Machine:
    reason = request.param.missing()
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def isas(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    found = available_isas(machine, tmp_path_factory.mktemp("isas"))
    return [isa for isa in machine.isas if found >> isa & 1]


def test_a_machine_offers_its_instruction_sets(machine, tmp_path):
    found = available_isas(machine, tmp_path)
    expected = sum(1 << isa for isa in machine.isas)
    # Of x86-64, this machine may lack some.
    assert found & ~expected == 0
    assert found != 0
    assert machine.processor == "x86_64" or found == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_golden_vectors(machine, isas, dtype, tmp_path):
    cases, expected = [], []
    for vector in VECTORS:
        m = Mapping.from_list(vector["mapping"])
        memory = pattern(m.n_memory, dtype)
        for isa in isas:
            for table in (False, True):
                cases.append(gather(m, memory, scale=vector["scale"], isa=isa, table=table))
                with np.errstate(over="ignore"):  # one vector's weights are infinite
                    expected.append(m.weight(memory, vector["scale"]))
    check(run(machine, cases, tmp_path), expected)


@pytest.mark.parametrize("name", LARGE)
def test_large_maps(machine, isas, name, tmp_path):
    m = LARGE[name]
    memory = pattern(m.n_memory)
    weight = m.weight(memory, -1.7)
    ids = np.arange(0, m.numel // 3, 1999, dtype=np.int64)[::-1].copy()
    for isa in isas:
        cases = [
            gather(m, memory, scale=-1.7, isa=isa, table=True),
            rows(m, memory, 3, ids, scale=-1.7, isa=isa),
        ]
        check(run(machine, cases, tmp_path), [weight, weight.reshape(-1, 3)[ids]])


@pytest.mark.parametrize("scale", [0.37, 1e-30, 1.0])
def test_subnormal_numbers_stay_exact(machine, isas, scale, tmp_path):
    m = LARGE["matrices"]
    memory = pattern(m.n_memory) * np.float32(1e-9 if scale == 1e-30 else 2.0**-140)
    assert (np.abs(memory * np.float32(scale)) < 2.0**-126).mean() > 0.1
    cases = [gather(m, memory, scale=scale, isa=isa) for isa in isas]
    check(run(machine, cases, tmp_path), [m.weight(memory, scale)] * len(isas))


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_linear_layers(machine, isas, dtype, tmp_path):
    cases, layers = [], []
    for m in MAPS.values():
        if m.numel > 40_000:
            continue
        memory = pattern(m.n_memory, dtype)
        for n in (1, 3, 4, 17):
            x, bias = inputs(n, m)
            for isa in isas:
                cases.append(linear(m, memory, x, bias, scale=-0.37, isa=isa, table=n != 3))
                layers.append((m, x, bias, m.weight(memory, -0.37).reshape(m.shape[0], -1)))
    assert len({id(m) for m, *_ in layers}) > 10
    for output, (m, x, bias, weight) in zip(run(machine, cases, tmp_path), layers, strict=True):
        assert output is not None
        assert worst(output.reshape(len(x), m.shape[0]), x, weight, bias) < LIMIT


def test_control_another_hash_gives_other_bits(machine, tmp_path):
    m = LARGE["matrices"]
    fields = m.to_list()
    fields[12] += 1  # coefficient a of hash1
    memory = pattern(m.n_memory)
    (output,) = run(machine, [Case(0, fields, memory, m.numel)], tmp_path)
    assert output is not None
    assert (output != m.weight(memory).ravel()).any()


def test_control_a_bad_record_and_a_bad_id_are_refused(machine, tmp_path):
    m = LARGE["matrices"]
    memory = pattern(m.n_memory)
    bad = [m.to_list()[:-1], [2, *m.to_list()[1:]]]
    cases = [Case(0, fields, memory, m.numel) for fields in bad]
    cases.append(rows(m, memory, 513, np.array([0, 700], np.int64)))
    cases.append(gather(m, memory, isa=NEON if machine.processor == "x86_64" else AVX2))
    assert run(machine, cases, tmp_path) == [None] * 4


def check(outputs: list[np.ndarray | None], expected: list[np.ndarray]) -> None:
    assert len(outputs) == len(expected) > 0
    for output, want in zip(outputs, expected, strict=True):
        assert output is not None
        assert_same_bits(output, want)
