"""Damaged files of every kind, given to every command: one message with a cause and a next step."""

import io
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from models import Small, small_inputs

import roast_export
from roast_export import cli

PROOF = ("--runtime", "onnx reference")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model, folder = roast_export.compress(Small().eval(), 8), tmp_path_factory.mktemp("files")
    roast_export.save(model, folder / "m.pt", small_inputs())
    torch.save(model.state_dict(), folder / "state.pt")
    np.savez(folder / "in.npz", **{name: value.numpy() for name, value in small_inputs().items()})
    for target, name in (("onnx", "m.onnx"), ("ort", "m.ort"), ("lite", "m.ptl"), ("pt2", "m.pt2")):
        options = {"to": target, "example_inputs": small_inputs(), "verify": False}
        roast_export.export(model, folder / name, **options)
    (folder / "facts.toml").write_text("[defaults]\nscale = 2.0\n")
    return folder


def refused(command, *arguments: object) -> None:
    """The command ends with a message of its own: never as a bug, never with a traceback."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code in (1, 2), result.output
    assert len(errors) == 1, result.stderr
    assert "bug in roast-export" not in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert result.exit_code == 2 or ";" in errors[0], errors[0]


def cuts(content: bytes) -> dict[str, bytes]:
    """Truncated, foreign and mangled forms of a file."""
    rng, half = random.Random(0), len(content) // 2
    found = {
        "empty": b"",
        "one byte": content[:1],
        "its head": content[:64],
        "half": content[:half],
        "without its end": content[:-20],
        "zeros": bytes(len(content)),
        "text": b"hello world\n" * 20,
        "an end of a zip": b"PK\x05\x06" + bytes(18),
        "deep JSON": b"[" * 100_000,
        "a pickle": b"\x80\x02K\x01.",
        "something before it": b"junk" + content,
    }
    for k in range(3):
        mangled = bytearray(content)
        for _ in range(64):
            mangled[rng.randrange(len(content))] = rng.randrange(256)
        found[f"mangled {k}"] = bytes(mangled)
    return found


def test_control_whole_files_are_taken(files):
    runner = CliRunner()
    for name in ("m.pt", "m.onnx"):
        assert runner.invoke(cli.inspect_command, [str(files / name)]).exit_code == 0
    verified = runner.invoke(cli.verify_command, [str(files / "m.pt"), str(files / "m.onnx"), *PROOF])
    assert verified.exit_code == 0, verified.output


CUTS = list(cuts(bytes(100)))
MODELS = ("m.pt", "state.pt")
EXPORTED = ("m.onnx", "m.ort", "m.ptl", "m.pt2")


@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_model(files, tmp_path, cut):
    for name in MODELS:
        path = tmp_path / name
        path.write_bytes(cuts((files / name).read_bytes())[cut])
        inputs = ("--inputs", files / "in.npz")
        refused(cli.inspect_command, path)
        refused(cli.inspect_command, path, "--trust")
        refused(cli.export_command, path, "-o", tmp_path / "o.onnx", *inputs)
        refused(cli.compress_command, path, "--ratio", 4, *inputs)
        assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_exported_file(files, tmp_path, cut):
    for name in EXPORTED:
        path = tmp_path / name
        path.write_bytes(cuts((files / name).read_bytes())[cut])
        refused(cli.verify_command, files / "m.pt", path)
        refused(cli.export_command, path, "-o", tmp_path / "o.onnx")


@pytest.mark.parametrize("cut", CUTS)
def test_damaged_inputs_and_facts(files, tmp_path, cut):
    (tmp_path / "in.npz").write_bytes(cuts((files / "in.npz").read_bytes())[cut])
    refused(cli.export_command, files / "m.pt", "-o", tmp_path / "o.onnx", "--inputs", tmp_path / "in.npz")
    (tmp_path / "facts.toml").write_bytes(cuts((files / "facts.toml").read_bytes())[cut])
    refused(cli.inspect_command, files / "state.pt", "--facts", tmp_path / "facts.toml")


def _entry(key: str, value: str):
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for name, text in {"location": "m.data", key: value}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = name, text

    return change


def _set(what, field: str, value: object):
    return lambda proto: setattr(what(proto), field, value)


def _dims(values):
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].dims[:] = values

    return change


def _length(value: int):
    def change(proto: onnx.ModelProto) -> None:
        dimension = proto.graph.input[0].type.tensor_type.shape.dim[0]
        dimension.ClearField("dim_param")
        dimension.dim_value = value

    return change


def first_tensor(proto):
    return proto.graph.initializer[0]


def first_type(proto):
    return proto.graph.input[0].type.tensor_type


def node(proto):
    return next(node for node in proto.graph.node if node.domain == "ai.roast")


ONNX = {
    "an input of no type": _set(first_type, "elem_type", 0),
    "an input of an unknown type": _set(first_type, "elem_type", 99),
    "an input of length 0": _length(0),
    "an input of length -1": _length(-1),
    "a tensor of no type": _set(first_tensor, "data_type", 0),
    "a tensor of text": _set(first_tensor, "data_type", onnx.TensorProto.STRING),
    "a tensor of an unknown type": _set(first_tensor, "data_type", 99),
    "an empty tensor": _set(first_tensor, "raw_data", b""),
    "a short tensor": _set(first_tensor, "raw_data", b"12345"),
    "a scalar of many bytes": _dims([]),
    "a negative length": _dims([-1]),
    "a huge length": _dims([1 << 40]),
    "data without a file": _entry("location", "none.data"),
    "data of no name": _entry("location", "a\0b"),
    "data of a long name": _entry("location", "x" * 300),
    "data at no number": _entry("offset", "x"),
    "data before the file": _entry("offset", "-1"),
    "data of a huge length": _entry("length", str(1 << 60)),
    "a layer that reads nothing": lambda proto: node(proto).ClearField("input"),
    "a layer without its record": lambda proto: node(proto).ClearField("attribute"),
    "a layer of an unknown operator": lambda proto: setattr(node(proto), "op_type", "RoastNothing"),
    "no opset": lambda proto: proto.ClearField("opset_import"),
    "no graph": lambda proto: proto.ClearField("graph"),
    "no nodes": lambda proto: proto.graph.ClearField("node"),
    "no initializers": lambda proto: proto.graph.ClearField("initializer"),
    "ranges that are none": lambda proto: proto.metadata_props.add(key="roast.ranges", value="[1]"),
}  # fmt: skip


@pytest.mark.parametrize("change", ONNX)
def test_an_onnx_file_of_impossible_parts(files, tmp_path, change):
    proto, path = onnx.load(files / "m.onnx"), tmp_path / "m.onnx"
    ONNX[change](proto)
    path.write_bytes(proto.SerializeToString())
    refused(cli.verify_command, files / "m.pt", path, *PROOF)
    result = CliRunner().invoke(cli.inspect_command, [str(path)])
    assert "bug in roast-export" not in result.stderr
    assert result.exit_code in (0, 1)


@pytest.mark.parametrize(
    "member", ["bytecode.pkl", "constants.pkl", "data.pkl", "version", "extra/roast.json"]
)
@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x80\x02.", b"[" * 60_000], ids=range(5))
def test_a_lite_file_with_one_member_replaced(files, tmp_path, member, content):
    path = tmp_path / "m.ptl"
    with zipfile.ZipFile(files / "m.ptl") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            blob = content if name.endswith(member) else old.read(name)
            if blob is not None:
                new.writestr(name, blob)
    refused(cli.verify_command, files / "m.pt", path)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_pipe, _device, Path.mkdir])
def test_what_is_no_ordinary_file_at_every_argument(files, tmp_path, monkeypatch, make):
    """A pipe that nobody writes to would hold the command up, a device would never end."""
    monkeypatch.chdir(tmp_path)
    odd, model, inputs = Path("odd.json"), files / "m.pt", ("--inputs", files / "in.npz")
    make(odd)
    calls = {
        cli.inspect_command: [[odd], [files / "state.pt", "--facts", odd]],
        cli.export_command: [[odd], [model, "--inputs", odd], [model, "-o", odd], [model, "--report", odd]],
        cli.verify_command: [
            [odd, files / "m.onnx"],
            [model, odd],
            [model, files / "m.onnx", "--report", odd],
        ],
        cli.compress_command: [[odd, "--ratio", 4], [model, "--ratio", 4, "-o", odd, *inputs]],
    }
    for command, arguments in calls.items():
        for given in arguments:
            refused(command, *given)
    assert list(tmp_path.iterdir()) == [tmp_path / odd]


def header(text: str) -> bytes:
    """An .npz whose array `ids` has this header and four bytes."""
    buffer, blob = io.BytesIO(), text.encode("latin1")
    with zipfile.ZipFile(buffer, "w") as archive:
        size = len(blob).to_bytes(2, "little")
        archive.writestr("ids.npy", b"\x93NUMPY\x01\x00" + size + blob + bytes(4))
    return buffer.getvalue()


def shaped(shape: str, descr: str = "<f4") -> bytes:
    return header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}")


ARRAYS = {
    "far more than there is": shaped("(1099511627776,)"),
    "a negative shape": shaped("(-1,)"),
    "a shape that is none": shaped("'a'"),
    "objects": shaped("(1,)", "|O"),
    "a type that is none": shaped("(1,)", "zz"),
    "a huge text": shaped("(1,)", "<U1000000000"),
    "no dict": header("(("),
    "deep": header("[" * 5000),
    "zeros": header("\0"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_with_an_impossible_header(files, tmp_path, name):
    (tmp_path / "in.npz").write_bytes(ARRAYS[name])
    refused(cli.export_command, files / "m.pt", "-o", tmp_path / "o.onnx", "--inputs", tmp_path / "in.npz")


@pytest.mark.parametrize("value", [np.ones(3, complex), np.zeros((0, 5)), np.array(1.0), np.ones((1,) * 5)])
def test_inputs_that_do_not_fit(files, tmp_path, value):
    given = {name: array.numpy() for name, array in small_inputs().items()} | {"ids": value}
    np.savez(tmp_path / "in.npz", **given)
    inputs = ("--inputs", tmp_path / "in.npz")
    refused(cli.verify_command, files / "m.pt", files / "m.onnx", *inputs, *PROOF)
    refused(cli.export_command, files / "m.pt", "-o", tmp_path / "o.onnx", *inputs)
