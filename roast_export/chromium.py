"""A headless Chromium that a program steers, and a local server for its pages. Nothing leaves the machine."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roast_export.errors import RoastError

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Without them it updates itself, and a page waits for services that are not there.
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--window-size=900,860"),
)

# The browser reads commands from descriptor 3 and answers on 4, which may be taken in this process.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def executable() -> str | None:
    """The browser's path, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page. Raises RoastError where the browser or the page's own code fails."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._n = write, read, b"", 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        self._call("Page.enable")
        self._call("Page.navigate", url=url)
        self.evaluate("document.readyState === 'complete' || new Promise(go => addEventListener('load', go))")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            detail = found["exceptionDetails"]
            text = detail.get("exception", {}).get("description") or detail.get("text", "")
            raise RoastError(f"the page failed: {text.splitlines()[0] if text else 'unknown error'}")
        return found["result"].get("value")

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Press the left button at the first point, move through the others, release it at the last."""
        kinds = ["mousePressed"] + ["mouseMoved"] * (len(points) - 1) + ["mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
            )

    def screenshot(self) -> bytes:
        """What the page shows, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._n += 1
        message: dict[str, Any] = {"id": self._n, "method": method, "params": parameters}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        _write_all(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._n:
                break
        if "error" in answer:
            raise RoastError(f"chromium refuses {method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RoastError("chromium ended before it answered; run it by hand to see why")
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def page() -> Iterator[Page]:
    """A page of a fresh browser, which ends with the context.

    Raises:
        RoastError: there is no Chromium, or it does not start.
    """
    path = executable()
    if path is None:
        raise RoastError("there is no Chromium on the path; install the package chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command_out, command_in = os.pipe()
        answer_out, answer_in = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, (command_out, answer_in)), path, *_QUIET,
             f"--user-data-dir={profile}"],
            pass_fds=(command_out, answer_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_out)
        os.close(answer_in)
        try:
            yield Page(command_in, answer_out)
        except BrokenPipeError as error:
            raise RoastError("chromium does not start; run it by hand to see why") from error
        finally:
            os.close(command_in)
            os.close(answer_out)
            process.terminate()
            process.wait(timeout=20)


@contextmanager
def served(folders: dict[str, Path]) -> Iterator[str]:
    """http://127.0.0.1:PORT, with each folder under its name; it ends with the context."""
    handler = functools.partial(_Files, folders)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Files(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, folders: dict[str, Path], *rest: Any) -> None:
        self._folders = folders
        super().__init__(*rest, directory=os.devnull)

    def translate_path(self, path: str) -> str:
        name, _, rest = path.split("?")[0].lstrip("/").partition("/")
        folder = self._folders.get(name)
        if folder is None:
            return os.devnull + "/missing"
        self.directory = os.fspath(folder)
        return super().translate_path("/" + rest)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A server of tests says nothing."""


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
