"""Archives whose members are damaged, or do not hold what their tensors take, are refused unopened."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from models import Small, small_inputs

import roast_export
from roast_export.errors import LoadError, RoastError
from roast_export.open_file import open_artifact
from roast_export.stored_tensors import check_stored

FORMS = {
    "native": ("torchscript", False, "m.ts"),
    "portable": ("torchscript", True, "p.ts"),
    "lite": ("lite", True, "m.ptl"),
    "pt2": ("pt2", False, "m.pt2"),
    "portable pt2": ("pt2", True, "p.pt2"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    small, folder = roast_export.compress(Small().eval(), 8), tmp_path_factory.mktemp("files")
    found = {"archive": folder / "m.pt"}
    roast_export.save(small, found["archive"], small_inputs())
    for form, (target, portable, name) in FORMS.items():
        found[form] = folder / name
        options = {"to": target, "portable": portable, "example_inputs": small_inputs(), "verify": False}
        roast_export.export(small, found[form], **options)
    return found


def opens(form: str, path: Path) -> None:
    if form == "archive":
        roast_export.load(path)
    else:
        open_artifact(path)


def edited(source: Path, tmp_path: Path, member: str, change) -> Path:
    """A copy with the bytes of the first member that ends in `member` changed; left out for None."""
    path, done = tmp_path / source.name, False
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            blob = old.read(name)
            if name.endswith(member) and not done:
                done, blob = True, change(blob)
            if blob is not None:
                new.writestr(name, blob)
    assert done
    return path


def a_tensor(form: str) -> str:
    """The array's member: the largest."""
    return "/data/1" if FORMS.get(form, ("pt2",))[0] in ("torchscript", "lite") else "weights/weight_0"


EVERY = ["archive", *FORMS]
SCRIPTS = ["native", "portable", "lite"]


@pytest.mark.parametrize("form", EVERY)
def test_control_what_is_written_opens(files, form):
    opens(form, files[form])


@pytest.mark.parametrize("form", EVERY)
@pytest.mark.parametrize("change", ["empty", "short", "gone"])
def test_a_tensor_without_its_bytes_is_refused_by_name(files, tmp_path, form, change):
    cut = {"empty": lambda blob: b"", "short": lambda blob: blob[:-4], "gone": lambda blob: None}[change]
    path = edited(files[form], tmp_path, a_tensor(form), cut)
    says = "is missing" if change == "gone" else r"has [\d,]+ bytes, and its tensors take 5,120"
    with pytest.raises(RoastError, match=rf"{re.escape(str(path))}.*{a_tensor(form)[1:]} {says}"):
        opens(form, path)


def test_control_torch_makes_zeros_of_an_empty_member(files, tmp_path):
    path = edited(files["archive"], tmp_path, a_tensor("archive"), lambda blob: b"")
    state = torch.export.load(path).state_dict
    assert not state["table.virtual.weight.memory"].any()


LARGER = {
    "longer": (b"(M\x00\x05t(K\x01t", b"(J\x00\x05\x01\x00t(K\x01t"),
    "with a stride": (b"(M\x00\x05t(K\x01t", b"(M\x00\x05t(K\x02t"),
    "negative": (b"(M\x00\x05t(K\x01t", b"(J\xff\xff\xff\xfft(K\x01t"),
}
"""Lengths or strides of a tensor in its pickle, and what they become; the storage stays."""


@pytest.mark.parametrize("form", SCRIPTS)
@pytest.mark.parametrize("change", LARGER)
def test_a_tensor_outside_of_its_storage_is_refused(files, tmp_path, form, change):
    old, new = LARGER[change]

    def larger(blob: bytes) -> bytes:
        assert old in blob, blob
        return blob.replace(old, new, 1)

    path = edited(files[form], tmp_path, "/data.pkl", larger)
    with pytest.raises(LoadError, match=r"truncated or damaged.*a tensor of"):
        open_artifact(path)


PICKLES = {
    "a place far off": b"\x80\x02)r\xff\xff\xff\x7f.",
    "an opcode that torch does not write": b"\x80\x02cos\nsystem\n)\x93.",
    "another reference": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "no storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))tR.",
    "cut off": b"\x80\x02(",
    "empty": b"",
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("trust", [False, True], ids=["", "trust"])
def test_a_pickle_that_is_none_of_torch_is_refused(files, tmp_path, name, trust):
    path = edited(files["native"], tmp_path, "/constants.pkl", lambda blob: PICKLES[name])
    with pytest.raises(RoastError, match=r"damaged|could do more than compute"):
        open_artifact(path, trust=trust)


def test_nothing_in_a_pickle_is_called(files, tmp_path):
    sentinel = tmp_path / "ran"
    code = f"open({str(sentinel)!r}, 'w').close()".encode()
    call = b"\x80\x02cbuiltins\nexec\n(X" + len(code).to_bytes(4, "little") + code + b"tR."
    check_stored(edited(files["native"], tmp_path, "/constants.pkl", lambda blob: call), files["native"])
    assert not sentinel.exists()


@pytest.mark.parametrize("form", [form for form in EVERY if form not in SCRIPTS])
def test_a_strided_tensor_of_an_archive_is_held_to_its_member(files, tmp_path, form):
    def larger(blob: bytes) -> bytes:
        content = json.loads(blob)
        for payload in content["config"].values():
            payload["tensor_meta"]["strides"] = [{"as_int": 3} for _ in payload["tensor_meta"]["strides"]]
        return json.dumps(content).encode()

    path = edited(files[form], tmp_path, "weights_config.json", larger)
    with pytest.raises(LoadError, match="and its tensors take"):
        opens(form, path)


# ---- Checksums ----


@pytest.mark.parametrize("form", FORMS)
def test_one_flipped_bit_of_any_member_is_refused(files, tmp_path, form):
    """Tensors, code, bytecode, graph: the bytes change and the checksum stays."""
    whole = files[form].read_bytes()
    with zipfile.ZipFile(files[form]) as archive:
        members = [member for member in archive.infolist() if member.file_size]
    assert any(member.filename.endswith(("bytecode.pkl", ".py", "model.json")) for member in members)
    path = tmp_path / files[form].name
    for member in members:
        head = whole[member.header_offset :][:30]
        # The name and the extra field follow the header, which says how long they are.
        begin = 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        place = member.header_offset + begin + member.compress_size // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RoastError, match="damaged"):
            open_artifact(path, trust=True)
