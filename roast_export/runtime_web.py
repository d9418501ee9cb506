"""onnxruntime-web, the WebAssembly build for browsers: under node, and in a headless Chromium.

`make mobile` puts the package into build/web. Weights stay virtual: to_web.py has the settings.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
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
            folder = Path(name)
            (folder / "model").write_bytes(_content(model))
            (folder / "in").write_bytes(encode(inputs))
            command = [
                *("node", SCRIPTS / "run.mjs", package_folder() / "ort.node.min.mjs", folder / "model"),
                *(json.dumps(session_options()), folder / "in", folder / "out"),
            ]
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = done.stderr.strip()[-500:] or f"node ended with status {done.returncode}"
                raise RoastError(f"onnxruntime-web cannot run the model: {reason}")
            return decode((folder / "out").read_bytes())

    return run


_IN_PAGE = """
(async () => {
  const ort = await import("/ort/ort.wasm.bundle.min.mjs");
  const { decode, encode } = await import("/scripts/tensors.mjs");
  ort.env.wasm.numThreads = 1;
  const bytes = async (name) => new Uint8Array(await (await fetch(`/files/${name}`)).arrayBuffer());
  const session = await ort.InferenceSession.create(await bytes("model"), OPTIONS);
  const results = await session.run(decode(await bytes("in"), ort));
  let text = "";
  for (const byte of encode(session.outputNames, results)) text += String.fromCharCode(byte);
  return btoa(text);
})()
"""


def open_chromium(model: str | bytes) -> Run:
    def run(inputs: dict[str, Array]) -> list[Array]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model").write_bytes(_content(model))
            (folder / "in").write_bytes(encode(inputs))
            (folder / "index.html").write_text("<!doctype html><title>roast</title>", encoding="utf-8")
            folders = {"files": folder, "ort": package_folder(), "scripts": SCRIPTS}
            with chromium.served(folders) as address, chromium.page() as page:
                page.open(f"{address}/files/index.html")
                answer = page.evaluate(_IN_PAGE.replace("OPTIONS", json.dumps(session_options())))
            return decode(base64.b64decode(answer))

    return run


def _content(model: str | bytes) -> bytes:
    return model if isinstance(model, bytes) else Path(model).read_bytes()
