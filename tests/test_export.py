"""The main job: every kind of layer to ONNX and proved; and everything that must stop an export."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import MIXED_DYNAMIC, SMALL_DYNAMIC, Mixed, Small, mixed_inputs, small_inputs
from torch import nn

import roast_export
from roast_export import families, onnx_ops, to_onnx
from roast_export.errors import ExportError, InputError, MappingError, VerificationError
from roast_export.modules import RoastLinear, VirtualWeight
from roast_export.program import layers_of
from roast_export.trace import trace


def compressed(kind=Small, ratio=8, **options):
    torch.manual_seed(0)
    return roast_export.compress(kind().eval(), ratio, **options)


@pytest.fixture(scope="module")
def small():
    return compressed()


def export_small(model, path, **options):
    options = {"example_inputs": small_inputs(), "dynamic_shapes": SMALL_DYNAMIC} | options
    return roast_export.export(model, path, **options)


@pytest.mark.parametrize(
    ("ratio", "local", "dtype"),
    [
        (1, False, torch.float32),
        (10, False, torch.float16),
        (10, True, torch.float32),
        (100, True, torch.float16),
        (1000, False, torch.float32),
        (1000, True, torch.float32),
    ],
)
def test_mixed_model(tmp_path, ratio, local, dtype):
    # Low enough that the grouped convolution and the attention's output projection are virtual too.
    model = compressed(Mixed, ratio, local=local, memory_dtype=dtype, min_params=256)
    report = roast_export.export(
        model, tmp_path / "m.onnx", example_inputs=mixed_inputs(), dynamic_shapes=MIXED_DYNAMIC
    )
    assert report.passed
    assert not report.failures
    assert {check.runtime for check in report.checks if check.kind == "output"} == {
        "onnxruntime native",
        "onnxruntime portable",
        "onnxruntime folded",
        "onnx reference",
    }
    batches = {check.case for check in report.checks if "batch=" in check.case}
    assert len(batches) >= 3
    names = {layer.name for layer in report.layers}
    assert names == {name for name, p in Mixed().named_parameters(remove_duplicate=False) if p.dim() > 1}
    proto = onnx.load(tmp_path / "m.onnx")
    arrays = {onnx_ops.array_of(node) for node in proto.graph.node if node.domain == onnx_ops.DOMAIN}
    assert (len(arrays) > 1) == local
    if not local:
        assert arrays == {to_onnx.SHARED_ARRAY}


def test_stock_session_equals_the_model(tmp_path, small):
    """What a user without this package does: load the file, run it."""
    export_small(small, tmp_path / "s.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx")
    assert [value.name for value in session.get_inputs()] == ["ids", "extra"]
    assert [value.name for value in session.get_outputs()] == ["scores", "best"]
    inputs = small_inputs(7)
    scores, best = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = small(**inputs)
    np.testing.assert_allclose(scores, expected["scores"].numpy(), atol=2e-5)
    np.testing.assert_array_equal(best, expected["best"].numpy())


def test_archive_exports_without_the_code(tmp_path, small):
    """save, then the command line in a process that cannot import the model's class."""
    roast_export.save(small, tmp_path / "s.pt", small_inputs(1))
    program = Path(sys.executable).parent / "roast-export"
    command = [str(program), str(tmp_path / "s.pt"), "--to", "onnx"]
    command += ["-o", str(tmp_path / "s.onnx"), "--dynamic", "ids:0=batch"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    proto = onnx.load(tmp_path / "s.onnx")
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        5,
    ]


@pytest.mark.parametrize("opset", to_onnx.OPSETS)
def test_opsets(tmp_path, small, opset):
    report = export_small(small, tmp_path / "s.onnx", opset=opset)
    assert report.passed
    proto = onnx.load(tmp_path / "s.onnx")
    assert {o.domain: o.version for o in proto.opset_import}[""] == opset
    assert {o.version for f in proto.functions for o in f.opset_import if o.domain == ""} == {opset}


def test_metadata_and_names(tmp_path, small):
    export_small(small, tmp_path / "s.onnx")
    proto = onnx.load(tmp_path / "s.onnx")
    metadata = {p.key: p.value for p in proto.metadata_props}
    assert metadata["roast.mapping_version"] == "1"
    assert any(key.startswith("roast.sha256.") and len(value) == 64 for key, value in metadata.items())
    nodes = {node.name: node for node in proto.graph.node if node.domain == onnx_ops.DOMAIN}
    assert set(nodes) == {"table.weight", "first.weight", "last.weight", "last.weight#2"} or set(nodes) == {
        "table.weight",
        "first.weight",
        "last.weight",
    }
    assert {a.name for a in nodes["first.weight"].attribute} == set(onnx_ops.ATTRIBUTES)
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_materialized_is_folded_at_load(tmp_path, small):
    report = export_small(small, tmp_path / "s.onnx", weights="materialized")
    assert report.passed
    assert report.file_bytes <= report.limit_bytes
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.register_custom_ops_library(roast_export.ort_library_path())
    onnxruntime.InferenceSession(tmp_path / "s.onnx", options)
    folded = onnx.load(tmp_path / "folded.onnx")
    assert not any(node.domain == onnx_ops.DOMAIN for node in folded.graph.node)


def test_external_data(tmp_path, small, monkeypatch):
    """Above protobuf's limit the tensors go beside the file; here the limit is lowered."""
    monkeypatch.setattr(to_onnx, "LARGEST_FILE", 1000)
    report = export_small(small, tmp_path / "s.onnx")
    assert report.passed
    assert {p.name for p in tmp_path.iterdir()} == {"s.onnx", "s.onnx.data"}
    assert report.file_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    monkeypatch.undo()
    export_small(small, tmp_path / "s.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"s.onnx"}


def drawn_model(mapping):
    torch.manual_seed(3)
    weight = VirtualWeight(nn.Parameter(torch.randn(mapping.n_memory)), mapping, 0.3)
    return nn.Sequential(RoastLinear(weight), nn.ReLU()).eval()


def test_signs_from_mt19937(tmp_path):
    """Native by default; with `portable` the file carries packed signs and runs everywhere."""
    mapping = families.fakeroast_pareto((24, 30), 200, [3, 5, 7, 9], 11, sign_seed=4)
    model, inputs = drawn_model(mapping), (torch.randn(2, 30),)
    native = roast_export.export(model, tmp_path / "n.onnx", example_inputs=inputs)
    assert {layer.operator for layer in native.layers} == {"RoastLinearBiasDrawn"}
    assert {c.runtime for c in native.checks if c.kind == "output"} == {"onnxruntime native"}
    assert "needs the library" in native.skipped["onnxruntime portable"]
    portable = roast_export.export(model, tmp_path / "p.onnx", example_inputs=inputs, portable=True)
    assert {layer.operator for layer in portable.layers} == {"RoastGatherSigned"}
    assert "onnx reference" in {c.runtime for c in portable.checks if c.kind == "output"}


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_the_size_gate_counts_packed_signs_where_they_are(tmp_path, to):
    """A million signs take twice the slack of the gate; a native file has no room for them."""
    model = drawn_model(families.fakeroast_pareto((1024, 1024), 2000, [3, 5, 7, 9], 11, sign_seed=4))
    options = {"to": to, "example_inputs": (torch.randn(2, 1024),)}
    portable = roast_export.export(model, tmp_path / "p", portable=True, **options)
    native = roast_export.export(model, tmp_path / "n", **options)
    assert portable.file_bytes > native.limit_bytes
    assert any("packed signs from MT19937 take 131,072 bytes" in text for text in portable.warnings)
    assert not native.warnings


def test_slots_from_mt19937(tmp_path):
    mapping = families.fakeroast_random((24, 30), 200, 5, draw_bits=64)
    model, inputs = drawn_model(mapping), (torch.randn(2, 30),)
    assert roast_export.export(model, tmp_path / "n.onnx", example_inputs=inputs).passed
    for options in ({"portable": True}, {"weights": "materialized"}):
        with pytest.raises(ExportError, match="MT19937"):
            roast_export.export(model, tmp_path / "x.onnx", example_inputs=inputs, **options)
    assert not (tmp_path / "x.onnx").exists()


class LoopAndTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(x)


def test_transformer_encoder_exports_despite_its_fast_path(tmp_path):
    model = compressed(LoopAndTransformer)
    report = roast_export.export(
        model,
        tmp_path / "t.onnx",
        example_inputs=(torch.randn(2, 5, 48),),
        dynamic_shapes={"x": {0: "b", 1: "t"}},
    )
    assert report.passed
    assert report.inputs == {"x": "float32[b, t, 48]"}


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.sums = nn.EmbeddingBag(80, 32, mode="sum", padding_idx=0)
        self.means = nn.EmbeddingBag(90, 32, mode="mean")

    def forward(self, ids, flat, offsets):
        return self.sums(ids), self.means(flat, offsets)


def test_bags(tmp_path):
    inputs = (torch.randint(0, 80, (3, 4)), torch.randint(0, 90, (9,)), torch.tensor([0, 2, 2, 7]))
    assert roast_export.export(compressed(Bags), tmp_path / "b.onnx", example_inputs=inputs).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "caffe"}, "target 'caffe' is not one of onnx"),
        ({"opset": 12}, "opset 12 is not in 18..23"),
        ({"weights": "dense"}, "must be 'virtual' or 'materialized'"),
        ({"example_inputs": None}, "needs example_inputs"),
        ({"example_inputs": (torch.zeros(2, 5, dtype=torch.int64),)}, "does not run on these inputs"),
        ({"dynamic_shapes": {"nope": {0: "b"}}}, "no input is called 'nope'"),
        ({"dynamic_shapes": {"ids": {9: "b"}}}, "input 'ids' has no axis 9"),
        ({"dynamic_shapes": {"extra": {2: "width"}}}, "fixed by the model"),
    ],
)
def test_bad_arguments(tmp_path, small, options, message):
    with pytest.raises(InputError, match=message):
        export_small(small, tmp_path / "s.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_dense_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="compress it first"):
        export_small(Small().eval(), tmp_path / "s.onnx")


def test_archive_says_which_dimensions_are_dynamic(tmp_path, small):
    roast_export.save(small, tmp_path / "s.pt", small_inputs())
    model = roast_export.load(tmp_path / "s.pt")
    with pytest.raises(InputError, match=r"axis 2 is fixed by the model; dynamic are: ids:0, ids:1"):
        roast_export.export(model, tmp_path / "s.onnx", dynamic_shapes={"extra": {2: "width"}})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_array_that_is_not_finite_is_named(tmp_path, bad):
    model = compressed()
    with torch.no_grad():
        model.first.virtual["weight"].memory[7] = bad
    report = export_small(model, tmp_path / "s.onnx")
    assert any("NaN or infinite" in text and "memory" in text for text in report.warnings)


def corrupt(monkeypatch):
    """Make the exporter write one wrong seed."""
    right = onnx_ops.attributes

    def wrong(mapping, scale, operator):
        found = right(mapping, scale, operator)
        if mapping.shape == (96, 48):
            found["hash1"][1] += 1
        return found

    monkeypatch.setattr(onnx_ops, "attributes", wrong)


def test_failed_proof_leaves_nothing(tmp_path, small, monkeypatch):
    corrupt(monkeypatch)
    with pytest.raises(VerificationError, match=r"first\.weight in onnxruntime native") as caught:
        export_small(small, tmp_path / "s.onnx")
    assert caught.value.report.failures
    assert list(tmp_path.iterdir()) == []


def test_failed_proof_keeps_what_was_there(tmp_path, small, monkeypatch):
    (tmp_path / "s.onnx").write_bytes(b"precious")
    corrupt(monkeypatch)
    with pytest.raises(VerificationError):
        export_small(small, tmp_path / "s.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["s.onnx"]
    assert (tmp_path / "s.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize("where", ["/proc/s.onnx", "missing/folder/s.onnx", "."])
def test_unwritable_output(tmp_path, small, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"cannot write|is a folder"):
        export_small(small, where)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_export import compressed, export_small
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = compressed()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    export_small(model, sys.argv[1] + "/s.onnx")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_full_disk(tmp_path):
    """A limit on file size makes every write past 4 KiB fail, as a full disk does."""
    (tmp_path / "s.onnx").write_bytes(b"precious")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ExportError cannot write"), done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["s.onnx"]
    assert (tmp_path / "s.onnx").read_bytes() == b"precious"


def test_a_tile_larger_than_the_array_names_the_layer(small):
    program = trace(small, small_inputs())
    node = next(n for n in program.graph.nodes if n.target is torch.ops.roast.linear.default)
    x, memory, bias, mapping, scale = node.args
    fields = list(mapping)
    fields[7], fields[8] = 64, 64
    node.args = (x, memory, bias, fields, scale)
    wanted = r"first\.weight: tile 64x64 needs 4096 slots, the array has 1280; use a smaller tile"
    with pytest.raises(MappingError, match=wanted):
        layers_of(program)


def test_training_mode_is_given_back(tmp_path):
    model = nn.Sequential(compressed(Bags).sums, nn.Dropout(0.5)).train()
    report = roast_export.export(model, tmp_path / "d.onnx", example_inputs=(torch.randint(0, 80, (3, 4)),))
    assert report.passed
    assert model.training
    assert model[1].training


def test_model_on_another_device_is_refused(tmp_path, small):
    with pytest.raises(InputError, match=r"the model is on meta; move it with model\.cpu"):
        export_small(compressed().to("meta"), tmp_path / "s.onnx")


def test_unverified_export_says_so(tmp_path, small):
    report = export_small(small, tmp_path / "s.onnx", verify=False)
    assert not report.passed
    assert "not verified" in report.warnings
    assert (tmp_path / "s.onnx").exists()
