"""torch's archives, deflated: every reader finds what was written, at the places that torch asks for."""

import zipfile
from pathlib import Path

import pytest
import torch
from models import Small, small_inputs
from torch import nn

import roast_export
from roast_export.program import quiet
from roast_export.torch_zip import LINE, LOCAL_HEADER_BYTES, SOURCE_RANGES, TEXT, deflated


@pytest.fixture
def written(tmp_path):
    """(what torch wrote, the deflated copy)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 5)).eval()
    path = tmp_path / "m.ts"
    with quiet(), deflated(path) as large:
        torch.jit.save(torch.jit.script(model), large, _extra_files={"x.json": "{}" * 500})
        plain = large.getvalue()
    (tmp_path / "plain").mkdir()
    copy = tmp_path / "plain" / "m.ts"
    copy.write_bytes(plain)
    return copy, path


def test_members_are_the_same(written):
    plain, path = (zipfile.ZipFile(p) for p in written)
    assert path.testzip() is None
    kept = [name for name in plain.namelist() if not name.endswith(SOURCE_RANGES)]
    assert path.namelist() == kept
    assert len(kept) < len(plain.namelist())
    assert all(path.read(name) == plain.read(name) for name in kept)


def test_text_is_deflated_and_tensors_are_not(written):
    with zipfile.ZipFile(written[1]) as archive:
        members = archive.infolist()
    for member in members:
        text = member.filename.endswith(TEXT)
        assert member.compress_type == (zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED)
    assert any("/data/" in m.filename for m in members if m.compress_type == zipfile.ZIP_STORED)
    assert written[1].stat().st_size < written[0].stat().st_size


def test_what_is_stored_begins_at_a_line(written):
    """Readers map tensors into memory, so their first byte matters."""
    content = written[1].read_bytes()
    with zipfile.ZipFile(written[1]) as archive:
        for member in archive.infolist():
            if member.compress_type == zipfile.ZIP_STORED:
                at = member.header_offset
                lengths = (content[at + 26 : at + 28], content[at + 28 : at + 30])
                name, extra = (int.from_bytes(b, "little") for b in lengths)
                begin = at + LOCAL_HEADER_BYTES + name + extra
                assert begin % LINE == 0, member.filename
                assert content[begin : begin + member.file_size] == archive.read(member)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_it(written, mmap):
    x = torch.randn(3, 70)
    with quiet(), torch.no_grad():
        plain, ours = (torch.jit.load(str(p), _restore_shapes=mmap) for p in written)
        assert torch.equal(plain(x), ours(x))
    assert torch._C.PyTorchFileReader(str(written[1])).has_record("constants.pkl")


def test_equal_models_make_equal_files(tmp_path):
    """The date is fixed and so is the order: only what torch numbers anew may differ."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with deflated(tmp_path / folder / "t.pt") as large:
            torch.save({"w": torch.arange(100.0)}, large)
    assert (tmp_path / "a" / "t.pt").read_bytes() == (tmp_path / "b" / "t.pt").read_bytes()


def half_written(path):
    with deflated(path) as large:
        large.write(b"half")
        raise RuntimeError("no")


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="no"):
        half_written(tmp_path / "m.ts")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "portable"), [("torchscript", False), ("torchscript", True), ("lite", True)]
)
def test_no_path_of_this_machine_is_in_a_file(tmp_path, target, portable):
    torch.manual_seed(0)
    small = roast_export.compress(Small().eval(), 8)
    options = {"to": target, "portable": portable, "example_inputs": small_inputs(), "verify": False}
    roast_export.export(small, tmp_path / "m.ts", **options)
    places = [str(Path(module.__file__).parent).encode() for module in (roast_export, torch)]
    assert not found_in(tmp_path / "m.ts", places)


def test_control_torch_writes_paths_of_this_machine(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "m.ts")
    assert found_in(tmp_path / "m.ts", [str(Path(torch.__file__).parent).encode()])


def found_in(path, places):
    with zipfile.ZipFile(path) as archive:
        texts = [archive.read(name) for name in archive.namelist()]
    return [place for place in places for text in texts if place in text]
