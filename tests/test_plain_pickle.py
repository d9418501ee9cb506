"""A pickle of data only that takes more memory or time than its size allows is refused by name."""

import collections
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from models import Small, small_inputs
from torch import nn

import roast_export
from roast_export.errors import LoadError
from roast_export.plain_pickle import load_plain


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


LENGTH = number(2_000_000_000)
ARRAY = name("builtins", "bytearray") + LENGTH + b"\x85R"
LONG = (
    name("torch._utils", "_rebuild_tensor_v2")
    + b"(("
    + text("storage")
    + name("torch", "FloatStorage")
    + text("0")
    + text("cpu")
    + b"K\x01tQK\x00"
    + LENGTH
    + b"\x85K\x00\x85\x89"
    + name("collections", "OrderedDict")
    + b")RtR"
)
"""A tensor of 2,000,000,000 elements that repeats the one in its storage."""
PAIRS = b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(40))

BOMBS = {
    "bytearray": (ARRAY, "builtins.bytearray"),
    "bytearray of Python 2": (name("__builtin__", "bytearray") + LENGTH + b"\x85R", "builtins.bytearray"),
    "Size": (name("torch", "Size") + ARRAY + b"\x85R", "builtins.bytearray"),
    "Size of a tensor": (name("torch", "Size") + LONG + b"\x85R", "torch.Size"),
    "Size made anew": (name("torch", "Size") + LONG + b"\x85\x81", "damaged"),
    "Counter": (name("collections", "Counter") + ARRAY + b"\x85R", "builtins.bytearray"),
    "Counter of a tensor": (name("collections", "Counter") + LONG + b"\x85R", "collections.Counter"),
    "set of a tensor": (name("builtins", "set") + LONG + b"\x85R", "builtins.set"),
    "dict of a tensor": (name("collections", "OrderedDict") + LONG + b"\x85R", "collections.OrderedDict"),
    "encode": (
        name("_codecs", "encode") + text("a") + text("utf-32") + b"\x86R",
        "_codecs.encode",
    ),
    "Tensor": (name("torch", "Tensor") + LENGTH + b"\x85R", "torch.Tensor"),
    "FloatTensor": (name("torch", "FloatTensor") + LENGTH + b"\x85R", "torch.FloatTensor"),
    "a copy of a tensor": (
        name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")
        + b"("
        + LONG
        + name("torch", "float64")
        + text("cpu")
        + b"\x89tR",
        "a tensor of 2,000,000,000",
    ),
    "a key of pairs": (b"}" + PAIRS + b"K\x01s", "a tuple of more than"),
    "a tensor alone": (LONG, "a tensor of 2,000,000,000"),
}


def in_zip(pickled: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(4))
    return made.getvalue()


def bomb(which: str) -> bytes:
    return b"\x80\x02" + BOMBS[which][0] + b"."


@pytest.mark.parametrize("which", BOMBS)
def test_what_takes_more_than_the_file_is_refused_by_name(tmp_path, which):
    path = tmp_path / "m.pt"
    path.write_bytes(in_zip(bomb(which)))
    with pytest.raises(LoadError, match=BOMBS[which][1]):
        roast_export.load(path)


@pytest.mark.parametrize("which", ["Size", "Counter", "a key of pairs"])
@pytest.mark.parametrize("kind", ["legacy", "shard", "lightning"])
def test_it_is_refused_wherever_a_pickle_is_read(tmp_path, which, kind):
    path = tmp_path / {"legacy": "m.pt", "shard": "m.bin.index.json", "lightning": "m.ckpt"}[kind]
    if kind == "legacy":
        path.write_bytes(bomb(which))
    elif kind == "shard":
        (tmp_path / "m-1.bin").write_bytes(in_zip(bomb(which)))
        path.write_text(json.dumps({"weight_map": {"a": "m-1.bin"}}))
    else:
        entries = b"}(" + text("state_dict") + b"}" + text("hyper_parameters") + BOMBS[which][0] + b"u."
        path.write_bytes(in_zip(b"\x80\x02" + entries))
    with pytest.raises(LoadError, match=BOMBS[which][1]):
        roast_export.load(path, model="torch.nn:Identity")


def test_it_is_refused_as_the_sample_inputs_of_an_archive(tmp_path):
    whole, path = tmp_path / "whole.pt", tmp_path / "m.pt"
    roast_export.save(roast_export.compress(Small().eval(), 8), whole, small_inputs())
    roast_export.load(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            is_sample = member.filename.endswith("sample_inputs/model.pt")
            new.writestr(member, in_zip(bomb("Counter")) if is_sample else old.read(member))
    with pytest.raises(LoadError, match=r"builtins.bytearray.* in data/sample_inputs/model.pt"):
        roast_export.load(path)


def test_the_command_refuses_in_little_memory(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(in_zip(bomb("Counter")))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30));"
        "from roast_export.cli import inspect_command; sys.exit(inspect_command())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "builtins.bytearray" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def ordinary() -> dict:
    layer = nn.Linear(4, 3)
    tagged = torch.ones(3)
    tagged.note = "kept"
    return {
        "state_dict": layer.state_dict(),
        "parameter": layer.weight,
        "size": layer.weight.shape,
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "bytes": b"\xff\x00",
        "array": bytearray(b"\xff\x01"),
        "empty": bytearray(),
        "set": {1, 2},
        "milestones": collections.Counter([30, 60]),
        "ordered": collections.OrderedDict(a=1),
        "complex": 1 + 2j,
        "view": torch.arange(12).reshape(3, 4).t(),
        "repeated": torch.ones(1).expand(5),
        "tagged": tagged,
        "small": torch.ones(3, dtype=torch.uint16),
        "sparse": torch.eye(3).to_sparse(),
        "shared": ((1, 2),) * 3,
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_control_what_torch_saves_opens_the_same(tmp_path, zipped):
    content, file = ordinary(), io.BytesIO()
    if not zipped:
        del content["small"]
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    file.seek(0)
    read = load_plain(file)
    file.seek(0)
    plain = torch.load(file, weights_only=True)
    assert read.keys() == plain.keys() == content.keys()
    for key, value in plain.items():
        assert type(read[key]) is type(value)
        torch.testing.assert_close(read[key], value) if isinstance(value, torch.Tensor) else None
        if isinstance(value, int | tuple | bytes | bytearray | set | complex | collections.Counter):
            assert read[key] == value
    assert read["tagged"].note == "kept"


def test_control_torch_is_as_before_afterwards():
    """Control of the bombs too: torch alone takes this one, at a harmless length."""
    file = io.BytesIO(in_zip(b"\x80\x02" + name("builtins", "bytearray") + b"K\x05\x85R."))
    with pytest.raises(LoadError, match="bytearray"):
        load_plain(file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == bytearray(5)


def test_control_what_runs_code_is_still_told_apart():
    with pytest.raises(pickle.UnpicklingError, match=r"os\.system|posix"):
        load_plain(io.BytesIO(in_zip(b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R.")))


def test_storages_larger_than_the_file_are_refused():
    pickled = LONG.replace(b"K\x00\x85\x89", b"K\x01\x85\x89")
    with pytest.raises((LoadError, RuntimeError)):
        load_plain(io.BytesIO(in_zip(b"\x80\x02" + pickled + b".")))
