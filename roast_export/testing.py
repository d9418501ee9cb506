"""For test suites of people who export models: one assertion that is the whole proof.

from roast_export.testing import assert_export_matches

def test_the_exported_model():
    assert_export_matches(model(), "model.onnx", example_inputs=inputs(), require=["onnxruntime native"])
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import nn

from roast_export.matrix import Matrix
from roast_export.program import Inputs
from roast_export.verify_all import verify_all

Paths: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"


def assert_export_matches(
    model: nn.Module,
    path_or_paths: Paths,
    *,
    example_inputs: Inputs | None = None,
    runtimes: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    require: Sequence[str] = (),
) -> None:
    """Compare exported files with the model they came from, as roast-verify does.

    example_inputs: arguments of forward, in order or by name; a model that `load` opened brings its own.
    runtimes, atol, rtol: as in `verify`.
    require: runtimes that must take part, each in at least one of the files.

    Raises:
        AssertionError: something differs, a required runtime is missing, or nothing was verified. The
            text names the cells that failed, and for each the layer, the worst element with its index,
            both values and the bound.
        InputError: arguments do not fit, or a runtime is not known.
    """
    __tracebackhide__ = True
    paths = [path_or_paths] if isinstance(path_or_paths, str | os.PathLike) else path_or_paths
    matrix = verify_all(
        model,
        [Path(path) for path in paths],
        require=require,
        example_inputs=example_inputs,
        runtimes=runtimes,
        atol=atol,
        rtol=rtol,
    )
    if not matrix.passed:
        raise AssertionError(_text(matrix))


def _text(matrix: Matrix) -> str:
    """The report, its verdict first: pytest's summary shows one line."""
    return f"{matrix.verdict}\n\n{matrix}"
