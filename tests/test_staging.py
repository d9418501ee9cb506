"""A folder of exported files takes the place of files only."""

import os

import pytest

from roast_export.errors import ExportError
from roast_export.files import staging

IN_THE_WAY = {
    "link": lambda path: path.symlink_to(path.parent.parent / "kept"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    target, kept = tmp_path / "out", tmp_path / "kept"
    target.mkdir()
    kept.write_text("kept")
    IN_THE_WAY[kind](target / "model.onnx")
    before = os.lstat(target / "model.onnx")
    with (
        pytest.raises(ExportError, match=r"is a link or no ordinary file"),
        staging(target) as made,
    ):
        (made / "model.onnx").write_text("new")
    assert os.lstat(target / "model.onnx").st_ino == before.st_ino
    assert kept.read_text() == "kept"


def test_control_a_file_is_replaced(tmp_path):
    target = tmp_path / "out"
    for text in ("first", "second"):
        with staging(target) as made:
            (made / "model.onnx").write_text(text)
        assert (target / "model.onnx").read_text() == text
