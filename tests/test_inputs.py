"""--input, --inputs and --dynamic: what is accepted, and what each refusal says."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from roast_export.errors import InputError
from roast_export.inputs import DTYPES, merge_inputs, parse_dynamic, parse_inputs, read_inputs


def test_a_specification_gives_dtype_and_shape():
    found = parse_inputs(["ids:int64[2,7]", "x:float32[ 1, 3 ,8]", "scale:f16[]", "mask:bool[4]"])
    assert list(found) == ["ids", "x", "scale", "mask"]
    assert [(t.dtype, tuple(t.shape)) for t in found.values()] == [
        (torch.int64, (2, 7)),
        (torch.float32, (1, 3, 8)),
        (torch.float16, ()),
        (torch.bool, (4,)),
    ]


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_known_by_its_torch_name(name):
    assert parse_inputs([f"x:{name}[2]"])["x"].dtype is getattr(torch, name)


def test_example_data_is_the_same_each_time_and_valid():
    first, second = (
        parse_inputs(["x:float32[50]", "y:float32[50]", "i:int64[9]", "b:bool[3]"]) for _ in "ab"
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["x"], first["y"])
    assert 0.5 < float(first["x"].std()) < 2
    assert not first["i"].any()
    assert first["b"].all()


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["x"], "the form is NAME:DTYPE[DIMS]"),
        (["x:float32"], "the form is"),
        (["x:float32[2"], "the form is"),
        (["x:float32[2]]"], "the form is"),
        (["float32[2]"], "the form is"),
        (["2x:float32[2]"], "the form is"),
        ([""], "the form is"),
        (["x:float33[2]"], "unknown dtype 'float33'; one of float16, float32"),
        (["x:float32[2,]"], "dimension '' is not a number"),
        (["x:float32[2,-1]"], "dimension '-1' is not a number"),
        (["x:float32[0]"], "dimension '0' is not a number of 1 or more"),
        (["x:float32[batch,3]"], "dimension 'batch' is not a number of 1 or more; .*--dynamic"),
        (["x:float32[1.5]"], "dimension '1.5'"),
        (["x:float32[9999999999,9]"], "more than an example may have"),
        (["x:float32[2]", "x:int64[2]"], "'x' is given twice"),
    ],
)
def test_a_wrong_specification_is_refused_with_what_is_right(specs, says):
    with pytest.raises(InputError, match=says.replace("[", r"\[")) as caught:
        parse_inputs(specs)
    assert f"--input {specs[-1]!r}" in str(caught.value)


def test_arrays_of_a_file_keep_name_dtype_and_bits(tmp_path):
    path = tmp_path / "in.npz"
    arrays = {"ids": np.arange(6, dtype=np.int64).reshape(2, 3), "x": np.float16([1.5, np.nan])}
    arrays["big_endian"] = np.array([1, 2, 3], dtype=">i4")
    arrays["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    found = read_inputs(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
    assert found["big_endian"].dtype is torch.int32


def _text(path):
    path.write_text("not a zip")


def _truncated(path):
    np.savez(path.with_suffix(""), x=np.ones(1000))
    path.write_bytes(path.read_bytes()[:-50])


def _one_array(path):
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))


def _objects(path):
    np.savez(path, x=np.array([object()], dtype=object))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (_text, "cannot be read as .npz"),
        (lambda path: path.write_bytes(b""), "cannot be read as .npz"),
        (_truncated, "cannot be read as .npz"),
        (_one_array, "one array without a name"),
        (_objects, "cannot be read as .npz"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: np.savez(path, x=np.array(["a"])), "'x' has dtype <U1; one of"),
        (lambda path: np.savez(path), "holds no arrays"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, make, says):
    path = tmp_path / "in.npz"
    make(path)
    with pytest.raises(InputError, match=says):
        read_inputs(path)


def _stated(descr, shape, held=b"", one=False):
    """A file whose array states this type and shape and holds these bytes."""
    head = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    array = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + held

    def make(path):
        if one:
            path.write_bytes(array)
            return
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", array)

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_stated("|V0", (10**13,)), "elements of no bytes"),
        (_stated("<U0", (10**13,)), "elements of no bytes"),
        (_stated([("a", "|V0")], (10**13,)), "elements of no bytes"),
        (_stated("<f4", (10**13,), bytes(8)), "has 8 bytes, and its array of"),
        (_stated("<f4", (3,), bytes(8)), "has 8 bytes, and its array of"),
        (_stated("<f4", (-1, -2), bytes(8)), "has 8 bytes, and its array of"),
        (_stated("|V0", (10**13,), one=True), "one array without a name"),
    ],
)
def test_an_array_of_more_elements_than_the_file_holds_is_refused_unread(tmp_path, make, says):
    path = tmp_path / "in.npz"
    make(path)
    with pytest.raises(InputError, match=says):
        read_inputs(path)


def test_control_an_array_of_as_many_elements_is_read(tmp_path):
    path = tmp_path / "in.npz"
    _stated("<f4", (2,), bytes(8))(path)
    assert read_inputs(path)["x"].tolist() == [0, 0]
    _stated("<f4", (0, 10**13))(path)
    assert read_inputs(path)["x"].shape == (0, 10**13)


def test_both_sources_together(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, x=np.ones(3, np.float32))
    assert merge_inputs([], None) is None
    assert set(merge_inputs(["y:int64[1]"], path)) == {"x", "y"}
    with pytest.raises(InputError, match="by --input and by --inputs"):
        merge_inputs(["x:int64[1]"], path)


def test_dynamic_dimensions():
    inputs = {"ids": torch.zeros(2, 7), "mask": torch.zeros(2, 7)}
    specs = ["ids:0=batch", "ids:-1=length", "mask:0=batch"]
    assert parse_dynamic(specs, inputs) == {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch"}}
    assert parse_dynamic(["ids:0=batch"]) == {"ids": {0: "batch"}}
    assert parse_dynamic([]) is None


@pytest.mark.parametrize(
    ("specs", "known", "says"),
    [
        (["ids"], True, "the form is NAME:AXIS=DIM"),
        (["ids:0"], True, "the form is"),
        (["ids:x=batch"], True, "the form is"),
        (["ids:0=1batch"], True, "the form is"),
        (["ids:0="], True, "the form is"),
        (["id:0=batch"], True, "there is no input 'id'; one of ids"),
        (["ids:2=batch"], True, "'ids' has 2 dimensions, there is no axis 2"),
        (["ids:-3=batch"], True, "there is no axis -3"),
        (["ids:0=a", "ids:-2=b"], True, "axis 0 of 'ids' is given twice"),
        (["ids:-1=batch"], False, "axis -1 must be 0 or more"),
    ],
)
def test_a_wrong_dynamic_dimension_is_refused(specs, known, says):
    with pytest.raises(InputError, match=says):
        parse_dynamic(specs, {"ids": torch.zeros(2, 7)} if known else None)
