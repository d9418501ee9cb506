"""A disk that fills up while a file is written: one message, nothing left behind, and the process goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")

ROOT = Path(__file__).resolve().parents[1]

CHILD = """
import json, resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from roast_export import compress, export, save
from roast_export.errors import ExportError
from tests.models import Small, small_inputs

folder = Path(sys.argv[1])
model, inputs = compress(Small().eval(), ratio=8), small_inputs()
writers = {"save": lambda path: save(model, path, inputs)}
for to in ("onnx", "torchscript", "lite", "pt2"):
    writers[to] = lambda path, to=to: export(model, path, to=to, example_inputs=inputs, verify=False)

def said_by(write, path):
    try:
        write(path)
        return "written"
    except ExportError as error:
        return str(error)

free = {name: said_by(write, folder / f"{name}.bin") for name, write in writers.items()}
# What is written past the limit is refused, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
(folder / "full").mkdir()
full = {name: said_by(write, folder / "full" / f"{name}.bin") for name, write in writers.items()}
print(json.dumps([free, full]))
"""


def test_each_writer_says_so_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    free, full = json.loads(done.stdout.splitlines()[-1])
    assert free == dict.fromkeys(free, "written")
    assert {name: text.rpartition(": ")[2] for name, text in full.items()} == dict.fromkeys(
        free, "File too large"
    )
    assert list((tmp_path / "full").iterdir()) == []
