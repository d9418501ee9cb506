"""The benchmark's own parts on tiny sizes. Nothing here asserts a time."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from bench import child, graphs, layers, machine, markdown, models, plan, plots, results, text, timing
from bench.peers import Peer, Truth, WrongResult, check
from roast_export.libraries import ort_library_path

FACTS = {
    "cpu": "a processor",
    "cores": 2,
    "caches": {"L2": 1 << 20},
    "memory_bytes": 1 << 34,
    "system": "Linux x86_64",
    "date": "2026-01-01",
    "load_before": 0.1,
    **dict.fromkeys(("onnxruntime", "onnx", "torch", "numpy", "roast_export", "python"), "1.0"),
}


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """What the tiny form finds, each group in this process."""
    ort_library_path()
    folder = tmp_path_factory.mktemp("bench")
    library = machine.build_loops(folder / "loops")
    found = results.Results("tiny", FACTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "pin", lambda threads: [])  # the other tests keep their cores
        for group in plan.groups(plan.TINY):
            rows = child.measure_group(group, library, folder / "scratch")
            rows.pop("cores")
            found.add(rows)
    assert not list((folder / "scratch").iterdir()), "files of a group are deleted with it"
    return found


def test_every_peer_has_a_row(tables):
    peers = {"dense", "int8", "int4", "fp16", "roast", "portable", "hashed"}
    for batch in plan.TINY.batches:
        assert {row["peer"] for row in tables.tables["layers"] if row["batch"] == batch} == peers
    assert {row["peer"] for row in tables.tables["embeddings"]} == {"dense", "roast", "portable"}
    assert {row["peer"] for row in tables.tables["models"]} == {"dense", "int8", "roast"}
    subjects = {row["subject"] for row in tables.tables["memory"]}
    assert subjects == {"layer 64x96", "embedding 300x16", "model mlp"}


def test_rows_are_finite_and_consistent(tables):
    for name in ("layers", "embeddings", "models"):
        for row in tables.tables[name]:
            assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
            assert row["runs"] >= timing.LEAST_ROUNDS
            assert row["speedup"] == 1 or row["peer"] != "dense"
            assert np.isfinite([value for value in row.values() if isinstance(value, float)]).all()
    assert all(row["file_bytes"] > 0 for row in tables.tables["memory"])


def test_json_comes_back_and_is_small(tables, tmp_path):
    tables.failed["a group"] = "a reason"
    tables.save(tmp_path / "benchmarks.json")
    tables.failed.clear()
    data = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    assert data["schema"] == results.SCHEMA
    back = results.load(tmp_path / "benchmarks.json")
    assert back.failed == {"a group": "a reason"}
    for name, rows in tables.tables.items():
        assert len(back.tables[name]) == len(rows)
        for row, other in zip(rows, back.tables[name], strict=True):
            assert list(other) == results.COLUMNS[name]
            assert other == {
                key: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
                for key, value in row.items()
            }
    again = tmp_path / "again.json"
    back.save(again)
    assert again.read_bytes() == (tmp_path / "benchmarks.json").read_bytes()


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"schema": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match="schema 0"):
        results.load(tmp_path / "old.json")


def test_the_page_shows_machine_method_and_every_table(tables, tmp_path):
    page = markdown.render(tables, [tmp_path / "bench-layers.png"])
    for expected in ("a processor", "## Method", "### 64x96, 1 thread", "300x16, 8", "mlp, batch 1"):
        assert expected in page
    assert "![bench-layers](images/bench-layers.png)" in page
    columns = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert min(columns) > 5
    assert "Not measured" not in page
    tables.failed["a group"] = "a reason"
    assert "- a group: a reason" in markdown.render(tables, [])
    tables.failed.clear()


def test_an_empty_page_has_no_empty_sections():
    page = markdown.render(results.Results("tiny", FACTS), [])
    assert "## Layers" not in page
    assert "## Machine" in page


def test_pictures(tables, tmp_path):
    pytest.importorskip("matplotlib")
    written = plots.draw(tables, tmp_path)
    assert len(written) == 4
    assert all(0 < path.stat().st_size < 150_000 for path in written)
    assert plots.draw(results.Results("tiny", FACTS), tmp_path / "none") == []


def test_terminal_tables_are_not_cut_off(tables):
    from rich.console import Console

    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    text.show(console, tables.tables, 1.0)
    shown = console.export_text()
    assert "dense/this" in shown
    assert "\u2026" not in shown


def test_full_form_is_what_was_asked_for():
    form = plan.FULL
    assert form.batches == (1, 4, 8, 16, 32, 128, 512)
    assert form.ratios == (10, 100, 1000)
    assert set(form.models) == set(models.MODELS)
    names = [group["name"] for group in plan.groups(form)]
    assert len(names) == len(set(names)) == 2 * (len(form.layers) + len(form.embeddings)) + len(form.models)
    assert plan.groups(form, "4096x4096, 1") == [
        g for g in plan.groups(form) if "layer 4096x4096, 1" in g["name"]
    ]


def test_a_wrong_kernel_cannot_win():
    """One element of a product that is off by more than rounding stops the comparison."""
    weight = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    truths = layers._products(np.ones((1, 64), np.float32), {"roast 4x": weight})
    peer = Peer("roast", None, 4, bound=8 * 8 * layers.EPSILON)
    truth = truths["roast 4x"]
    assert check(peer, truth.values, truth) == 0
    wrong = truth.values.copy()
    wrong[0, 3] += 1e-3
    with pytest.raises(WrongResult, match="beyond the bound"):
        check(peer, wrong, truth)
    with pytest.raises(WrongResult, match="finite"):
        check(peer, np.full_like(wrong, np.nan), truth)
    with pytest.raises(WrongResult, match="shape"):
        check(peer, wrong.T, truth)
    with pytest.raises(WrongResult, match="relative error"):
        check(replace(peer, bound=None), np.zeros_like(wrong), truth)
    with pytest.raises(WrongResult):
        check(replace(peer, bound=0.0), np.nextafter(truth.values, np.float32(9)), Truth(truth.values, 1.0))


@pytest.mark.parametrize("shape", [(5, 33), (32, 64)])
def test_int4_is_within_half_a_step(tmp_path, shape):
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    graphs.write_int4(tmp_path / "int4.onnx", weight)
    found = (
        timing.session(tmp_path / "int4.onnx", 1).run(None, {"x": np.eye(shape[1], dtype=np.float32)})[0].T
    )
    step = np.abs(weight).max() / 8
    # The last level is 7, not 8, so that one end of a block may be a whole step off; inputs are int8.
    assert np.abs(found - weight).max() <= 1.05 * step


def test_the_dense_twin_has_only_standard_operators(tmp_path):
    case = models.MODELS["cnn"](32)
    dense, _, roast = models._files(case, tmp_path)
    twin = onnx.load(dense.file)
    assert {node.domain for node in twin.graph.node} == {""}
    assert not twin.functions
    onnx.checker.check_model(twin)
    assert dense.file.stat().st_size > roast.file.stat().st_size


def test_element_hashing_has_a_slot_and_a_sign_of_its_own_for_each_element():
    mapping = graphs.hashed_mapping((48, 64), 4)
    starts, counts = np.unique(mapping.indices(), return_counts=True)
    assert len(starts) > 0.5 * mapping.n_memory
    assert counts.max() < 20
    assert 0.4 < (mapping.signs() > 0).mean() < 0.6


def test_a_peer_that_is_too_slow_stops_after_the_least_rounds():
    import time

    calls = {"fast": 0, "slow": 0}

    def run(name, seconds):
        def once():
            calls[name] += 1
            time.sleep(seconds)

        return once

    samples = timing.alternate({"fast": run("fast", 0.0), "slow": run("slow", 0.02)}, 0.05, least=2)
    assert calls["slow"] == 2 + 2
    assert len(samples["fast"].first) >= len(samples["slow"].first) == 2
