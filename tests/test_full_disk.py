"""A disk that fills up while a file is written: one message, nothing left behind, and the process goes on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from roast_export import cli, measure
from roast_export.errors import RoastError

resource = pytest.importorskip("resource")

FULL = OSError(28, "No space left on device")

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


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def test_measuring_without_room_for_its_inputs_is_no_bug(monkeypatch, tmp_path):
    monkeypatch.setattr(np, "savez", raising(FULL))
    with pytest.raises(RoastError, match="could not be measured: No space left on device"):
        measure.measure(tmp_path / "m.onnx", {"x": np.zeros(1)}, native=False)


def test_a_reader_that_goes_is_no_error(monkeypatch):
    monkeypatch.setattr(cli, "inspect", raising(BrokenPipeError(32, "Broken pipe")))
    done = CliRunner().invoke(cli.inspect_command, ["m.pt"])
    assert (done.exit_code, done.output) == (1, "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "error: No space left on device; check the room on the disk"),
        (OSError(13, "Permission denied", "/tmp/there"), "error: /tmp/there: Permission denied; check"),
        (MemoryError(), "error: there is not enough memory; free some"),
    ],
)
def test_what_the_system_refuses_is_no_bug_of_ours(monkeypatch, error, said):
    monkeypatch.setattr(cli, "inspect", raising(error))
    done = CliRunner().invoke(cli.inspect_command, ["m.pt"])
    assert done.exit_code == 1
    assert said in done.output
    assert "bug" not in done.output
