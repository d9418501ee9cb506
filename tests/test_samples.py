"""The samples as a reader runs them: each a program of its own, in a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

pytest.importorskip("sklearn")

SAMPLES = Path(__file__).parent.parent / "samples"


def run(folder, name, *arguments):
    """Everything the sample prints. Its files go to folder/out, as they do by default."""
    return subprocess.run(
        [sys.executable, str(SAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def figures(line):
    """Every number in a line of a table."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?", line)
    return [float(text.replace(",", "")) for text in found]


def row(output, start):
    """The figures of the last line that begins like this."""
    lines = [line for line in output.splitlines() if line.startswith(start)]
    assert lines, output
    return figures(lines[-1].removeprefix(start))


def dense_initializers(path, smallest):
    model = onnx.load(path)
    return [
        t.name
        for t in model.graph.initializer
        if len(t.dims) > 1 and onnx.numpy_helper.to_array(t).size >= smallest
    ]


@pytest.mark.slow
def test_digits_are_recognised_20x_smaller(tmp_path):
    result = run(tmp_path, "digits.py")
    assert result.returncode == 0, result.stderr
    dense, *small = (
        row(result.stdout, name)
        for name in (
            "dense, PyTorch",
            "ROAST, PyTorch",
            "ROAST, ONNX Runtime, native operators",
            "ROAST, ONNX Runtime, no library",
        )
    )
    assert dense[0] == 167178
    assert dense[2] > 95
    for parameters, size, accuracy, difference in small:
        assert parameters < dense[0] / 18
        assert size < dense[1] / 15
        assert dense[2] - accuracy <= 2
        assert difference < 1e-4
    assert "$ roast-export out/digits.pt --to onnx" in result.stdout
    assert (tmp_path / "out" / "digits.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert dense_initializers(tmp_path / "out" / "digits.onnx", 1000) == []


def test_control_digits_compressed_too_far_are_refused(tmp_path):
    result = run(tmp_path, "digits.py", "--ratio", "5000")
    assert result.returncode == 1, result.stdout + result.stderr
    assert row(result.stdout, "largest loss of accuracy")[0] > 2


def check_bert(result, folder):
    assert result.returncode == 0, result.stderr
    (dense,), (array,), (kept,) = (
        row(result.stdout, name)[1:] for name in ("dense parameters", "array", "never compressed")
    )
    (size,), (limit,) = (row(result.stdout, name) for name in ("exported file", "largest file allowed"))
    path = folder / "out" / "bert.onnx"
    assert size == path.stat().st_size
    graph = onnx.load(path).graph
    layers = sum(node.domain == "ai.roast" for node in graph.node)
    least = 1.02 * (array + kept) + 65536 + 1024 * layers
    assert array < size <= least
    assert size <= limit <= least + 16384 + 1024 * len(graph.node)
    assert row(result.stdout, "export and proof")[1] < 6e9
    (grown,) = row(result.stdout, "memory of a native session")
    (dense_grown,) = row(result.stdout, "memory of a dense session")
    axes = [dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim]
    assert axes == ["batch", "sequence"] * 2
    assert (folder / "out" / "bert.html").stat().st_size > 0
    return dense, array, size, grown, dense_grown


def test_a_small_bert(tmp_path):
    arguments = ("--layers", "2", "--hidden", "128", "--vocabulary", "1000", "--ratio", "20")
    dense, array, *_ = check_bert(run(tmp_path, "bert.py", *arguments), tmp_path)
    assert array < dense / 18


@pytest.mark.slow
def test_bert_base_100x_smaller(tmp_path):
    """109 million parameters: at most 6 GB, and a fifth of the dense model's memory."""
    dense, array, size, grown, dense_grown = check_bert(run(tmp_path, "bert.py"), tmp_path)
    assert dense == 4 * 109482240
    assert array < dense / 99
    assert size < dense / 85
    assert grown < dense_grown / 5


@pytest.mark.slow
def test_a_recommender_learns_with_tables_that_never_exist(tmp_path):
    result = run(tmp_path, "recommender.py", "--shrink", "10", "--steps", "150", "--ratio", "100")
    assert result.returncode == 0, result.stderr
    before, trained = row(result.stdout, "before training")[0], row(result.stdout, "trained, PyTorch")[0]
    assert before < 0.6
    assert trained > before + 0.1
    for name in ("native operators", "no library"):
        area, difference = row(result.stdout, f"ONNX Runtime, {name}")
        assert abs(area - trained) <= 1e-4
        assert difference < 1e-4
    assert "26 tables of 1,0" in result.stdout
    path = tmp_path / "out" / "recommender.onnx"
    assert path.stat().st_size < 1_100_000
    assert dense_initializers(path, 50_000) == []
