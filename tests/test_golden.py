"""An archive holds what the module itself gave, and every file made from it is held to that."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from roast_export import cli, compress, export, load, save, verify
from roast_export.errors import LoadError, VerificationError
from roast_export.golden import BUDGET, MEMBER, MOST, chosen, from_text, golden, to_text

X = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 48)
        self.b = nn.Linear(48, 20)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def made() -> nn.Module:
    return compress(Net(), 4, min_params=512).eval()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("golden") / "m.pt"
    model = made()
    save(model, path, (X,))
    return model, path


def altered(path, target, *, goldens=True) -> None:
    """The archive with another activation in its graph, as a wrong trace would have it."""
    extra = {MEMBER: ""}
    program = torch.export.load(path, extra_files=extra)
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.aten.relu.default]
    assert nodes
    for node in nodes:
        node.target = torch.ops.aten.neg.default
    torch.export.save(program, target, extra_files=extra if goldens else {})


def test_an_archive_holds_what_the_module_gave(archive):
    model, path = archive
    goldens = load(path).goldens
    assert 3 < len(goldens) <= MOST
    assert len({tuple(one.inputs["x"].shape) for one in goldens}) > 2
    for one in goldens:
        assert torch.allclose(model(one.inputs["x"]), one.outputs[0].reshape(one.shapes[0]), atol=1e-5)


def test_a_graph_altered_in_the_archive_is_refused(archive, tmp_path):
    altered(archive[1], tmp_path / "m.pt")
    for form in ("onnx", "torchscript", "pt2"):
        with pytest.raises(VerificationError) as caught:
            export(load(tmp_path / "m.pt"), tmp_path / f"m.of_{form}", to=form)
        assert {check.case.partition(" ")[0] for check in caught.value.report.failures if check.case} >= {
            "golden"
        }
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_roast_verify_refuses_a_file_of_an_altered_graph(archive, tmp_path):
    altered(archive[1], tmp_path / "m.pt")
    export(load(tmp_path / "m.pt"), tmp_path / "m.onnx", verify=False)
    result = CliRunner().invoke(cli.verify_command, [str(tmp_path / "m.pt"), str(tmp_path / "m.onnx")])
    assert result.exit_code == 2, result.output
    assert "golden" in result.output


def test_control_without_goldens_the_altered_graph_agrees_with_its_own_file(archive, tmp_path):
    altered(archive[1], tmp_path / "m.pt", goldens=False)
    report = export(load(tmp_path / "m.pt"), tmp_path / "m.onnx")
    assert report.passed
    assert any("no values of the module itself" in warning for warning in report.warnings)


def test_the_archive_as_it_was_saved_passes_and_says_so(archive, tmp_path):
    report = export(load(archive[1]), tmp_path / "m.onnx")
    assert report.passed
    assert not any("module itself" in warning for warning in report.warnings)
    assert any(check.case and check.case.startswith("golden") for check in report.checks)


def test_an_archive_that_is_saved_anew_keeps_its_goldens(archive, tmp_path):
    save(load(archive[1]), tmp_path / "again.pt", (X,))
    before, after = load(archive[1]).goldens, load(tmp_path / "again.pt").goldens
    assert [one.name for one in before] == [one.name for one in after]
    assert all(torch.equal(a.outputs[0], b.outputs[0]) for a, b in zip(before, after, strict=True))


def test_a_file_at_fixed_lengths_is_held_to_the_goldens_of_those_lengths(archive, tmp_path):
    report = export(archive[0], tmp_path / "m.onnx", example_inputs=(X,))
    assert verify(load(archive[1]), tmp_path / "m.onnx").passed == report.passed is True


DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_every_dtype_survive(dtype):
    value = torch.randn(3, 4).to(dtype)
    one = golden("example", {"x": value}, [value.T, torch.tensor(2.0)])
    read = from_text(to_text([one]))[0]
    assert torch.equal(read.inputs["x"], value)
    assert torch.equal(read.over([torch.zeros(4, 3, dtype=dtype), torch.zeros(())])[0], value.T)


def test_large_outputs_are_sampled_and_the_archive_stays_small():
    output = torch.randn(1000, 1000)
    one = golden("example", {"x": X}, [output])
    assert one.nbytes < 200_000
    other = output.clone()
    other[:, 3] += 1
    assert not torch.equal(one.over([other])[0], other)
    assert torch.equal(one.over([output])[0], output)
    assert sum(g.nbytes for g in chosen([one] * 100)) <= BUDGET


def test_outputs_of_another_form_are_no_goldens():
    one = golden("example", {"x": X}, [X])
    assert one.over([X, X]) is None
    assert one.over([X.double()]) is None
    assert one.over([X[:2]]) is None


def text(index, **arrays) -> str:
    buffer = io.BytesIO()
    stated = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez(buffer, allow_pickle=True, index=stated, **arrays)
    return base64.b64encode(buffer.getvalue()).decode()


ONE = {"name": "a", "inputs": {"x": "float32"}, "outputs": [["float32", [2, 2], 1]]}
GOOD = {"0.in.x": np.zeros(3, np.float32), "0.out.0": np.zeros(4, np.float32)}
DAMAGED = {
    "no base64": "%%%",
    "no archive": base64.b64encode(b"PK nothing").decode(),
    "too few values": text([ONE], **GOOD | {"0.out.0": np.zeros(3, np.float32)}),
    "another dtype": text([ONE], **GOOD | {"0.in.x": np.zeros(3, np.int32)}),
    "a pickle": text([ONE], **GOOD | {"0.in.x": np.array([object()])}),
    "a dtype that is none": text([ONE | {"inputs": {"x": "object"}}], **GOOD),
    "an array missing": text([ONE | {"inputs": {"y": "float32"}}], **GOOD),
    "a step of none": text([ONE | {"outputs": [["float32", [2, 2], 0]]}], **GOOD),
    "no list": text(3, **GOOD),
    "much": text([ONE], **GOOD | {"0.in.x": np.zeros(1 << 24, np.float32)}),
}


def test_control_the_form_that_the_damaged_ones_have_is_read():
    assert from_text(text([ONE], **GOOD))[0].shapes == [[2, 2]]


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_goldens_are_refused(kind):
    with pytest.raises(LoadError, match="golden values are"):
        from_text(DAMAGED[kind])


def test_an_archive_with_damaged_goldens_is_refused_by_name(archive, tmp_path):
    program = torch.export.load(archive[1])
    torch.export.save(program, tmp_path / "m.pt", extra_files={MEMBER: DAMAGED["a pickle"]})
    with pytest.raises(LoadError, match="golden values are damaged"):
        load(tmp_path / "m.pt")
