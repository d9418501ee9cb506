"""The import sample as a reader runs it, on a small model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

SAMPLE = Path(__file__).parent.parent / "samples" / "import_fakeroast.py"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pareto", "roast"])
def test_a_fakeroast_encoder_is_imported_proved_and_exported(tmp_path, kind):
    sizes = ["--layers", "2", "--hidden", "128", "--vocabulary", "2000"]
    done = subprocess.run(
        [sys.executable, str(SAMPLE), "--kind", kind, *sizes],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "15 virtual weights, 715,008 elements, 715,008 table entries proved" in done.stdout
    assert "PASSED" in done.stdout
    exported = (tmp_path / "out" / "fakeroast.onnx").stat().st_size
    assert exported < (tmp_path / "out" / "fakeroast.pt").stat().st_size / 20
