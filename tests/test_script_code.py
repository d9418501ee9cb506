"""Attempts to make roast-verify do more than compute when it opens a TorchScript file of a stranger."""

import io
import zipfile

import pytest
import torch
from models import Small, small_inputs
from torch import nn
from torch.jit.mobile import _load_for_lite_interpreter

import roast_export
from roast_export.errors import LoadError, RoastError
from roast_export.file_kind import begins_as_zip
from roast_export.functional_ops import is_functional
from roast_export.open_file import open_artifact
from roast_export.script_code import script_runs_code, source_reason

FORMS = {"native": ("torchscript", False), "portable": ("torchscript", True), "lite": ("lite", True)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    small = roast_export.compress(Small().eval(), 8)
    folder, found = tmp_path_factory.mktemp("files"), {}
    for form, (target, portable) in FORMS.items():
        found[form] = folder / f"{form}.ts"
        options = {"to": target, "portable": portable, "example_inputs": small_inputs(), "verify": False}
        roast_export.export(small, found[form], **options)
    return found


class Writes(nn.Module):
    """Saves a tensor where the caller has no say."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.place)
        return x


def with_forward_of(module, good, path, tmp_path):
    """The note of a good file on the code and the data of another module."""
    torch.jit.script(module).save(str(tmp_path / "bad.ts"))
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(tmp_path / "bad.ts") as other:
        note = next(name for name in source.namelist() if "extra" in name)
        with zipfile.ZipFile(path, "w") as target:
            for name in other.namelist():
                target.writestr(name, other.read(name))
            target.writestr(f"bad/{note.partition('/')[2]}", source.read(note))


@pytest.mark.parametrize("form", FORMS)
def test_control_our_own_files_open_without_trust(files, form):
    assert script_runs_code(files[form]) is None
    assert open_artifact(files[form]).layers


def test_a_file_that_writes_files_is_refused_before_it_is_loaded(files, tmp_path):
    path = tmp_path / "m.ts"
    with_forward_of(Writes(str(tmp_path / "written")), files["native"], path, tmp_path)
    with pytest.raises(RoastError, match=r"the operator 'save'.*--trust"):
        open_artifact(path)
    assert open_artifact(path, trust=True).target == "torchscript"
    assert not (tmp_path / "written").exists()


def test_bytecode_is_read_too(files, tmp_path):
    """The lite interpreter runs the bytecode and never looks at the source."""
    path = tmp_path / "m.ptl"
    with zipfile.ZipFile(files["lite"]) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            blob = source.read(name)
            if name.endswith("bytecode.pkl"):
                assert b"aten::numel" in blob
                blob = blob.replace(b"X\x0b\x00\x00\x00aten::numel", b"X\x0a\x00\x00\x00aten::save")
            target.writestr(name, blob)
    with pytest.raises(RoastError, match=r"aten::save.*bytecode"):
        open_artifact(path)


ATTACKS = {
    "a call": "torch.save(x, \"f\")",
    "a method": "(x).save(\"f\", )",
    "with room": "x .save (\"f\")",
    "another name": "f = torch.save",
    "by its name": "getattr(x, \"save\")(\"f\")",
    "a mapped file": "torch.from_file(\"f\", True, 4)",
    "another namespace": "ops.quantized.add(x, x, 1., 0)",
    "a namespace with another name": "o = ops.c10d",
    "outside its tensors": "torch._sparse_csr_tensor_unsafe(x, x, x, [2, 2])",
    "the terminal": "print(\"PASSED\")",
    "the terminal with another name": "p = print",
    "another process": "fork(x)",
    "a class of torch": "__torch__.torch.classes.profiling.InstructionStats()",
    "hidden behind a comment": "x # \"\n.add(x)",
    "hidden behind a string": '"""\n""".save("f")',
    "an unknown function": "awake(x)",
    "by a joined name": 'getattr(torch, "sa" "ve")(x, "f")',
    "by a name joined without room": 'getattr(torch, "sa""ve")(x, "f")',
    "by a name joined over lines": 'getattr(torch, "sa"\n  "ve")(x, "f")',
    "by a joined name of two kinds": "getattr(torch, \"sa\" 've')(x, \"f\")",
    "by a name in octal": 'getattr(torch, "\\163ave")(x, "f")',
    "by a name in hexadecimal": 'getattr(torch, "\\x73ave")(x, "f")',
    "by a name in Unicode": 'getattr(torch, "\\u0073ave")(x, "f")',
    "by a name with a prefix": 'getattr(torch, f"save")(x, "f")',
    "by a harmless name": 'getattr(torch, "relu")(x)',
    "by a name with its namespace": 'getattr(torch, "aten::relu")(x)',
    "by a name that is computed": 'n = "sa"\n    return getattr(torch, n)(x, "f")',
    "getattr with another name": 'g = getattr\n    return g(x, "0")',
    "getattr behind a look-alike": 'n = "getattr(self, \\"0\\")"\n    return getattr(torch, n)(x)',
    "a joined string anywhere": '{"sa" "ve": x}',
    "a string that is added to": '"sa" + "ve"',
    "a method of a string": '"sa".join(["v"])',
    "a decorator": "x\n  @torch\n  def f(self): return x",
    "storage": "torch.set_(x, y)",
    "strides": "torch.as_strided(x, [9], [9])",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_by_source(attack):
    head = "class M(Module):\n  def forward(self: __torch__.M,\n    x: Tensor) -> Tensor:\n    return "
    assert source_reason(head.encode() + ATTACKS[attack].encode() + b"\n")


def test_control_what_networks_say_is_let_through():
    source = (
        'class M(Module):\n  __parameters__ = ["weight", ]\n  weight : Tensor\n'
        "  def forward(self: __torch__.M,\n    x: Tensor) -> Tensor:\n    _0 = __torch__.lib.helper\n"
        "    y = torch.linear(x, self.weight)\n    if torch.gt(torch.len(torch.size(y)), 2):\n"
        '      raise AssertionError("too\\nmany")\n'
        "    return (_0)(ops.roast.linear(y, annotate(List[int], [])), )\n"
    )
    assert source_reason(source.encode()) is None


class Spoken(nn.Module):
    """Says whatever torch's writer has a spelling for: names that follow no dot, strings, escapes, inf."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.GELU()), nn.Linear(2, 2))
        self.named = nn.ModuleDict({"my-key": nn.Linear(2, 2), "if": nn.ReLU()})
        self.register_parameter("x y", nn.Parameter(torch.zeros(2)))

    def forward(self, x: torch.Tensor, mode: str = "a\tb\x01"):
        if mode == "no'ne":
            x = x.masked_fill(x > 0, float("-inf")) * 2.5e20
        assert x.size(0) < 10, f"too {mode} many\\"
        word = "a" if x.size(0) == 5 else mode
        while x.size(0) > 4:
            x = x[:-1, ...]
        both = {"first": self.steps(x) + self.named["my-key"](x), "second": self.named["if"](x) * 2j}
        return both, word + "{} %s", ["q", "r"][0] in word, 1e-7


def source_of(module):
    blob = io.BytesIO()
    torch.jit.save(module, blob)
    with zipfile.ZipFile(blob) as archive:
        return b"\n".join(archive.read(name) for name in archive.namelist() if name.endswith(".py"))


def test_control_what_torch_writes_is_let_through():
    traced = torch.jit.trace(Spoken().steps, torch.zeros(2, 2))
    for module in (torch.jit.script(Spoken().eval()), traced):
        source = source_of(module)
        assert b'getattr(self, "0")' in source
        assert source_reason(source) is None


def test_a_file_that_writes_files_by_a_joined_name(files, tmp_path):
    """The whole attack: the file says "sa" and "ve", and torch.jit.load reads "save"."""
    target = tmp_path / "written"
    path = tmp_path / "m.ts"
    with zipfile.ZipFile(files["native"]) as source, zipfile.ZipFile(path, "w") as changed:
        for name in source.namelist():
            blob = source.read(name)
            if "/to_torchscript" in name:
                first = blob.index(b"\n    ", blob.index(b"-> ", blob.index(b"def forward")))
                call = b'\n    _0q = getattr(torch, "sa" "ve")(torch.rand([2]), "%s")' % str(target).encode()
                blob = blob[:first] + call + blob[first:]
            changed.writestr(name, blob)
    with pytest.raises(RoastError, match=r"torch does not write|where torch writes none"):
        open_artifact(path)
    assert not target.exists()
    with torch.no_grad():
        torch.jit.load(path)(**small_inputs())
    assert target.exists(), "the control: torch joins the two"


class Curved(nn.Module):
    """Calls operators that torch has changed since the first version of its archives."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return nn.functional.gelu(self.layer(x)) + torch.linspace(0, 1, 64) + torch.logspace(0, 1, 64)


@pytest.mark.parametrize("form", FORMS)
def test_control_a_version_by_its_longer_name(tmp_path, form):
    target, portable = FORMS[form]
    path, model = tmp_path / "m.ts", roast_export.compress(Curved().eval(), 4, min_params=512)
    options = {"to": target, "portable": portable, "example_inputs": (torch.ones(2, 64),)}
    roast_export.export(model, path, **options, verify=False)
    with zipfile.ZipFile(path) as archive:
        assert "archive/.data/version" in archive.namelist()
    assert open_artifact(path).layers
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/.data/other", b"1")
    with pytest.raises(RoastError, match=r"\.data/other"):
        open_artifact(path)


@pytest.mark.parametrize("name", ["aten::add", "aten::_softmax", "aten::embedding_bag", "roast::linear"])
def test_control_functional(name):
    assert is_functional(name)


@pytest.mark.parametrize(
    "name",
    [
        "aten::save",
        "aten::from_file",
        "aten::resize_",
        "aten::_sparse_csr_tensor_unsafe",
        "prim::Print",
        "rpc::x",
    ],
)
def test_not_functional(name):
    assert not is_functional(name)


def test_a_module_in_front_of_a_good_archive_is_not_run(files, tmp_path):
    """A zip archive is found by its end, and torch goes by the beginning."""
    path, sentinel = tmp_path / "m.ptl", tmp_path / "written"
    torch.jit.save_jit_module_to_flatbuffer(torch.jit.script(Writes(str(sentinel))), path)
    with zipfile.ZipFile(files["lite"]) as source, zipfile.ZipFile(path, "a") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert script_runs_code(path) is None, "the archive alone is harmless"
    for trust in (False, True):
        with pytest.raises(RoastError, match="export it again"):
            open_artifact(path, trust=trust)
    with pytest.raises(LoadError):
        roast_export.load(path)
    assert not sentinel.exists()
    _load_for_lite_interpreter(str(path))(torch.ones(2))
    assert sentinel.exists(), "the control: torch runs what stands in front"


@pytest.mark.parametrize("name", [b"PTMF", b"ORTM", b"ET12"])
def test_an_archive_with_the_name_of_another_format_in_its_head_is_none(files, name):
    whole = files["lite"].read_bytes()
    assert begins_as_zip(io.BytesIO(whole))
    assert not begins_as_zip(io.BytesIO(whole[:4] + name + whole[8:]))
    assert not begins_as_zip(io.BytesIO(b"junk" + whole))
