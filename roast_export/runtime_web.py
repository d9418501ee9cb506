"""onnxruntime-web, the WebAssembly build for browsers: under node, and in a headless Chromium.

`make mobile` puts the package into build/web. Weights stay virtual: to_web.py has the settings.
"""

from __future__ import annotations

import atexit
import base64
import functools
import json
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from roast_export import chromium
from roast_export.built import build_folder, missing
from roast_export.errors import RoastError
from roast_export.runtimes import Array, Run, Runtime
from roast_export.tensor_file import decode, encode
from roast_export.to_web import session_options

LIMIT = 1 << 24
"""Virtual elements above which a run without the library takes minutes there."""

SCRIPTS = Path(__file__).parent / "web"


def runtimes() -> list[Runtime]:
    """onnxruntime-web in its two hosts."""
    return [
        Runtime("onnxruntime-web node", open_node, node_unavailable, limit=LIMIT),
        Runtime("onnxruntime-web chromium", open_chromium, chromium_unavailable, limit=LIMIT),
    ]


def package_folder() -> Path:
    """The files that a page loads."""
    return build_folder() / "web" / "node_modules" / "onnxruntime-web" / "dist"


def node_unavailable() -> str | None:
    if shutil.which("node") is None:
        return "there is no node on the path; install nodejs"
    return missing([package_folder() / "ort.node.min.mjs"], "make mobile")


def chromium_unavailable() -> str | None:
    if chromium.executable() is None:
        return "there is no Chromium on the path; install the package chromium"
    return missing([package_folder() / "ort.wasm.bundle.min.mjs"], "make mobile")


def open_node(model: str | bytes) -> Run:
    def run(inputs: dict[str, Array]) -> list[Array]:
        with tempfile.TemporaryDirectory() as name:
            folder = _filled(Path(name), model, inputs)
            paths = [str(folder / part) for part in ("model", "in", "out")]
            complaint = _ask_node(json.dumps(paths))
            if complaint:
                raise RoastError(f"onnxruntime-web cannot run the model: {complaint}")
            return decode((folder / "out").read_bytes())

    return run


# Its start and that of WebAssembly take longer than most models: one node runs them all.
@functools.cache
def _node() -> subprocess.Popen[str]:
    module = package_folder() / "ort.node.min.mjs"
    words = ("node", SCRIPTS / "run.mjs", module, json.dumps(session_options()))
    process = subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(process.kill)
    return process


def _ask_node(line: str) -> str:
    """What went wrong, or nothing."""
    process = _node()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(line, file=process.stdin, flush=True)
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    complaint = str(json.loads(answer)) if answer else f"node ended with status {process.wait()}"
    if complaint:
        # WebAssembly that was aborted is of no use to the next model.
        process.kill()
        _node.cache_clear()
    return complaint


_IN_PAGE = """
(async () => {
  const ort = await import("/ort/ort.wasm.bundle.min.mjs");
  const { decode, encode } = await import("/scripts/tensors.mjs");
  ort.env.wasm.numThreads = 1;
  const bytes = async (name) => new Uint8Array(await (await fetch(`/files/FOLDER/${name}`)).arrayBuffer());
  const session = await ort.InferenceSession.create(await bytes("model"), OPTIONS);
  const results = await session.run(decode(await bytes("in"), ort));
  let text = "";
  for (const byte of encode(session.outputNames, results)) text += String.fromCharCode(byte);
  await session.release();
  return btoa(text);
})()
"""


def open_chromium(model: str | bytes) -> Run:
    def run(inputs: dict[str, Array]) -> list[Array]:
        kept, files, page = _page()
        with tempfile.TemporaryDirectory(dir=files) as name:
            folder = _filled(Path(name), model, inputs)
            options = json.dumps(session_options())
            try:
                answer = page.evaluate(_IN_PAGE.replace("FOLDER", folder.name).replace("OPTIONS", options))
            except RoastError:
                kept.close()
                _page.cache_clear()
                raise
            return decode(base64.b64decode(answer))

    return run


@functools.cache
def _page() -> tuple[ExitStack, Path, chromium.Page]:
    """A folder that is /files of a server, and a page from there that runs one model after the other.

    First what ends both.
    """
    kept = ExitStack()
    atexit.register(kept.close)
    files = Path(kept.enter_context(tempfile.TemporaryDirectory()))
    (files / "index.html").write_text("<!doctype html><title>roast</title>", encoding="utf-8")
    folders = {"files": files, "ort": package_folder(), "scripts": SCRIPTS}
    address = kept.enter_context(chromium.served(folders))
    page = kept.enter_context(chromium.page())
    page.open(f"{address}/files/index.html")
    return kept, files, page


def _filled(folder: Path, model: str | bytes, inputs: dict[str, Array]) -> Path:
    content = model if isinstance(model, bytes) else Path(model).read_bytes()
    (folder / "model").write_bytes(content)
    (folder / "in").write_bytes(encode(inputs))
    return folder
