"""onnxruntime-web in node and in Chromium: weights bit by bit, models, and the page of samples/web."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

import roast_export
from roast_export import chromium, runtime_web, to_web
from roast_export.compare import compare_values
from roast_export.errors import ExportError, RoastError
from roast_export.onnx_ops import functions
from roast_export.runtimes import Runtime
from tests.mappings import pattern
from tests.models import Small, small_inputs
from tests.onnx_models import attributes, one_node
from tests.test_native_kernel import LARGE, assert_same_bits

SAMPLES = Path(__file__).parent.parent / "samples"
RUNTIMES = {runtime.name: runtime for runtime in runtime_web.runtimes()}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found = RUNTIMES[request.param]
    reason = found.unavailable()
    if reason:
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, np.ndarray], list[np.ndarray]]:
    """A file, inputs of another batch, and what torch makes of them."""
    torch.manual_seed(0)
    model = roast_export.compress(Small().eval(), ratio=4)
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    dynamic = {"ids": {0: "batch"}, "extra": {0: "batch"}}
    roast_export.export(model, path, example_inputs=small_inputs(), dynamic_shapes=dynamic, verify=False)
    inputs = small_inputs(3)
    with torch.no_grad():
        outputs = [value.numpy() for value in model(**inputs).values()]
    return path, {name: value.numpy() for name, value in inputs.items()}, outputs


def with_functions(model: bytes) -> bytes:
    """The model as the exporter leaves it: the operator is also a function in it."""
    proto = onnx.load_from_string(model)
    proto.functions.extend(functions({node.op_type for node in proto.graph.node}, 17))
    return proto.SerializeToString()


def test_a_model_agrees_with_torch(runtime, exported):
    path, inputs, expected = exported
    outputs = runtime.open(str(path))(inputs)
    assert len(outputs) == len(expected)
    for want, got in zip(expected, outputs, strict=True):
        assert compare_values(runtime.name, "y", "random", want, got, 1e-5, 1e-5).passed
        wrong = want + np.asarray(1e-3 * np.abs(want).max() + 1, want.dtype)
        assert not compare_values(runtime.name, "y", "random", wrong, got, 1e-5, 1e-5).passed


@pytest.mark.parametrize("name", ["matrices", "as is"])
def test_weights_are_equal_in_every_bit(runtime, name):
    m = LARGE[name]
    memory = pattern(m.n_memory)
    values = attributes(m, -1.7) | {"unit": m.tile_unit}
    model = with_functions(one_node("RoastGather", values, {"memory": memory}))
    assert_same_bits(runtime.open(model)({})[0], m.weight(memory, -1.7))


@pytest.mark.parametrize("model", [b"", b"not a model"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused(runtime, model):
    with pytest.raises(RoastError, match=r"onnxruntime-web cannot run the model|the page failed"):
        runtime.open(model)({})


def test_missing_tools_are_named_with_what_installs_them(monkeypatch, tmp_path):
    monkeypatch.setenv("ROAST_BUILD", str(tmp_path))
    monkeypatch.setattr(runtime_web.shutil, "which", lambda name: f"/usr/bin/{name}")
    for runtime in RUNTIMES.values():
        assert "is missing; run `make mobile`" in str(runtime.unavailable())
    monkeypatch.setattr(runtime_web.shutil, "which", lambda name: None)
    assert [runtime.unavailable() for runtime in RUNTIMES.values()] == [
        "there is no node on the path; install nodejs",
        "there is no Chromium on the path; install the package chromium",
    ]


def test_the_settings_say_what_a_page_needs(exported, tmp_path):
    path, inputs, _ = exported
    settings = to_web.write(path, tmp_path / "model.onnx")
    assert json.loads((tmp_path / "model.json").read_text()) == settings
    assert (tmp_path / "model.onnx").read_bytes() == path.read_bytes()
    assert [value["name"] for value in settings["inputs"]] == list(inputs)
    assert settings["options"]["extra"] == {
        "optimization": {"disable_specified_optimizers": "ConstantFolding"}
    }
    assert settings["dense_bytes"] > 2 * settings["bytes"] / 4


def test_control_settings_that_expand_the_weights_are_refused(exported, tmp_path, monkeypatch):
    path, _, _ = exported
    monkeypatch.setattr(to_web, "session_options", lambda **_: {"extra": {}})
    with pytest.raises(ExportError, match=r"with the settings for browsers, .* expanded"):
        to_web.write(path, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_what_needs_the_library_is_refused(tmp_path):
    m = LARGE["drawn"]
    path = tmp_path / "drawn.onnx"
    path.write_bytes(one_node("RoastGatherDrawn", attributes(m, drawn=True), {"memory": pattern(m.n_memory)}))
    with pytest.raises(ExportError, match="a browser cannot load it; export the model with --portable"):
        to_web.write(path, tmp_path / "web.onnx")


# ---- The page ----


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sample_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arc(x: float, y: float, rx: float, ry: float, first: int, last: int) -> list[tuple[float, float]]:
    """Points of an ellipse, in degrees clockwise from the right."""
    angles = [math.radians(k) for k in range(first, last + 1, 8)]
    return [(x + rx * math.cos(k), y + ry * math.sin(k)) for k in angles]


STROKES = {
    "0": arc(150, 150, 60, 95, -90, 270),
    "3": arc(140, 110, 55, 45, -100, 92) + arc(140, 205, 60, 50, -80, 120),
    "7": [(100 + 5 * k, 70) for k in range(26)] + [(225 - 3 * k, 70 + 8 * k) for k in range(1, 24)],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    """The page of samples/web, open in a browser, with a model that was trained for it."""
    reason = runtime_web.chromium_unavailable()
    if reason:
        pytest.skip(reason)
    pytest.importorskip("sklearn", reason="scikit-learn is missing; run `make setup`")
    digits, build = load_module(SAMPLES / "digits.py"), load_module(SAMPLES / "web" / "build.py")
    torch.manual_seed(0)
    images, _, labels, _ = digits.data()
    model = roast_export.compress(digits.Classifier(), 20, init="fresh", seed=0)
    digits.EPOCHS, threads = 10, torch.get_num_threads()
    torch.set_num_threads(1)  # such small products only wait for each other
    digits.train(model, images, labels, seed=0)
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("page")
    roast_export.export(
        model,
        folder / "digits.onnx",
        example_inputs=(images[:2],),
        dynamic_shapes={"x": {0: "batch"}},
        verify=False,
    )
    build.build(folder / "digits.onnx", folder / "web")
    with chromium.served({"page": folder / "web"}) as address, chromium.page() as found:
        found.open(f"{address}/page/index.html")
        yield found


def text(page: chromium.Page, name: str) -> str:
    return str(page.evaluate(f"document.getElementById('{name}').textContent"))


def draw(page: chromium.Page, points: list[tuple[float, float]]) -> str:
    """What the page answers to a drawing."""
    page.evaluate("document.getElementById('clear').click()")
    left, top = page.evaluate(
        "(({ left, top }) => [left, top])(document.getElementById('pad').getBoundingClientRect())"
    )
    page.drag([(left + x, top + y) for x, y in points])
    for _ in range(300):
        answer = text(page, "answer")
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError("the page gives no answer")


def test_the_page_reads_digits_that_are_drawn(page):
    assert {digit: draw(page, points) for digit, points in STROKES.items()} == {d: d for d in STROKES}


def test_the_page_shows_sizes_and_times(page):
    draw(page, STROKES["7"])
    model, dense = (int(text(page, name).removesuffix(" KiB")) for name in ("size", "dense"))
    assert 10 * model < dense
    assert text(page, "load").endswith(" ms")
    assert float(text(page, "run").removesuffix(" ms")) > 0


def test_the_page_needs_no_other_server(page):
    origins = page.evaluate(
        "[...new Set(performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin))]"
    )
    assert origins == [page.evaluate("location.origin")]


def test_control_an_empty_drawing_gives_no_answer(page):
    page.evaluate("document.getElementById('clear').click()")
    page.evaluate("document.getElementById('pad').dispatchEvent(new PointerEvent('pointerup'))")
    page.evaluate("new Promise(go => setTimeout(go, 300))")
    assert text(page, "answer") == ""
