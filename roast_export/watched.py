"""A command in a process of its own, so that a stranger's file cannot end it, hold it up or fill the memory.

A command runs the graphs of files that somebody else wrote: a loop in one may have no end, a shape may ask
for all memory, and a runtime may crash over it. The command therefore goes on in a child process. The first
process waits for it and says what happened where the child does not end by itself. While `roast-verify`
compares a file, there are limits that grow with the size of that file (budget.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from roast_export import budget

STEPS = 24
"""A whole comparison may take so many times what one step of it may."""

_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""
_told: list[int] = []
"""In the child, where it tells the first process what it is at; empty in any other process."""
_current: list[dict[str, object]] = []
_FOLDER: list[str] = []
"""The child's folder for temporary files, if there is room for one."""


def in_child(complain: Callable[[str], None]) -> int | None:
    """Start the child, where None is returned; in the first process its exit status, when it has ended.

    complain: is called, in the first process, with what was wrong where the child was ended. Without fork, on
    Windows, nothing is started and this process goes on.
    """
    if not hasattr(os, "fork"):
        return None
    read, write = os.pipe()
    with contextlib.suppress(OSError):
        # What the child leaves there when it is ended goes with it.
        _FOLDER.append(tempfile.mkdtemp(prefix="roast-"))
    # Pages that a collection of garbage writes to would be copied.
    gc.freeze()
    with warnings.catch_warnings():
        # numpy's threads, which know of forks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(read)
        # With everything that it starts, so that all of it is ended together.
        os.setpgid(0, 0)
        _end_with_the_first_process()
        _told.append(write)
        for folder in _FOLDER:
            tempfile.tempdir = os.environ["TMPDIR"] = folder
        return None
    os.close(write)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    try:
        return _Watch(child, read, complain).wait()
    finally:
        os.close(read)
        while _FOLDER:
            shutil.rmtree(_FOLDER.pop(), ignore_errors=True)


def _end_with_the_first_process() -> None:
    """Where it is killed and can hand nothing on, nobody would end a loop in the child. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def comparing(path: Path) -> Iterator[None]:
    """The time in which the file at `path` is opened and run: the limits hold."""
    size = path.stat().st_size if path.is_file() else 0
    _current.append({"path": str(path), "seconds": budget.seconds(size)})
    _tell(_current[-1])
    try:
        with _memory(budget.memory(size) if _told else None):
            yield
    finally:
        _current.pop()
        _tell({"path": None})


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """Within `comparing`: time that is the model's own, and has no limit."""
    _tell({"path": None})
    try:
        yield
    finally:
        for message in _current[-1:]:
            _tell(message)


def goes_with_the_child(folder: Path) -> None:
    """The folder is removed where the child is ended before it can do so itself."""
    _tell({"folder": str(folder)})


def step() -> None:
    """A step of the comparison is done, and the time of the next one begins."""
    _tell({})


def _tell(message: dict[str, object]) -> None:
    for pipe in _told:
        with contextlib.suppress(OSError):
            os.write(pipe, json.dumps(message).encode() + b"\n")


@contextlib.contextmanager
def _memory(more: int | None) -> Iterator[None]:
    """Let this process take so many bytes more than it has; what asks for more is refused by the system."""
    try:
        import resource

        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        now = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmData:"))
        old, hard = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, StopIteration):
        more = None
    if more is None:
        yield
        return
    wanted = now + more
    limits = [limit for limit in (old, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (old, hard))


class _Watch:
    """The first process, while the child is at work."""

    def __init__(self, child: int, pipe: int, complain: Callable[[str], None]) -> None:
        self.child, self.pipe, self.complain = child, pipe, complain
        self.path: str | None = None
        self.folders: list[str] = []
        self.seconds, self.asked = 0.0, False
        self.step_ends = self.all_ends = float("inf")

    def wait(self) -> int:
        """The exit status to end with: the child's own, or 2 where it was ended over a file."""
        old = {n: signal.signal(n, self._hand_on) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._listen()
        finally:
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)
            for number, handler in old.items():
                signal.signal(number, handler)

    def _listen(self) -> int:
        heard = b""
        while True:
            left = min(self.step_ends, self.all_ends) - time.monotonic()
            ready, _, _ = select.select([self.pipe], [], [], None if left == float("inf") else max(0.0, left))
            if not ready:
                return self._stopped()
            part = os.read(self.pipe, 1 << 16)
            if not part:
                return self._ended()
            *lines, heard = (heard + part).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))

    def _hand_on(self, number: int, frame: object) -> None:
        """The child is asked to end, and the second time it is ended: it may be inside a runtime."""
        with contextlib.suppress(OSError):
            os.killpg(self.child, signal.SIGKILL if self.asked else number)
        self.asked = True

    def _hear(self, message: dict[str, object]) -> None:
        if "folder" in message:
            self.folders.append(str(message["folder"]))
            return
        now = time.monotonic()
        if "path" in message:
            self.path = None if message["path"] is None else str(message["path"])
            self.seconds = float(str(message.get("seconds", 0)))
            self.all_ends = now + STEPS * self.seconds if self.path else float("inf")
        self.step_ends = now + self.seconds if self.path else float("inf")

    def _stopped(self) -> int:
        os.killpg(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        self.complain(
            f"{self.path}: a step of the comparison took more than {self.seconds:.0f} s, so it is not proved"
            f". A loop in it may have no end. If you trust it, set the variable {budget.SECONDS} to more"
        )
        return 2

    def _ended(self) -> int:
        status = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        if status >= 0:
            return status
        with contextlib.suppress(OSError):
            os.killpg(self.child, signal.SIGKILL)
        name = signal.Signals(-status).name
        if self.asked:
            return 128 + signal.SIGINT
        if self.path is None:
            self.complain(
                f"the command was ended by {name} while it read or ran MODEL, and nothing was written: an "
                "operator in it crashed over the values that it was given, or memory ran out"
            )
            return 1
        self.complain(
            f"{self.path}: comparing it ended the process ({name}), so it is not proved; it is damaged, made "
            "to do that, or takes more memory than it may. Export it again; if you trust it, set the "
            f"variable {budget.MEMORY} to more GiB"
        )
        return 2
