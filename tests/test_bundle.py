"""Bundles: every name that a snippet uses is a file of the bundle, and golden values can be replayed."""

from __future__ import annotations

import json
import plistlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import roast_export
from roast_export import bundle, chromium, runtime_qemu, runtime_web
from roast_export.built import build_folder
from roast_export.compare import compare_values
from roast_export.errors import ExportError, InputError
from tests.models import Small, small_inputs

BOUNDS = {"scores": 1e-6, "best": 0.0}
DOCS = Path(__file__).parent.parent / "docs" / "mobile.md"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A file, one set of inputs, and what torch makes of them."""
    torch.manual_seed(0)
    model = roast_export.compress(Small().eval(), ratio=4)
    path = tmp_path_factory.mktemp("small") / "tagger.onnx"
    roast_export.export(model, path, example_inputs=small_inputs(), verify=False)
    inputs = small_inputs()
    with torch.no_grad():
        values = model(**inputs).values()
    names = [value.name for value in onnx.load(path).graph.output]
    outputs = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    return path, {name: value.numpy() for name, value in inputs.items()}, outputs


@pytest.fixture(params=bundle.PLATFORMS)
def made(request, exported, tmp_path):  # type: ignore[no-untyped-def]
    """(platform, folder, names of its files)."""
    if not (build_folder() / "cross" / "libraries.json").is_file():
        pytest.skip("the libraries have not been built; run `make cross`")
    path, inputs, outputs = exported
    names = bundle.write(path, request.param, tmp_path / "b", inputs=inputs, outputs=outputs, bounds=BOUNDS)
    return request.param, tmp_path / "b", names


def read(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def golden(folder: Path, key: str) -> dict[str, np.ndarray]:
    values = json.loads(read(folder, "golden.json"))[key]
    return {name: np.array(v["data"], v["type"]).reshape(v["dims"]) for name, v in values.items()}


def test_golden_values_are_strict_json(exported, tmp_path):
    """No NaN of Python's in a file that JavaScript, Kotlin and Swift read."""
    path, inputs, _ = exported
    special = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    outputs = {"scores": special, "best": np.zeros(1, np.int64)}
    bundle.write(
        path, "web", tmp_path / "b", inputs=inputs, outputs=outputs, bounds=BOUNDS | {"scores": np.inf}
    )

    def refuse(word: str) -> None:
        raise ValueError(word)

    stated = json.loads(read(tmp_path / "b", "golden.json"), parse_constant=refuse)["outputs"]["scores"]
    assert stated["data"] == ["NaN", "Infinity", "-Infinity", 1.5]
    assert np.array_equal(golden(tmp_path / "b", "outputs")["scores"], special, equal_nan=True)
    assert stated["bound"] == "Infinity"


def agrees(outputs: list[np.ndarray], folder: Path) -> bool:
    expected = golden(folder, "outputs")
    stated = json.loads(read(folder, "golden.json"))["outputs"]
    assert len(outputs) == len(expected) > 0
    checks = [
        compare_values("bundle", name, "golden", want, got, float(stated[name]["bound"]), 0.0).passed
        for (name, want), got in zip(expected.items(), outputs, strict=True)
    ]
    return all(checks)


def test_the_readme_lists_every_file(made):
    platform, folder, names = made
    readme = read(folder, "README.md")
    listed = re.findall(r"^\| `([^`]+)` \|", readme, re.MULTILINE)
    assert sorted([*listed, "README.md"]) == names
    assert platform in readme
    assert sum(name.endswith(("tagger.onnx",)) for name in names) == 1


def test_nothing_is_left_to_fill_in(made):
    _, folder, names = made
    texts = [read(folder, name) for name in names if not name.endswith((".so", ".a", ".onnx"))]
    assert texts
    assert not any("{{" in text or "{%" in text for text in texts)


def test_names_in_the_registration_are_names_of_files(made):
    platform, folder, names = made
    if platform == "android":
        text = read(folder, "app/src/main/kotlin/Roast.kt")
        (library,) = re.findall(r'System\.loadLibrary\("(\w+)"\)', text)
        (registered,) = re.findall(r'registerCustomOpLibrary\("([\w.]+)"\)', text)
        (model,) = re.findall(r'assets\.open\("([\w.]+)"\)', text)
        assert registered == f"lib{library}.so"
        abis = {name.split("/")[-2] for name in names if name.endswith(registered)}
        assert abis == {"arm64-v8a", "armeabi-v7a", "x86_64"}
        assert f"app/src/main/assets/{model}" in names
    elif platform == "ios":
        text = read(folder, "Roast.swift")
        ((stem, suffix),) = re.findall(r'forResource: "([\w.]+)", ofType: "(\w+)"', text)
        (function,) = re.findall(r"registerCustomOps\(functionPointer: (\w+)\)", text)
        header = read(folder, "RoastOrt.xcframework/ios-arm64/Headers/RoastOrt.h")
        assert f"{stem}.{suffix}" in names
        assert f" {function}(" in header
        assert "import RoastOrt\n" in text
        assert "module RoastOrt " in read(folder, "RoastOrt.xcframework/ios-arm64/Headers/module.modulemap")
    elif platform == "web":
        text = read(folder, "roast.mjs")
        (settings,) = re.findall(r"\$\{base\}/([\w.]+)`", text)
        assert json.loads(read(folder, settings))["model"] in names
    else:
        text = read(folder, "main.cc")
        assert set(re.findall(r'"\.?/?([\w.]+\.(?:onnx|so))"', text)) <= set(names)


@pytest.mark.parametrize("platform", bundle.PLATFORMS)
def test_the_documentation_names_the_files_of_a_bundle(platform):
    text = DOCS.read_text(encoding="utf-8")
    assert f"`{platform}`" in text
    for item in bundle.ITEMS[platform]:
        name = item.place.split("/")[0 if ".xcframework" in item.place else -1]
        assert name in text, name


def test_the_documentation_uses_the_calls_of_the_bundles():
    text = DOCS.read_text(encoding="utf-8")
    for name, call in (
        ("Roast.kt.j2", r"System\.loadLibrary\(.*\)|options\.registerCustomOpLibrary\(.*\)"),
        ("Roast.swift.j2", r"registerCustomOps\(functionPointer: \w+\)"),
        ("roast.mjs.j2", r"openRoastSession\("),
        ("main.cc.j2", r"options\.RegisterCustomOpsLibrary\("),
    ):
        calls = re.findall(call, (bundle.FILES / name).read_text(encoding="utf-8"))
        assert calls
        assert all(found in text for found in calls), calls


def test_the_framework_holds_what_its_list_says():
    listed = plistlib.loads((bundle.FILES / "Info.plist").read_bytes())
    names = [item.place for item in bundle.ITEMS["ios"]]
    assert len(listed["AvailableLibraries"]) == 2
    for library in listed["AvailableLibraries"]:
        root = f"RoastOrt.xcframework/{library['LibraryIdentifier']}"
        assert f"{root}/{library['LibraryPath']}" in names
        assert any(name.startswith(f"{root}/{library['HeadersPath']}/") for name in names)


def test_golden_values_are_those_of_torch(exported, made):
    _, inputs, outputs = exported
    _, folder, names = made
    for key, values in (("inputs", inputs), ("outputs", outputs)):
        found = golden(folder, key)
        assert list(found) == list(values)
        assert all(np.array_equal(found[name], value) for name, value in values.items())
    (model,) = [name for name in names if name.endswith("tagger.onnx")]
    got = roast_export.create_session(folder / model).run(None, golden(folder, "inputs"))
    assert agrees(got, folder)
    assert not agrees([value + 1 for value in got], folder)


def test_a_bundle_for_arm_runs_on_arm(exported, tmp_path):
    reason = runtime_qemu.native_unavailable()
    if reason:
        pytest.skip(reason)
    path, inputs, outputs = exported
    bundle.write(path, "linux-arm64", tmp_path / "b", inputs=inputs, outputs=outputs, bounds=BOUNDS)
    model, library = (str(tmp_path / "b" / name) for name in ("tagger.onnx", "libroast_ort.so"))
    run = runtime_qemu.open_with(model, library)
    assert agrees(run(golden(tmp_path / "b", "inputs")), tmp_path / "b")


def test_a_bundle_for_the_web_runs_in_a_browser(exported, tmp_path):
    reason = runtime_web.chromium_unavailable()
    if reason:
        pytest.skip(reason)
    path, inputs, outputs = exported
    folder = tmp_path / "b"
    bundle.write(path, "web", folder, inputs=inputs, outputs=outputs, bounds=BOUNDS)
    (folder / "page.html").write_text(
        '<!doctype html><script type="importmap">'
        '{"imports": {"onnxruntime-web/wasm": "/ort/ort.wasm.bundle.min.mjs"}}</script>'
    )
    script = """(async () => {
      const ort = await import("onnxruntime-web/wasm");
      ort.env.wasm.numThreads = 1;
      const session = await (await import("/app/roast.mjs")).openRoastSession("/app");
      const feeds = {};
      for (const [name, v] of Object.entries((await (await fetch("/app/golden.json")).json()).inputs))
        feeds[name] = new ort.Tensor(v.type, v.type === "int64" ? v.data.map(BigInt) : v.data, v.dims);
      const results = await session.run(feeds);
      return session.outputNames.map((name) => Array.from(results[name].data, Number));
    })()"""
    served = {"app": folder, "ort": runtime_web.package_folder()}
    with chromium.served(served) as address, chromium.page() as page:
        page.open(f"{address}/app/page.html")
        found = page.evaluate(script)
    expected = golden(folder, "outputs").values()
    got = [np.array(data, v.dtype).reshape(v.shape) for data, v in zip(found, expected, strict=True)]
    assert agrees(got, folder)


def test_what_cannot_be_bundled_is_refused(exported, tmp_path, monkeypatch):
    path, inputs, outputs = exported
    with pytest.raises(InputError, match="platform 'amiga' is not one of android, ios, web, linux-arm64"):
        bundle.write(path, "amiga", tmp_path / "b", inputs=inputs, outputs=outputs, bounds=BOUNDS)
    large = {"x": np.zeros(bundle.LARGEST_GOLDEN + 1, np.float32)}
    with pytest.raises(InputError, match="bundle with a smaller batch"):
        bundle.write(path, "web", tmp_path / "b", inputs=large, outputs=outputs, bounds=BOUNDS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ExportError, match="not an empty folder"):
        bundle.write(path, "web", tmp_path / "full", inputs=inputs, outputs=outputs, bounds=BOUNDS)
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path))
    with pytest.raises(ExportError, match=r"libroast_ort\.so is missing; run `make cross`"):
        bundle.write(path, "android", tmp_path / "b", inputs=inputs, outputs=outputs, bounds=BOUNDS)
    assert not (tmp_path / "b").exists()
