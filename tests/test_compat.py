"""An exported file in older onnxruntimes, which `make test` installs into folders of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from roast_export import compress, export, ort_library_path
from roast_export.errors import RoastError

FOLDER = Path(sys.prefix) / "compat"
VERSIONS = ["1.20.1", "1.23.2", version("onnxruntime")]
BATCHES = (1, 3, 8)

RUN = """
import json, sys
import numpy as np
import onnxruntime

model, library, folding, *batches = sys.argv[1:]
options = onnxruntime.SessionOptions()
if library:
    options.register_custom_ops_library(library)
if folding == "off":
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_outputs()]
for path in batches:
    outputs = session.run(None, dict(np.load(path)))
    np.savez(path.replace("in", "out"), **dict(zip(names, outputs, strict=True)))
print(json.dumps([onnxruntime.__version__, "torch" in sys.modules]))
"""


class Net(nn.Module):
    """A table and a perceptron; the rows themselves are an output, to be compared bit by bit."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 32)
        self.up = nn.Linear(32, 96)
        self.down = nn.Linear(96, 50)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = self.table(ids)
        return {"rows": rows, "scores": self.down(torch.relu(self.up(rows + x)))}


def inputs(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, 200, (batch, 6), generator=generator)
    return {"ids": ids, "x": torch.randn(batch, 6, 32, generator=generator)}


Outputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, list[Outputs]]:
    """An exported file, and what PyTorch makes of every batch."""
    folder = tmp_path_factory.mktemp("compat")
    model = compress(Net(), 20, min_params=1024).eval()
    shapes = {"ids": {0: "batch"}, "x": {0: "batch"}}
    export(model, folder / "m.onnx", example_inputs=inputs(2), dynamic_shapes=shapes, verify=False)
    expected = []
    for batch in BATCHES:
        values = inputs(batch)
        np.savez(folder / f"in{batch}.npz", **{name: value.numpy() for name, value in values.items()})
        with torch.no_grad():
            expected.append({name: value.numpy() for name, value in model(**values).items()})
    return folder / "m.onnx", expected


def run(model: Path, wanted: str, library: str, folding: str) -> list[Outputs]:
    """Outputs of every batch, from a process in which that onnxruntime comes first."""
    environment = dict(os.environ)
    if wanted != version("onnxruntime"):
        if not (FOLDER / wanted / ".ready").is_file():
            pytest.skip(f"onnxruntime {wanted} is not in {FOLDER}; `make test` puts it there")
        environment["PYTHONPATH"] = str(FOLDER / wanted)
    batches = [str(model.parent / f"in{batch}.npz") for batch in BATCHES]
    command = [sys.executable, "-c", RUN, str(model), library, folding, *batches]
    done = subprocess.run(command, env=environment, cwd=model.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [wanted, False]
    return [dict(np.load(model.parent / f"out{batch}.npz")) for batch in BATCHES]


def agree(found: Outputs, expected: Outputs) -> bool:
    """Rows bit by bit, scores within 80 roundings of the largest."""
    bound = 1e-5 * np.abs(expected["scores"]).max()
    near = bool((np.abs(found["scores"] - expected["scores"]) <= bound).all())
    return found["rows"].tobytes() == expected["rows"].tobytes() and near


@pytest.mark.parametrize("folding", ["on", "off"])
@pytest.mark.parametrize("path", ["portable", "native"])
@pytest.mark.parametrize("wanted", VERSIONS)
def test_an_exported_file_runs(exported, wanted, path, folding):
    model, expected = exported
    library = ""
    if path == "native":
        try:
            library = ort_library_path()
        except RoastError as error:
            pytest.skip(str(error))
    found = run(model, wanted, library, folding)
    assert [agree(f, e) for f, e in zip(found, expected, strict=True)] == [True] * len(BATCHES)


@pytest.mark.parametrize("name", ["rows", "scores"])
def test_control_another_value_does_not_agree(exported, name):
    model, expected = exported
    found = run(model, version("onnxruntime"), "", "on")[0]
    assert agree(found, expected[0])
    found[name].flat[-1] += np.float32(0.01)
    assert not agree(found, expected[0])


@pytest.mark.parametrize("wanted", VERSIONS)
def test_control_an_old_onnxruntime_refuses_a_broken_file(exported, tmp_path, wanted):
    model, _ = exported
    (tmp_path / "m.onnx").write_bytes(model.read_bytes().replace(b"RoastEmbedding", b"RoastEmbeddinX", 1))
    with pytest.raises(AssertionError, match=r"RoastEmbeddi"):
        run(tmp_path / "m.onnx", wanted, "", "on")
