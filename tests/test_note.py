"""The note of torch's archives: what it says, and every way in which it can be wrong."""

import json
import zipfile
from dataclasses import replace

import pytest
import torch
from models import SMALL_DYNAMIC, Small, small_inputs
from torch_files import note_text, rewrite, with_note

import roast_export
from roast_export.errors import RoastError
from roast_export.mapping import Mapping
from roast_export.modules import virtual_weights
from roast_export.note import LARGEST_NOTE, NOTE, read_note


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return roast_export.compress(Small().eval(), 8)


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("note") / "s.ts"
    options = {"example_inputs": small_inputs(), "dynamic_shapes": SMALL_DYNAMIC, "verify": False}
    roast_export.export(model, path, to="torchscript", **options)
    return path


def test_what_it_says(model, good):
    note = read_note(good)
    weights = virtual_weights(model)
    assert {w.name: (Mapping.from_list(w.mapping), w.scale) for w in note.weights} == {
        name: (weight.mapping, weight.scale) for name, weight in weights.items()
    }
    assert {w.name: w.operator for w in note.weights} == {
        "table.weight": "embedding",
        "first.weight": "linear",
        "last.weight": "linear",
    }
    assert len({w.array for w in note.weights}) == 1
    assert note.array_bytes == weights["first.weight"].memory.nbytes
    assert note.inputs == {"ids": ("int64", ["batch", 5]), "extra": ("float32", ["batch", 5, 48])}
    assert note.outputs == ["scores", "best"]
    assert (note.target, note.portable, note.mapping_version) == ("torchscript", False, 1)
    assert note.producer == f"roast-export {roast_export.__version__}"


def test_it_is_read_back_as_it_was_written(good):
    assert json.loads(read_note(good).to_json()) == json.loads(note_text(good))


def weight(**changes):
    """The note's weights with one of them changed."""
    return lambda note: {"weights": [note["weights"][0] | changes, *note["weights"][1:]]}


HOSTILE = {
    "no array": lambda note: {"array_bytes": None},
    "text for a number": lambda note: {"array_bytes": "5120"},
    "number for a truth": lambda note: {"portable": 1},
    "list for a target": lambda note: {"target": ["torchscript"]},
    "inputs in a list": lambda note: {"inputs": list(note["inputs"])},
    "an input of three parts": lambda note: {"inputs": {"ids": ["int64", [2], 3]}},
    "a length that is no length": lambda note: {"inputs": {"ids": ["int64", [2.5]]}},
    "lengths that are no list": lambda note: {"inputs": {"ids": ["int64", 2]}},
    "no outputs": lambda note: {"outputs": None},
    "outputs that are numbers": lambda note: {"outputs": [1]},
    "outputs in a text": lambda note: {"outputs": "ab"},
    "weights in a dict": lambda note: {"weights": {"table.weight": note["weights"][0]}},
    "a field too many": lambda note: {"extra": 1},
    "a field of a weight too many": weight(extra=1),
    "a place that is a number": weight(place=3),
    "a name that is a list": weight(name=[]),
    "an empty mapping": weight(mapping=[]),
    "no mapping": weight(mapping=None),
    "a mapping of text": weight(mapping="10"),
    "a mapping beyond 64 bits": weight(mapping=[1 << 64] * 34),
    "a mapping with a negative length": lambda note: weight(
        mapping=[*note["weights"][0]["mapping"][:-1], -1]
    )(note),
    "a scale that is text": weight(scale="1"),
    "a scale that is not finite": weight(scale=float("nan")),
    "a scale beyond float32": weight(scale=1e39),
    "another mapping version": lambda note: {"mapping_version": 2},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_value_is_one_sentence(good, tmp_path, name):
    path = with_note(good, tmp_path / "x.ts", **HOSTILE[name](json.loads(note_text(good))))
    with pytest.raises(RoastError, match=r"x\.ts is damaged or of another version \(.+\); export it again"):
        read_note(path)


def test_control_the_same_copy_without_a_change_is_read(good, tmp_path):
    assert read_note(with_note(good, tmp_path / "x.ts")) == read_note(good)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000], ids=lambda c: repr(c[:4])
)
def test_a_note_that_is_none(good, tmp_path, content):
    path = rewrite(good, tmp_path / "x.ts", lambda n, old: content if n == f"extra/{NOTE}" else old)
    with pytest.raises(RoastError, match="export it again"):
        read_note(path)


def test_a_note_larger_than_any_of_ours_is_not_unpacked(tmp_path):
    path = tmp_path / "x.ts"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"x/extra/{NOTE}", "w") as f,
    ):
        for _ in range(LARGEST_NOTE // (1 << 20) + 1):
            f.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(RoastError, match=r"roast\.json has 68,157,440 bytes"):
        read_note(path)


def test_a_file_without_a_note(good, tmp_path):
    path = rewrite(good, tmp_path / "x.ts", lambda name, old: None if name == f"extra/{NOTE}" else old)
    with pytest.raises(RoastError, match=r"was not written by roast-export: it has no roast\.json"):
        read_note(path)


def test_no_file_and_no_archive(tmp_path):
    with pytest.raises(RoastError, match="does not exist"):
        read_note(tmp_path / "x.ts")
    (tmp_path / "x.ts").write_bytes(b"PK\3\4 and nothing more")
    with pytest.raises(RoastError, match="damaged"):
        read_note(tmp_path / "x.ts")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(good, tmp_path, share):
    path = tmp_path / "x.ts"
    content = good.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RoastError, match=r"x\.ts"):
        read_note(path)


def test_no_changed_byte_of_the_note_is_a_traceback(good, tmp_path):
    """Every byte of the member, its headers included, one at a time in steps."""
    content = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith(NOTE))
    begin, end = member.header_offset, member.header_offset + member.compress_size + 60
    places = [*range(begin, begin + 60), *range(begin + 60, end, 7), *range(len(content) - 22, len(content))]
    path, refused = tmp_path / "x.ts", 0
    for place in places:
        content[place] ^= 0x21
        path.write_bytes(content)
        try:
            read_note(path)
        except RoastError:
            refused += 1
        content[place] ^= 0x21
    assert refused > len(places) // 2


FALSE = {
    "another shape": lambda note: _shaped(note, rows=2),
    "another scale": lambda note: weight(scale=2 * note["weights"][0]["scale"])(note),
    "fewer bytes of arrays": lambda note: {"array_bytes": note["array_bytes"] - 4},
}


def _shaped(note, rows):
    record = Mapping.from_list(note["weights"][0]["mapping"])
    shape = (rows * record.shape[0], *record.shape[1:])
    matrix = (rows * record.matrix[0], record.matrix[1])
    return weight(mapping=replace(record, shape=shape, matrix=matrix).to_list())(note)


@pytest.mark.parametrize("to", ["torchscript", "lite", "pt2"])
def test_a_note_that_is_no_note_of_this_model_is_refused(model, tmp_path, to):
    """The weights are compared by what the file computes; the figures of the report come from the note."""
    right = tmp_path / "right"
    options = {"example_inputs": small_inputs(), "verify": False}
    roast_export.export(model, right, to=to, **options)
    assert roast_export.verify(model, right, example_inputs=small_inputs()).passed
    for name, change in FALSE.items():
        with_note(right, tmp_path / "false", **change(json.loads(note_text(right))))
        report = roast_export.verify(model, tmp_path / "false", example_inputs=small_inputs())
        assert "the file's note" in [check.name for check in report.failures], name
