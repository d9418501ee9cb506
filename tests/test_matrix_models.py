"""Four models, every format, every runtime at hand: each cell is green, and weights are equal in every bit.

`make test` runs what needs no other software than the package's own; `make mobile` adds ARM under qemu, node,
Chromium and ExecuTorch, and leaves out/matrix-<model>.html. A runtime that is not there is a skip by name.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from matrix_models import MODELS

import roast_export
from roast_export import runtime_executorch
from roast_export.matrix import Cell, Matrix
from roast_export.verify_all import verify_all

MOBILE = "ROAST_MOBILE" in os.environ
OUT = Path(__file__).parent.parent / "out"

FORMS = {
    ("onnx", False): ["onnxruntime native", "onnxruntime portable", "onnxruntime folded", "onnx reference"],
    ("ort", False): ["onnxruntime .ort native"],
    ("ort", True): ["onnxruntime .ort portable"],
    ("torchscript", False): ["torchscript native"],
    ("torchscript", True): ["torchscript portable"],
    ("lite", True): ["lite interpreter portable"],
    ("pt2", False): ["torch.export native"],
    ("pt2", True): ["torch.export portable"],
}
"""Target and `portable`, with the runtimes that must be green."""

EXTRA = {
    ("onnx", False): [
        "onnxruntime arm64 native",
        "onnxruntime-web node",
        "onnxruntime-web chromium",
    ],
    ("executorch", False): ["executorch native", "executorch arm64 native"],
    ("executorch", True): ["executorch portable", "executorch arm64 portable"],
}
"""Those of `make mobile`."""

SUFFIXES = {
    "onnx": "onnx",
    "ort": "ort",
    "torchscript": "ts",
    "lite": "ptl",
    "pt2": "pt2",
    "executorch": "pte",
}
LARGE = ("encoder", "recommender")


def file_name(target: str, portable: bool) -> str:
    return f"{target}{'-portable' if portable else ''}.{SUFFIXES[target]}"


def matrix_of(name: str, folder: Path) -> Matrix:
    """Every form of a model, in every runtime."""
    subject = MODELS[name]()
    forms = [*FORMS, *(form for form in EXTRA if form not in FORMS and MOBILE and exportable(*form))]
    for target, portable in forms:
        roast_export.export(
            subject.model,
            folder / file_name(target, portable),
            to=target,
            portable=portable,
            example_inputs=subject.inputs,
            dynamic_shapes=None if target == "executorch" else subject.dynamic,
            verify=False,
        )
    return verify_all(
        subject.model,
        [folder / file_name(*form) for form in forms],
        example_inputs=subject.inputs,
        runtimes=wanted() if MOBILE else None,
        name=name,
    )


def wanted() -> list[str]:
    """The runtimes of the matrix; what is green in them says little more in the others, and takes long."""
    return [name for forms in (FORMS, EXTRA) for names in forms.values() for name in names]


def exportable(target: str, portable: bool) -> bool:
    return runtime_executorch.unavailable() is None


def cell_of(matrix: Matrix, file: str, runtime: str) -> Cell | str | None:
    """The cell, or why the runtime was not used, or None if the matrix does not speak of it."""
    report = next((report for report in matrix.reports if Path(report.path).name == file), None)
    if report is None:
        return runtime_executorch.unavailable()
    cells = [cell for cell in matrix.cells if cell.report is report and cell.runtime == runtime]
    return cells[0] if cells else report.skipped.get(runtime)


@pytest.mark.parametrize("model", [pytest.param(m, marks=pytest.mark.xdist_group(m)) for m in MODELS])
def test_the_matrix_is_green(tmp_path, subtests, model):
    if model in LARGE and not MOBILE:
        pytest.skip("takes a minute; `make mobile` runs it")
    matrix = matrix_of(model, tmp_path)
    if MOBILE:
        matrix.save(OUT / f"matrix-{model}.html")
        matrix.save(OUT / f"matrix-{model}.txt")
    for forms in [FORMS, EXTRA] if MOBILE else [FORMS]:
        for (target, portable), runtimes in forms.items():
            for runtime in runtimes:
                with subtests.test(f"{target}{' portable' * portable} in {runtime}"):
                    check_cell(matrix, target, portable, runtime)
    assert matrix.passed, str(matrix)


def check_cell(matrix: Matrix, target: str, portable: bool, runtime: str) -> None:
    """Green, with outputs compared and every element of every weight; or a skip with its reason."""
    cell = cell_of(matrix, file_name(target, portable), runtime)
    assert cell is not None, f"the matrix does not speak of {runtime}"
    if isinstance(cell, str):
        pytest.skip(f"{matrix.model}, {runtime}: {cell}")
    assert cell.passed, str(matrix)
    assert any(check.kind == "output" for check in cell.checks)
    weights = [check for check in cell.checks if check.kind == "weight"]
    compared = {check.name.partition("#")[0] for check in weights}
    assert compared == {layer.name.partition("#")[0] for layer in cell.report.layers}
    assert all(check.bound == 0 for check in weights)


def test_control_a_cell_that_is_red_or_absent_is_seen(tmp_path):
    subject, path = MODELS["digits"](), tmp_path / file_name("onnx", False)
    options = {"dynamic_shapes": subject.dynamic, "verify": False}
    roast_export.export(subject.model, path, example_inputs=subject.inputs, **options)
    name = ["onnxruntime portable"]
    right = verify_all(subject.model, [path], example_inputs=subject.inputs, runtimes=name)
    check_cell(right, "onnx", False, name[0])
    with pytest.raises(AssertionError, match="does not speak of"):
        check_cell(right, "onnx", False, "no such runtime")
    with torch.no_grad():
        next(iter(subject.model.parameters()))[5] += 1
    wrong = verify_all(subject.model, [path], example_inputs=subject.inputs, runtimes=name)
    with pytest.raises(AssertionError):
        check_cell(wrong, "onnx", False, name[0])
