"""ExecuTorch's own runtime in a process of its own, because a damaged .pte ends the process that runs it.

The child runs this file by its path and imports the runtime, not the package. Both sides speak in frames: the
length of a header, the header in JSON, and the bytes of the tensors that it lists. Nothing is unpickled.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from roast_export.runtimes import Run

LARGEST_HEADER = 1 << 20
_TYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16",
)  # fmt: skip


class ExecutorchProcess:
    """The child: started when it is first needed, and again where a program has ended it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._unused: list[int] = []
        self._one_at_a_time = threading.Lock()

    def start(self) -> None:
        """Begin to import the runtime, if no child does yet. It takes seconds, and this does not wait."""
        if self._child is None or self._child.poll() is not None:
            # -P: this file's folder must not come before the standard library.
            command = [sys.executable, "-P", str(Path(__file__).resolve())]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._unused = []
            weakref.finalize(self, self._child.kill)

    def has_backend(self, name: str) -> bool:
        """Whether the installed ExecuTorch has a backend. Raises RoastError as `open`."""
        return bool(self._ask({"do": "backend", "name": name})[0]["present"])

    def open(self, program: str | bytes, library: Path | None) -> Run:
        """See Runtime.open. library: our operators, registered before the program is loaded.

        Raises:
            RoastError: the runtime refuses the program, or ended over it; running it raises the same.
        """
        from roast_export import budget
        from roast_export.arrays import array_of, tensor_of
        from roast_export.runtimes import Array

        data = Path(program).read_bytes() if isinstance(program, str) else program
        limit, allowed = budget.seconds(len(data)), budget.memory(len(data))
        question = {"do": "open", "library": library and str(library), "bytes": len(data), "memory": allowed}
        opened = self._ask(question, [], limit, data)[0]["program"]
        child = self._child
        assert child is not None

        def run(inputs: dict[str, Array]) -> list[Array]:
            from roast_export.errors import RoastError

            if self._child is not child or child.poll() is not None:
                raise RoastError("executorch cannot run the file: the process that had it has ended")
            tensors = [tensor_of(value) for value in inputs.values()]
            return [array_of(t) for t in self._ask({"do": "run", "program": opened}, tensors, limit)[1]]

        # Programs hold their arrays: the child lets go of those that nobody can run any more.
        weakref.finalize(run, self._unused.append, opened)
        return run

    def _ask(
        self,
        question: dict[str, Any],
        tensors: list[Tensor] | None = None,
        seconds: float = 600,
        data: bytes = b"",
    ) -> tuple[dict[str, Any], list[Tensor]]:
        from roast_export.errors import RoastError

        with self._one_at_a_time:
            self.start()
            child = self._child
            assert child is not None
            unused, self._unused[:] = list(self._unused), []
            late = threading.Timer(seconds, child.kill)
            late.daemon = True
            late.start()
            try:
                answer, found = _exchange(child, {**question, "unused": unused}, tensors or [], data)
            except (OSError, ValueError, TypeError, KeyError, EOFError, struct.error) as error:
                reason = _end_of(child, None if late.is_alive() else seconds)
                verb = "run" if question["do"] == "run" else "load"
                raise RoastError(f"executorch cannot {verb} the file: {reason}") from error
            except BaseException:
                # The answer to this question must not be taken for that to the next one.
                child.kill()
                raise
            finally:
                late.cancel()
        if "error" in answer:
            raise RoastError(str(answer["error"])[:2000])
        return answer, found


def _exchange(
    child: subprocess.Popen[bytes], question: dict[str, Any], tensors: list[Tensor], data: bytes
) -> tuple[dict[str, Any], list[Tensor]]:
    source, target = child.stdout, child.stdin
    assert source is not None
    assert target is not None
    _send(target, question, tensors, data)
    return _receive(source)


def _end_of(child: subprocess.Popen[bytes], seconds: float | None) -> str:
    """How a child came to its end. seconds: those after which it was stopped."""
    if seconds is not None:
        return (
            f"it took more than {seconds:.0f} s; if you trust the file, allow more with the variable "
            "ROAST_LIMIT_SECONDS"
        )
    child.kill()
    status = child.wait()
    if status < 0 and status != -signal.SIGKILL:
        return f"it ended the process ({signal.Signals(-status).name}); the file is damaged, export it again"
    return "its process ended; the file is damaged or takes too much memory, export it again"


def _send(pipe: IO[bytes], header: dict[str, Any], tensors: list[Tensor], data: bytes = b"") -> None:
    stated = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors]
    text = json.dumps({**header, "tensors": stated}).encode()
    pipe.write(struct.pack("<q", len(text)) + text + data)
    for tensor in tensors:
        pipe.write(_bytes_of(tensor))
    pipe.flush()


def _receive(source: IO[bytes]) -> tuple[dict[str, Any], list[Tensor]]:
    """A frame. Raises ValueError, TypeError or KeyError if it is none, EOFError where there is no more."""
    (size,) = struct.unpack("<q", _exactly(source, 8))
    if not 0 < size <= LARGEST_HEADER:
        raise ValueError(f"a header of {size} bytes")
    header = json.loads(_exactly(source, size))
    header["data"] = _exactly(source, header.get("bytes", 0))
    return header, [_tensor(kind, shape, source) for kind, shape in header["tensors"]]


def _exactly(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _bytes_of(tensor: Tensor) -> bytes:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _tensor(kind: str, shape: list[int], source: IO[bytes]) -> Tensor:
    import torch

    if kind not in _TYPES or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"a tensor of {kind} {shape}")
    dtype = getattr(torch, kind)
    data = _exactly(source, math.prod(shape) * dtype.itemsize)
    # A bytearray, because torch complains about memory that cannot be written.
    return (
        torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
        if data
        else torch.empty(shape, dtype=dtype)
    )


# ---- The child ----


def _child(source: IO[bytes], target: IO[bytes]) -> None:
    from executorch.runtime import Runtime

    runtime = Runtime.get()
    methods: dict[int, Any] = {}
    libraries: dict[str, ctypes.CDLL] = {}
    while True:
        try:
            question, tensors = _receive(source)
        except EOFError:
            return
        for number in question["unused"]:
            methods.pop(number, None)
        answer: dict[str, Any] = {}
        outputs: list[Any] = []
        try:
            if question["do"] == "backend":
                answer = {"present": runtime.backend_registry.is_available(question["name"])}
            elif question["do"] == "open":
                path = question["library"]
                if path and path not in libraries:
                    # A second copy would register its operators twice, which ends the process.
                    libraries[path] = ctypes.CDLL(path)
                _allow(question["memory"])
                number = max(methods, default=0) + 1
                program = runtime.load_program(question["data"])
                # A method reads the program's bytes where they lie, and does not hold them itself.
                methods[number] = (program.load_method("forward"), program, question["data"])
                answer = {"program": number}
            else:
                outputs = methods[question["program"]][0].execute(tensors)
        except Exception as error:
            verb = "run" if question["do"] == "run" else "load"
            answer, outputs = {"error": f"executorch cannot {verb} the file: {error}"}, []
        _send(target, answer, [_as_tensor(output) for output in outputs])


def _as_tensor(value: Any) -> Tensor:
    import torch

    return torch.as_tensor(value)


def _allow(more: int) -> None:
    """Let this process take so many bytes more than it has; Linux counts them as its data."""
    try:
        import resource

        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        now = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmData:"))
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = now + more
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == -1 else min(wanted, hard), hard))
    except (ImportError, OSError, StopIteration, ValueError):
        return


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    # The runtime writes about the processor to the process's own streams, past Python.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    _child(sys.stdin.buffer, answers)
