"""What an output replaces, and what it must leave alone."""

import os
import stat

import pytest

from roast_export.errors import ExportError
from roast_export.files import replacing


def write(path, text="new", data=None):
    with replacing(path) as target:
        target.write_text(text)
        if data is not None:
            target.with_name(f"{target.name}.data").write_text(data)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("old")

    def fail():
        with replacing(path) as target:
            target.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ExportError, match="No space left"):
        fail()
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["m.onnx"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "m.onnx", tmp_path / "link.onnx"
    real.write_text("old")
    link.symlink_to(real)
    write(link)
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device"])
def test_special_files_are_refused(tmp_path, kind):
    path = tmp_path / "m.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to(os.devnull)
    else:
        path = type(path)(os.devnull)
    with pytest.raises(ExportError, match="is a device, a pipe or a socket"):
        write(path)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_mode_and_owner_are_kept(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 1234, 1234)
    write(path)
    found = path.stat()
    assert path.read_text() == "new"
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert os.geteuid() != 0 or (found.st_uid, found.st_gid) == (1234, 1234)


def test_data_goes_with_the_file_that_names_it(tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    write(path, "tensors in m.onnx.data", data="old data")
    write(path, "tensors in m.onnx.data", data="new data")
    assert data.read_text() == "new data"
    write(path, "small")
    assert not data.exists()


@pytest.mark.parametrize("old", ["says nothing of data", None])
def test_data_of_somebody_else_is_left_alone(tmp_path, old):
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    data.write_text("a diary")
    if old is not None:
        path.write_text(old)
    write(path, "small")
    assert data.read_text() == "a diary"
    with pytest.raises(ExportError, match="does not belong to"):
        write(path, "tensors in m.onnx.data", data="new data")
    assert (path.read_text(), data.read_text()) == ("small", "a diary")
