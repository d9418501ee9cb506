"""save and load: what opens, what is refused by name, and attacks with files that carry code."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import library, nn

from roast_export import compress, export, load, save
from roast_export.archive import check_names
from roast_export.errors import ExportError, InputError, LoadError
from roast_export.program import LoadedProgram

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
Members = dict[str, bytes]


class Mixed(nn.Module):
    """An embedding, two layers, a constant, named inputs, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 40)

    def forward(self, ids: torch.Tensor, added: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.cat([self.table(ids) + added, added], 1)
        return {"y": self.down(torch.relu(self.up(y))) + torch.tensor(2.0)}


def inputs(batch: int = 1, length: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, 64, (batch, length), generator=generator)
    return {"ids": ids, "added": torch.randn(batch, length, 32, generator=generator)}


def make_mixed() -> nn.Module:
    return compress(Mixed(), 20)


def make_list() -> list[int]:
    return []


NOT_CALLABLE = 3
HERE = f"{__name__}:"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_mixed().eval()


@pytest.fixture(scope="module")
def archive(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    save(model, path, inputs())
    return path


@pytest.fixture
def members(archive) -> Members:
    with zipfile.ZipFile(archive) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def write(path: Path, found: Members | list[tuple[str, bytes]], root: str = "model/") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, blob in found.items() if isinstance(found, dict) else found:
            file.writestr(root + name, blob)
    return path


# ---- What opens ----


@pytest.mark.parametrize(("batch", "length"), [(1, 5), (2, 5), (7, 3)])
def test_an_archive_gives_the_same_outputs_at_every_length(model, archive, batch, length):
    values = inputs(batch, length)
    opened = load(archive)
    assert isinstance(opened, LoadedProgram)
    with torch.no_grad():
        assert torch.equal(opened(**values)["y"], model(**values)["y"])
        assert not torch.equal(opened(**values)["y"], model(values["ids"], values["added"] + 1)["y"])


def test_an_archive_keeps_records(archive):
    layers = load(archive).roast_layers
    assert set(layers) == {"table.weight", "up.weight", "down.weight"}
    assert {layer.array for layer in layers.values()} == {next(iter(layers.values())).array}
    note = json.loads(zipfile.ZipFile(archive).read("archive/extra/roast.json"))
    assert note["layers"] == {name: layer.mapping.to_list() for name, layer in layers.items()}


def test_an_archive_opens_in_a_process_without_the_model(model, archive, tmp_path):
    program = (
        "import sys, torch; from roast_export import load; m = load(sys.argv[1]);"
        "torch.save(m(**torch.load(sys.argv[2]))['y'], sys.argv[3]);"
        "assert not any('test_load' in name for name in sys.modules)"
    )
    torch.save(inputs(3, 4), tmp_path / "in.pt")
    files = [str(archive), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(
        [sys.executable, "-c", program, *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), model(**inputs(3, 4))["y"])


def test_an_archive_of_torch_itself_opens(model, tmp_path):
    program = torch.export.export(model, (), inputs(2))
    torch.export.save(program, tmp_path / "m.pt2")
    assert torch.equal(load(tmp_path / "m.pt2")(**inputs(2))["y"], program.module()(**inputs(2))["y"])


class Awkward(nn.Module):
    """Names that look like the archive's own fields, and what torch.export turns into unusual operators."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a b": nn.Linear(16, 16), "c-d/e:f": nn.Linear(16, 16)})

    def forward(self, target, name, metadata, nested, context=None):
        with torch.no_grad():
            fixed = target * 2
        y = self.parts["a b"](fixed) + self.parts["c-d/e:f"](name) + nested["x y"][0]
        y = torch.cond(y.sum() > 0, lambda t: t + 1, lambda t: t - 1, (y,))
        y = torch.einsum("bij,kj->bik", y, self.parts["a b"].weight)
        inside = ((y > 0) | (y < -1)) & (y < 5)
        return {
            "loss/mean:0": y.mean(),
            "parts": [y[:, : y.shape[1] // 2], (inside,)],
            "metadata": metadata + 1,
        }


def test_control_unusual_but_harmless_archives_open(tmp_path):
    t = torch.randn(2, 6, 16)
    values = {"target": t, "name": t, "metadata": t, "nested": {"x y": (t,)}, "context": None}
    awkward = Awkward().eval()
    save(awkward, tmp_path / "m.pt", values)
    found, wanted = load(tmp_path / "m.pt")(**values), awkward(**values)
    leaves = torch.utils._pytree.tree_leaves
    assert all(torch.equal(a, b) for a, b in zip(leaves(found), leaves(wanted), strict=True))


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_opens_with_its_factory(model, tmp_path, key, zipped):
    state = model.state_dict()
    content = state if key is None else {"epoch": 3, key: state}
    torch.save(content, tmp_path / "s.pt", _use_new_zipfile_serialization=zipped)
    opened = load(tmp_path / "s.pt", model=HERE + "make_mixed")
    assert not opened.training
    assert torch.equal(opened(**inputs())["y"], model(**inputs())["y"])
    assert not torch.equal(opened(**inputs())["y"], make_mixed().eval()(**inputs())["y"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_module_needs_trust(model, tmp_path, zipped):
    torch.save(model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(LoadError, match=r"pickled object.*--trust.*it asks for .*Mixed"):
        load(tmp_path / "m.pt")
    assert torch.equal(load(tmp_path / "m.pt", trust=True)(**inputs())["y"], model(**inputs())["y"])


@pytest.mark.parametrize("gone", ["module", "class"])
def test_a_pickled_module_whose_code_is_gone(tmp_path, monkeypatch, gone):
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "passing_module.py"
    source.write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    import passing_module

    torch.save(passing_module.Net(), tmp_path / "m.pt")
    if gone == "module":
        monkeypatch.setitem(sys.modules, "passing_module", None)
    else:
        monkeypatch.delattr(passing_module, "Net")
    with pytest.raises(LoadError, match=r"needs its model's code.*PYTHONPATH"):
        load(tmp_path / "m.pt", trust=True)
    monkeypatch.undo()
    sys.modules.pop("passing_module")


# ---- What is refused by name ----


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return buffer.getvalue()


def _torch(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"epoch,loss\n1,0.5\n" * 9, "is a text file"),
    "text of one line": (b"hello", "is a text file"),
    "random bytes": (np.random.default_rng(0).bytes(3000), "is of no kind known here"),
    "zeros": (bytes(1000), "is of no kind known here"),
    "only PK": (b"PK\x03\x04", "truncated or damaged"),
    "TorchScript": (_zip("m/constants.pkl", "m/data.pkl"), "is a TorchScript archive.*Python model"),
    "zip": (_zip("readme.txt"), "is a zip file without a model"),
    "npz": (_npz(), "is a numpy archive"),
    "ORT": (b"\x1c\0\0\0ORTM" + bytes(64), "is an ORT-format model.*already"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(64), "is a GGUF file"),
    "safetensors": ((60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}'.ljust(90), "truncated or damaged"),
    "list": (_torch([1, 2]), "holds a list, not a module or a state dict"),
    "tensor": (_torch(torch.zeros(3)), "holds a Tensor"),
    "dict of numbers": (_torch({"epoch": 3}), "holds a dict"),
    "dict with numbers as keys": (_torch({1: torch.zeros(2)}), "holds a dict"),
    "pickle cut off": (pickle.dumps(list(range(99)))[:40], "truncated or damaged|pickled object"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("trust", [False, True], ids=["", "trust"])
def test_another_kind_of_file_is_refused_by_name(tmp_path, name, trust):
    content, message = REFUSED[name]
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(LoadError, match=message if not (trust and name == "pickle cut off") else "unpickled"):
        load(tmp_path / "m.pt", trust=trust)


def test_an_onnx_model_is_refused_by_name(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\x12\x0croast-export" + bytes(range(128, 256)))
    with pytest.raises(LoadError, match=r"is an ONNX model.*roast-inspect"):
        load(tmp_path / "m.onnx")


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    with pytest.raises(LoadError, match="does not exist"):
        load(tmp_path / "m.pt")
    with pytest.raises(LoadError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [5, 100, 1000, -1000, -500, -30, -1])
@pytest.mark.parametrize("kind", ["archive", "state dict"])
def test_a_truncated_file_is_refused(archive, model, tmp_path, kind, keep):
    whole = archive.read_bytes() if kind == "archive" else _torch(model.state_dict())
    (tmp_path / "m.pt").write_bytes(whole[:keep])
    with pytest.raises(LoadError, match="truncated or damaged"):
        load(tmp_path / "m.pt", model=HERE + "make_mixed")


@pytest.mark.parametrize("member", ["data/weights/weight_0", MODEL, WEIGHTS, SAMPLES, "extra/roast.json"])
def test_one_flipped_byte_is_refused(archive, tmp_path, member):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo(f"archive/{member}")
    content[content.index(file_start(content, info)) + info.file_size // 2] ^= 1
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(LoadError, match=rf"damaged in its member archive/{member}"):
        load(tmp_path / "m.pt")


def file_start(content: bytearray, info: zipfile.ZipInfo) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return file.read(info)


DAMAGE: dict[str, Callable[[Members], Members]] = {
    "no graph": lambda m: {k: v for k, v in m.items() if k != MODEL},
    "no samples": lambda m: {k: v for k, v in m.items() if k != SAMPLES},
    "no weights": lambda m: {k: v for k, v in m.items() if k != "data/weights/weight_0"},
    "graph is not JSON": lambda m: m | {MODEL: b"{"},
    "graph is a list": lambda m: m | {MODEL: b"[]"},
    "graph is deep": lambda m: m | {MODEL: b"[" * 100_000},
    "graph is not UTF-8": lambda m: m | {MODEL: b"\xff\xfe"},
    "payloads are not objects": lambda m: m | {WEIGHTS: b'{"config": {"a": 3}}'},
    "weights too short": lambda m: m | {"data/weights/weight_0": b"\0" * 8},
    "weights of odd length": lambda m: m | {"data/weights/weight_0": b"\0" * 7},
    "another version": lambda m: m | {"archive_version": b"99"},
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("trust", [False, True], ids=["", "trust"])
def test_a_damaged_archive_is_refused(members, tmp_path, name, trust):
    with pytest.raises(LoadError, match=r"cannot be opened as a torch|truncated or damaged"):
        load(write(tmp_path / "m.pt", DAMAGE[name](members)), trust=trust)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (None, "is a state dict of [0-9]+ entries.*--model package.module:factory"),
        ("make_mixed", "must look like package.module:factory"),
        ("package:", "must look like"),
        (":make_mixed", "must look like"),
        ("no_such_module_here:f", "cannot be imported: No module named"),
        (HERE + "no_such_factory", "cannot be imported: .*no_such_factory"),
        (HERE + "NOT_CALLABLE", "is not callable"),
        (HERE + "make_list", "makes a list, not an nn.Module"),
        ("torch.nn:Identity", r"does not fit what torch.nn:Identity makes: Unexpected key"),
    ],
)
def test_a_state_dict_without_the_right_factory_is_refused(model, tmp_path, factory, message):
    torch.save(model.state_dict(), tmp_path / "s.pt")
    with pytest.raises(LoadError, match=message):
        load(tmp_path / "s.pt", model=factory)


def test_a_state_dict_with_missing_keys_is_refused(model, tmp_path):
    state = model.state_dict()
    state.pop("up.bias")
    torch.save(state, tmp_path / "s.pt")
    with pytest.raises(LoadError, match=r"does not fit .*Missing key.*up\.bias"):
        load(tmp_path / "s.pt", model=HERE + "make_mixed")


# ---- Attacks. Each would create the file SENTINEL; `code` is a Python statement that does so. ----


class Payload:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


class Shell(Payload):
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"{sys.executable} -c {self.code!r}",)


def as_legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


PICKLES: dict[str, Callable[[str], bytes]] = {
    "01 os.system, plain pickle": lambda code: pickle.dumps(Shell(code)),
    "02 os.system, torch.save": lambda code: _torch(Shell(code)),
    "03 os.system, legacy torch.save": lambda code: as_legacy(Shell(code)),
    "04 hidden in a state dict": lambda code: _torch({"w": torch.zeros(2), "x": Payload(code)}),
    "05 protocol 0": lambda code: b"\x80\x02" + pickle.dumps(Payload(code), protocol=0),
}


@pytest.fixture
def sentinel(tmp_path) -> Path:
    return tmp_path / "SENTINEL"


@pytest.fixture
def code(sentinel) -> str:
    return f"open({str(sentinel)!r}, 'w')"


@pytest.mark.parametrize("name", PICKLES)
def test_attack_by_pickle(tmp_path, sentinel, code, name):
    path = tmp_path / "m.pt"
    path.write_bytes(PICKLES[name](code))
    for arguments in ({}, {"model": HERE + "make_mixed"}):
        with pytest.raises(LoadError, match="--trust"):
            load(path, **arguments)
    assert not sentinel.exists()
    with pytest.raises(LoadError):
        load(path, trust=True)
    assert sentinel.exists(), "control: with trust the payload runs"


Attack = Callable[[Members, str], "Members | list[tuple[str, bytes]]"]


def edited(found: Members, member: str, change: Callable[[Any], None]) -> Members:
    tree = json.loads(found[member])
    change(tree)
    return found | {member: json.dumps(tree).encode()}


def payload(field: str, value: object, member: str = WEIGHTS) -> Attack:
    """One stored tensor says that it is pickled, in one way or another, and is."""

    def attack(found: Members, code: str) -> Members:
        tree = json.loads(found[member])
        one = tree["config"]["up.bias"] if member == WEIGHTS else next(iter(tree["config"].values()))
        one[field] = value
        one["tensor_meta"]["dtype"] = 1  # bytes, so that no length is wrong
        place = f"{member.rpartition('/')[0]}/{one['path_name']}"
        blob = pickle.dumps(Payload(code)) if field == "path_name" else _torch(Payload(code))
        return found | {member: json.dumps(tree).encode(), place: blob}

    return attack


def chars(code: str, form: str) -> str:
    return " + ".join(form.format(ord(char)) for char in code)


def expression(text: Callable[[str], object]) -> Attack:
    """Shape expressions, which torch reads back with sympy, that is with eval."""

    def attack(found: Members, code: str) -> Members:
        def walk(tree: Any) -> Iterator[dict[str, Any]]:
            if isinstance(tree, dict):
                yield from (tree,) if "expr_str" in tree else ()
            for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
                yield from walk(item)

        return edited(found, MODEL, lambda tree: next(walk(tree)).update(expr_str=text(code)))

    return attack


def node(target: str, *arguments: dict[str, Any], output: str | None = None, kind: int = 1) -> Attack:
    """A call in front of the graph. An argument is written as in the archive; CODE in it is replaced."""

    def attack(found: Members, code: str) -> Members:
        def change(tree: Any) -> None:
            graph = tree["graph_module"]["graph"]
            graph["tensor_values"]["q"] = graph["tensor_values"]["added"]
            named = [{"name": a.pop("name", ""), "arg": a, "kind": kind} for a in map(dict, arguments)]
            text = json.dumps(named).replace("CODE", json.dumps(code)[1:-1])
            text = text.replace("SENTINEL", json.dumps(code.split("'")[1])[1:-1])
            made = [{"as_tensor": {"name": output}}] if output else [{"as_none": True}]
            call = {
                "target": target,
                "inputs": json.loads(text),
                "outputs": made,
                "metadata": {},
                "name": "q",
            }
            graph["nodes"].insert(0, call)

        return edited(found, MODEL, change)

    return attack


def renamed(old: str, new: str, *, field: str = MODEL) -> Attack:
    """A name that torch writes into the Python source of the graph."""

    def attack(found: Members, code: str) -> Members:
        wanted = new.replace("CODE", f"exec({code!r})").replace("CHARS", f"exec({chars(code, 'chr({})')})")
        old_text, new_text = json.dumps(old).encode(), json.dumps(wanted).encode()
        changed = {name: found[name].replace(old_text, new_text) for name in (MODEL, WEIGHTS)}
        assert changed[field] != found[field]
        return found | changed

    return attack


def signature(**fields: Any) -> Attack:
    def attack(found: Members, code: str) -> Members:
        def change(tree: Any) -> None:
            first = tree["graph_module"]["module_call_graph"][0]["signature"]
            for name, value in fields.items():
                text = value(first[name]) if callable(value) else value
                first[name] = json.loads(json.dumps(text).replace("CODE", f"exec({chars(code, 'chr({})')})"))

        return edited(found, MODEL, change)

    return attack


def out_spec(**fields: object) -> Attack:
    def change(text: str) -> str:
        protocol, spec = json.loads(text)
        return json.dumps([protocol, spec | fields])

    return signature(out_spec=change)


def extra(
    name: str, blob: Callable[[str], bytes] = _torch, *, without: str = "", first: bool = False
) -> Attack:
    def attack(found: Members, code: str) -> list[tuple[str, bytes]]:
        kept = [(key, value) for key, value in found.items() if key != without]
        added = [(name, blob(Payload(code)) if blob is _torch else blob(code))]  # type: ignore[arg-type]
        return added + kept if first else kept + added

    return attack


def moved(old: str, new: str, then: Attack) -> Attack:
    def attack(found: Members, code: str) -> Members:
        changed = dict(then(found, code))
        changed[new] = changed.pop(old)
        return changed

    return attack


IMPORT = json.dumps([{"__enum__": True, "fqn": "sentinel_module:Kind", "name": "y"}])
DEFAULT = {
    "default_factory_module": "sentinel_module", "default_factory_name": "Kind", "dict_context": ["y"],
}  # fmt: skip

ARCHIVES: dict[str, Attack] = {
    "10 sample inputs": lambda m, code: m | {SAMPLES: _torch(Payload(code))},
    "11 sample inputs, plain pickle": lambda m, code: m | {SAMPLES: pickle.dumps(Payload(code), 2)},
    "12 sample inputs under PT": extra("data/sample_inputs/model.PT", without=SAMPLES),
    "13 sample inputs under PT too": extra("data/sample_inputs/Model.PT", first=True),
    "14 sample inputs twice, first": extra(SAMPLES, first=True),
    "15 sample inputs twice, last": extra(SAMPLES),
    "16 weights of torch 2.7": extra("data/weights/model.pt"),
    "17 constants of torch 2.7": extra("data/constants/model.pt"),
    "20 weight with use_pickle": payload("use_pickle", True),
    "21 weight with use_pickle 1": payload("use_pickle", 1),
    "22 weight with use_pickle as text": payload("use_pickle", "false"),
    "23 constant with use_pickle": payload("use_pickle", True, CONSTANTS),
    "24 constant of an opaque kind": payload("path_name", "opaque_obj_0", CONSTANTS),
    "30 expression, import": expression(lambda code: f"__import__('builtins').exec({code!r})"),
    "31 expression, exec of chr": expression(lambda code: f"exec({chars(code, 'chr({})')})"),
    "32 expression, brackets round names": expression(lambda code: f"(exec)({chars(code, '(chr)({})')})"),
    "33 expression, inside a known call": expression(lambda code: f"Add(Integer(1), exec({code!r}))"),
    "34 expression, text that sympy reads": expression(
        lambda code: f"Max({f'exec({code!r})'!r}, Integer(2))"
    ),
    "35 expression, graph under another name": moved(
        MODEL, "models/model_json", expression(lambda code: f"exec({code!r})")
    ),
    "40 name of an input": renamed("added", "added=CODE"),
    "50 import by an enum": out_spec(context=IMPORT),
    "51 import by a defaultdict": out_spec(type="collections.defaultdict", context=DEFAULT),
    "60 operator that writes a file": node(
        "torch.ops.aten.from_file.default",
        {"name": "filename", "as_string": "SENTINEL"},
        {"name": "shared", "as_bool": True},
        {"name": "size", "as_int": 5},
        output="q",
    ),
    "61 guards": lambda m, code: edited(
        m, MODEL, lambda tree: tree.update(guards_code=[f"exec({chars(code, 'chr({})')}) or True"])
    ),
}  # fmt: skip
"""Attacks that run with torch.export.load."""

STOPPED: dict[str, Attack] = {
    "70 call of os.system": node("torch.os.system", {"as_string": "true"}),
    "71 call by operator.call": node(
        "_operator.call", {"as_operator": "torch.os.system"}, {"as_string": "true"}
    ),
    "72 call of eval through math": node("math.__loader__.load_module", {"as_string": "antigravity"}),
    "73 call of an operator's class": node("torch.ops.aten.__class__.__init__"),
    "74 load_library": node("torch.ops.load_library.__call__", {"as_string": "/nonexistent.so"}),
    "75 operator that saves": node("torch.ops.aten.save.default", {"as_string": "SENTINEL"}),
    "88 operator of a library that writes files": node("torch.ops.torchaudio.sox_io_save_audio_file.default"),
    "76 name of a keyword": node(
        "torch.ops.higher_order.cond", {"name": "a=CODE or", "as_bool": True}, kind=2
    ),
    "77 names of arguments": signature(forward_arg_names=["ids", "added=CODE"]),
    "78 names in the input spec": signature(
        forward_arg_names=None, in_spec=lambda text: text.replace('\\"added\\"', '\\"added=CODE\\"')
    ),
    "79 name of a parameter": renamed("up.bias", 'up.bias"), CHARS, getattr(self, "', field=WEIGHTS),
    "80 compiled library": extra("data/aotinductor/model/model.so"),
    "81 compiled library elsewhere": extra("data/weights/libx.so"),
    "82 script object": payload("path_name", "custom_obj_0", CONSTANTS),
    "83 another folder's tensor": payload("path_name", "../sample_inputs/model.pt"),
    "84 expression as a list": expression(lambda code: [f"exec({code!r})"]),
    "85 expression, attribute": expression(lambda code: "Integer.__class__"),
    "86 expression, lambda": expression(lambda code: f"(lambda: exec({code!r}))()"),
    "87 expression, f-string": expression(lambda code: f"Symbol(f'{{exec({code!r})}}')"),
}  # fmt: skip
"""Attacks that fail somewhere in torch 2.13 too, perhaps by luck."""


def run_unguarded(path: Path) -> None:
    """What opening and running would be without the checks of load."""
    try:
        torch.export.load(path).module()(**inputs())
    except Exception:
        return


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ARCHIVES)
def test_attack_by_archive(members, tmp_path, sentinel, code, name, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sentinel_module.py").write_text(f"{code}\nKind = dict\n")
    path = write(tmp_path / "m.pt2", ARCHIVES[name](members, code))
    if name == "61 guards":
        load(path)(**inputs())  # guards are dropped, and every archive has some
    else:
        with pytest.raises(LoadError, match=r"runs code when opened .*--trust"):
            load(path)
    assert not sentinel.exists()
    run_unguarded(path)
    sys.modules.pop("sentinel_module", None)
    assert sentinel.exists(), "control: without the checks the payload runs"


@pytest.mark.parametrize("name", STOPPED)
def test_attack_that_torch_may_stop_is_refused_before(members, tmp_path, sentinel, code, name):
    with pytest.raises(LoadError, match=r"runs code when opened .*--trust|cannot be opened"):
        load(write(tmp_path / "m.pt2", STOPPED[name](members, code)))
    assert not sentinel.exists()


def test_attack_by_an_archive_of_torch_2_7(members, tmp_path, sentinel, code):
    """torch 2.13 still opens that form, with zipfile and without a folder."""
    old = {
        "version": b"8.20",
        "archive_format": b"pt2",
        "serialized_exported_program.json": members[MODEL],
        "serialized_constants.pt": _torch({}),
        "serialized_example_inputs.pt": _torch(()),
        "serialized_state_dict.pt": _torch(Payload(code)),
    }
    path = write(tmp_path / "m.pt2", old, root="")
    with pytest.raises(LoadError, match=r"runs code when opened .*'version'"):
        load(path)
    assert not sentinel.exists()
    run_unguarded(path)
    assert sentinel.exists(), "control: torch opens it"


def test_control_the_archive_that_the_attacks_are_made_from_opens(members, tmp_path):
    assert isinstance(load(write(tmp_path / "m.pt2", members)), LoadedProgram)


# ---- save ----


class Wide(nn.Module):
    """Eight layers whose weights share one array."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128, 128, bias=False) for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_shared_array_is_stored_once(tmp_path):
    compressed = compress(Wide(), 4)
    save(compressed, tmp_path / "m.pt", (torch.zeros(2, 128),))
    array = 8 * 128 * 128 * 4 // 4
    assert array < os.path.getsize(tmp_path / "m.pt") < 1.5 * array
    save(compress(Wide(), 4, local=True), tmp_path / "local.pt", (torch.zeros(2, 128),))
    with zipfile.ZipFile(tmp_path / "m.pt") as one, zipfile.ZipFile(tmp_path / "local.pt") as eight:
        counts = [sum("/weight_" in name for name in file.namelist()) for file in (one, eight)]
    assert counts == [1, 8]


class Unsure(nn.Module):
    """Runs, but cannot be traced: the branch depends on a value."""

    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x - 1


@library.custom_op("another_package::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Foreign(nn.Module):
    """Calls an operator that only another package has."""

    def forward(self, x):
        return twice(x)


@pytest.mark.parametrize(
    ("model", "example", "error", "message"),
    [
        (Foreign(), (torch.ones(3),), ExportError, "another_package.*; choose an implementation"),
        (Unsure(), (torch.ones(3),), ExportError, "cannot trace this model"),
        (nn.Linear(3, 4), (torch.zeros(2, 5),), InputError, "does not run on these inputs"),
        (nn.Linear(3, 4), {"nothing": torch.zeros(2, 3)}, InputError, "does not run on these inputs"),
    ],
)
def test_a_failed_save_keeps_what_was_there_and_leaves_nothing(tmp_path, model, example, error, message):
    path = tmp_path / "m.pt"
    path.write_bytes(b"precious")
    with pytest.raises(error, match=message):
        save(model, path, example)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["m.pt"]


def test_control_save_replaces_what_was_there(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"precious")
    save(nn.Linear(3, 4), tmp_path / "m.pt", (torch.zeros(2, 3),))
    assert load(tmp_path / "m.pt")(torch.zeros(5, 3)).shape == (5, 4)
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("missing/m.pt", "cannot write into .*missing: No such file"),
        ("", "is a folder; name a file"),
        ("file/m.pt", "cannot write into .*file: Not a directory"),
        ("/proc/m.pt", "cannot write into /proc"),
    ],
)
def test_save_where_nothing_can_be_written(tmp_path, where, message):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=message):
        save(nn.Linear(3, 4), tmp_path / where, (torch.zeros(2, 3),))


def test_saving_an_opened_archive_gives_the_same_program(archive, model, tmp_path):
    save(load(archive), tmp_path / "again.pt", inputs())
    assert torch.equal(load(tmp_path / "again.pt")(**inputs(4, 2))["y"], model(**inputs(4, 2))["y"])


# ---- Names ----


class Named(nn.Module):
    """A part and an output of any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(32, 32)})
        self.name = name

    def forward(self, x):
        return {self.name: self.parts[self.name](x)}


def any_name(name: str) -> nn.Module:
    return compress(Named(name).eval(), 4, min_params=64)


def test_a_name_that_load_refuses_is_refused_by_save(tmp_path):
    model, x = any_name("a(1)"), {"x": torch.randn(2, 32)}
    for write_it in (save, partial(export, to="pt2", verify=False)):
        with pytest.raises(ExportError, match=r"'parts\.a\(1\)\..*may not hold '\('.*rename"):
            write_it(model, tmp_path / "m.pt2", example_inputs=x)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("character", "()<>%{}=*;#!?&|~`$^+,'[]\x1b\"\\\n")
def test_check_names(character):
    with pytest.raises(ExportError, match="may not hold"):
        check_names(["fine", f"a{character}.weight"])


@pytest.mark.parametrize("character", '"\\\n\x1b')
def test_a_name_that_torch_cannot_trace_is_refused(tmp_path, character):
    options = {"example_inputs": {"x": torch.randn(2, 32)}, "verify": False}
    with pytest.raises(ExportError, match="rename the part"):
        export(any_name(f"a{character}"), tmp_path / "m.onnx", **options)


@pytest.mark.parametrize("name", ["a b-c/d:e@f", "ä日"])
def test_control_other_names_are_saved_and_opened(tmp_path, name):
    model, x = any_name(name), torch.randn(2, 32)
    save(model, tmp_path / "m.pt", {"x": x})
    assert torch.equal(load(tmp_path / "m.pt")(x=x)[name], model(x)[name])
