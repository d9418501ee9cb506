"""What is checked and what is loaded are the same bytes, whatever happens at the path meanwhile."""

import importlib
import io
import os
import shutil
import socket
import stat
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import Small, small_inputs
from torch import nn

import roast_export
from roast_export import open_file
from roast_export.errors import InputError, LoadError, RoastError
from roast_export.facts import read_facts
from roast_export.inputs import read_inputs
from roast_export.inspect import inspect
from roast_export.reading import copied, opened

# `roast_export.load` is the function.
loading = importlib.import_module("roast_export.load")
HERE = f"{__name__}:"
SAMPLES = "data/sample_inputs/model.pt"


class Payload:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


class Writes(nn.Module):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.place)
        return x


def make_small() -> nn.Module:
    torch.manual_seed(7)
    return roast_export.compress(Small().eval(), 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model = make_small()
    roast_export.save(model, folder / "m.pt", small_inputs())
    torch.save(model.state_dict(), folder / "s.pt")
    for target, name in (("onnx", "m.onnx"), ("torchscript", "m.ts"), ("pt2", "m.pt2")):
        options = {"to": target, "example_inputs": small_inputs(), "verify": False}
        roast_export.export(model, folder / name, **options)
    (folder / "data").mkdir()
    options = {"data_file": "m.data", "example_inputs": small_inputs(), "verify": False}
    roast_export.export(model, folder / "data" / "m.onnx", **options)
    torch.manual_seed(8)
    other = roast_export.compress(Small().eval(), 8)
    roast_export.export(other, folder / "other.onnx", example_inputs=small_inputs(), verify=False)
    return folder


def with_member(source: Path, target: Path, change) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def hostile_archive(files: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An archive that writes a file when it is opened, and the file."""
    sentinel, buffer = tmp_path / "ran", io.BytesIO()
    torch.save(Payload(f"open({str(sentinel)!r}, 'w').close()"), buffer)
    blob = buffer.getvalue()
    path = with_member(
        files / "m.pt", tmp_path / "hostile.pt", lambda n, b: blob if n.endswith(SAMPLES) else b
    )
    return path, sentinel


def hostile_script(files: Path, tmp_path: Path) -> tuple[Path, Path]:
    sentinel = tmp_path / "ran"
    torch.jit.script(Writes(str(sentinel))).save(str(tmp_path / "writes.ts"))
    hostile = tmp_path / "hostile.ts"
    with zipfile.ZipFile(files / "m.ts") as ours, zipfile.ZipFile(tmp_path / "writes.ts") as other:
        note = next(name for name in ours.namelist() if name.endswith("extra/roast.json"))
        with zipfile.ZipFile(hostile, "w") as target:
            for name in other.namelist():
                target.writestr(name, other.read(name))
            target.writestr("writes/extra/roast.json", ours.read(note))
    return hostile, sentinel


def turn_link(path: Path, hostile: Path) -> None:
    path.unlink()
    path.symlink_to(hostile)


def write_over(path: Path, hostile: Path) -> None:
    content = hostile.read_bytes()
    with path.resolve().open("r+b") as file:
        file.write(content)
        file.truncate(len(content))


@pytest.fixture(params=[turn_link, write_over], ids=["turned link", "written over"])
def swap(request):
    return request.param


def place(source: Path, tmp_path: Path) -> Path:
    """A link to a copy of a file, so that both kinds of swap can be made."""
    own = tmp_path / f"own{source.suffix}"
    shutil.copyfile(source, own)
    link = tmp_path / f"link{source.suffix}"
    link.symlink_to(own)
    return link


def after(monkeypatch, module, name: str, then) -> list[bool]:
    """Make a swap once `module.name` has answered; the list tells that it came to that."""
    real, happened = getattr(module, name), []

    def wrapped(*arguments, **options):
        found = real(*arguments, **options)
        if not happened:
            happened.append(True)
            then()
        return found

    monkeypatch.setattr(module, name, wrapped)
    return happened


def test_an_archive_that_is_swapped_after_its_check_is_not_loaded(files, tmp_path, monkeypatch, swap):
    hostile, sentinel = hostile_archive(files, tmp_path)
    path = place(files / "m.pt", tmp_path)
    happened = after(monkeypatch, loading, "runs_code", lambda: swap(path, hostile))
    opened_model = roast_export.load(path)
    assert happened
    assert not sentinel.exists()
    monkeypatch.undo()
    expected = make_small()(**small_inputs())
    assert all(map(torch.equal, opened_model(**small_inputs()).values(), expected.values()))
    with pytest.raises(LoadError, match="runs code when opened"):
        roast_export.load(path)


def test_control_the_other_archive_runs_code_where_nobody_looks(files, tmp_path):
    hostile, sentinel = hostile_archive(files, tmp_path)
    with pytest.raises(Exception):  # noqa: B017, PT011 - what torch says after it has run the code
        torch.export.load(hostile)
    assert sentinel.exists()


def test_a_script_that_is_swapped_after_its_check_is_not_run(files, tmp_path, monkeypatch, swap):
    hostile, sentinel = hostile_script(files, tmp_path)
    path = place(files / "m.ts", tmp_path)
    happened = after(monkeypatch, open_file, "script_runs_code", lambda: swap(path, hostile))
    report = roast_export.verify(make_small(), path, example_inputs=small_inputs())
    assert happened
    assert report.passed
    assert report.path == str(path)
    assert not sentinel.exists()
    monkeypatch.undo()
    with pytest.raises(RoastError, match="could do more than compute"):
        roast_export.verify(make_small(), path, example_inputs=small_inputs())


def test_a_proof_is_of_one_file(files, tmp_path, monkeypatch, swap):
    """All that is compared, and every runtime that runs it, sees the file that was opened."""
    path = place(files / "m.onnx", tmp_path)
    happened = after(monkeypatch, open_file, "open_artifact", lambda: swap(path, files / "other.onnx"))
    assert proof(path).passed
    assert happened
    monkeypatch.undo()
    assert not proof(path).passed


def test_a_checkpoint_is_opened_once(files, tmp_path, monkeypatch):
    path, wrong = place(files / "s.pt", tmp_path), tmp_path / "wrong.pt"
    torch.save({"other": torch.zeros(3)}, wrong)
    happened = after(monkeypatch, loading, "kind_of", lambda: turn_link(path, wrong))
    assert roast_export.load(path, model=HERE + "make_small") is not None
    assert happened
    with pytest.raises(LoadError, match="does not fit"):
        roast_export.load(path, model=HERE + "make_small")


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system has no paths of open files")
def test_a_safetensors_file_is_opened_once(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    (tmp_path / "a").mkdir()
    safetensors.save_file(dict(nn.Linear(4, 4).state_dict()), tmp_path / "a" / "s.safetensors")
    safetensors.save_file({"other": torch.zeros(3)}, tmp_path / "wrong.safetensors")
    path = place(tmp_path / "a" / "s.safetensors", tmp_path)
    happened = after(monkeypatch, loading, "kind_of", lambda: turn_link(path, tmp_path / "wrong.safetensors"))
    assert isinstance(roast_export.load(path, model=HERE + "make_linear"), nn.Linear)
    assert happened
    with pytest.raises(LoadError, match="does not fit"):
        roast_export.load(path, model=HERE + "make_linear")


def make_linear() -> nn.Module:
    return nn.Linear(4, 4)


def test_the_copy_is_private_and_goes(files, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with opened(files / "m.onnx") as file, copied(file, files / "m.onnx") as copy:
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
        assert copy.read_bytes() == (files / "m.onnx").read_bytes()
    assert not list(tmp_path.iterdir())
    roast_export.load(files / "m.pt")
    roast_export.verify(make_small(), files / "m.ts", example_inputs=small_inputs())
    with pytest.raises(RoastError):
        roast_export.verify(make_small(), __file__, example_inputs=small_inputs())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("roast-")]


def test_a_copy_without_room_is_refused(files, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(LoadError, match=r"has room for 10; name a larger folder in TMPDIR"):
        roast_export.load(files / "m.pt")


def test_messages_and_reports_speak_of_the_file_that_was_named(files, tmp_path):
    for name, content in {"text.ts": b"text", "half.ts": (files / "m.ts").read_bytes()[:-300]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RoastError) as found:
            roast_export.verify(make_small(), tmp_path / name, example_inputs=small_inputs())
        assert str(tmp_path / name) in str(found.value)
        assert "/roast-" not in str(found.value)
    # A file whose failures quote it: ONNX's checker names the file that it was given.
    proto = onnx.load(files / "m.onnx")
    proto.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(proto, tmp_path / "bad.onnx")
    report = proof(tmp_path / "bad.onnx")
    assert not report.passed
    assert report.path == str(tmp_path / "bad.onnx")
    assert tempfile.gettempdir() + "/roast-" not in repr(report)


# ---- Data beside an ONNX file ----


@pytest.fixture
def with_data(files, tmp_path) -> Path:
    shutil.copytree(files / "data", tmp_path / "m")
    return tmp_path / "m" / "m.onnx"


def test_data_beside_a_file_is_copied_with_it(with_data, monkeypatch):
    data = with_data.parent / "m.data"
    zeros = bytes(data.stat().st_size)
    happened = after(monkeypatch, open_file, "open_artifact", lambda: data.write_bytes(zeros))
    assert proof(with_data).passed
    assert happened
    assert not proof(with_data).passed


def proof(path: Path) -> roast_export.Report:
    """In the runtime that is not measured in a process of its own."""
    options = {"example_inputs": small_inputs(), "runtimes": ["onnx reference"]}
    return roast_export.verify(make_small(), path, **options)


def rename(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


def _outside(path: Path) -> None:
    (path.parent / "m.data").rename(path.parent.parent / "m.data")
    rename(path, "../m.data")


def _absolute(path: Path) -> None:
    rename(path, str(path.parent / "m.data"))


def _link(path: Path) -> None:
    (path.parent / "m.data").rename(path.parent.parent / "m.data")
    (path.parent / "m.data").symlink_to(path.parent.parent / "m.data")


def _hard_link(path: Path) -> None:
    os.link(path.parent / "m.data", path.parent / "again.data")


def _folder_link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (path.parent / "m.data").rename(elsewhere / "m.data")
    (path.parent / "inner").symlink_to(elsewhere)
    rename(path, "inner/m.data")


def _pipe(path: Path) -> None:
    (path.parent / "m.data").unlink()
    os.mkfifo(path.parent / "m.data")


def _gone(path: Path) -> None:
    (path.parent / "m.data").unlink()


REFUSED = r"outside of its folder|is a link|several links|is a pipe|is not an ONNX"


@pytest.mark.parametrize("change", [_outside, _absolute, _link, _hard_link, _folder_link, _pipe, _gone])
def test_data_that_onnx_refuses_is_refused(with_data, change):
    change(with_data)
    with pytest.raises(RoastError, match=REFUSED):
        proof(with_data)


# ---- Pipes, devices, folders ----


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


SPECIAL = {
    "pipe": (lambda path: os.mkfifo(path), "is a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "socket": (_socket, "is a socket"),
    "nothing": (lambda path: None, "does not exist"),
    "dead link": (lambda path: path.symlink_to("nowhere"), "does not exist"),
}
READERS = {
    "load": (lambda path: roast_export.load(path), "m.pt", LoadError),
    "safetensors": (lambda path: roast_export.load(path), "m.safetensors", LoadError),
    "inspect": (inspect, "m.onnx", LoadError),
    "verify": (
        lambda path: roast_export.verify(Small(), path, example_inputs=small_inputs()),
        "m.ts",
        RoastError,
    ),
    "inputs": (read_inputs, "in.npz", InputError),
    "facts": (read_facts, "facts.toml", InputError),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_ordinary_file_is_refused_without_reading_it(tmp_path, kind, reader):
    make, says = SPECIAL[kind]
    read, name, error = READERS[reader]
    make(tmp_path / name)
    with pytest.raises(error, match=rf"{name} {says}; \w+"):
        read(tmp_path / name)


def test_control_ordinary_files_are_read(tmp_path):
    np.savez(tmp_path / "in.npz", x=np.ones(3))
    (tmp_path / "facts.toml").write_text("[defaults]\nscale = 2.0\n")
    assert read_inputs(tmp_path / "in.npz")["x"].shape == (3,)
    assert read_facts(tmp_path / "facts.toml").defaults == {"scale": 2.0}
