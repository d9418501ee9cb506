"""Cases for custom_ops/cross/kernel_driver.c, and the machines that run it: this one, and ARM under qemu."""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from roast_export.mapping import Mapping

BUILD = Path(os.environ.get("ROAST_BUILD", Path(__file__).parent.parent / "build"))
BEST, PORTABLE, NEON, AVX2, AVX512 = range(-1, 4)
GATHER, ROWS, LINEAR = range(3)


@dataclass(frozen=True)
class Machine:
    """A processor: the library built for it, and the program and emulator that run it."""

    platform: str
    processor: str
    isas: tuple[int, ...]

    @property
    def built(self) -> Path:
        return BUILD / "cross" / self.platform / "libroast_ort.so"

    @property
    def command(self) -> list[str]:
        emulator = [str(BUILD / "qemu" / "bin" / f"qemu-{self.processor}"), "-L", str(self.root)]
        return [*(emulator if self.processor != "x86_64" else []), str(self.driver)]

    @property
    def root(self) -> Path:
        return BUILD / "qemu" / self.processor

    @property
    def driver(self) -> Path:
        return BUILD / "qemu" / f"kernel_driver-{self.processor}"

    def missing(self) -> str | None:
        """Why nothing can run on it here, or None."""
        needed = [self.built, self.driver, Path(self.command[0])]
        absent = [path for path in needed if not path.is_file()]
        return f"{absent[0]} is missing; run `make mobile`" if absent else None


MACHINES = (
    Machine("linux-arm64", "aarch64", (NEON,)),
    Machine("android-arm64-v8a", "aarch64", (NEON,)),
    Machine("android-armeabi-v7a", "arm", (PORTABLE,)),
    Machine("linux-x86_64", "x86_64", (PORTABLE, AVX2, AVX512)),
    Machine("android-x86_64", "x86_64", (PORTABLE, AVX2, AVX512)),
)


@dataclass(frozen=True)
class Case:
    """One call of the C ABI; numel: elements of the output; input: ids or x."""

    operation: int
    fields: list[int]
    memory: np.ndarray
    numel: int
    scale: float = 1.0
    isa: int = BEST
    table: bool = False
    n: int = 1
    input: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def encode(self) -> bytes:
        half = int(self.memory.dtype == np.float16)
        head = (self.operation, self.isa, int(self.table), half, len(self.fields), self.n)
        parts = (np.array(self.fields, np.int64), self.memory, self.input, self.bias)
        sizes = [part.nbytes for part in parts[1:]]
        return struct.pack("<9qdq", *head, *sizes, self.scale, self.numel) + b"".join(map(_padded, parts))


def gather(m: Mapping, memory: np.ndarray, **more: object) -> Case:
    return Case(GATHER, m.to_list(), memory, m.numel, **more)  # type: ignore[arg-type]


def rows(m: Mapping, memory: np.ndarray, dim: int, ids: np.ndarray, **more: object) -> Case:
    return Case(ROWS, m.to_list(), memory, len(ids) * dim, n=len(ids), input=ids, **more)  # type: ignore[arg-type]


def linear(m: Mapping, memory: np.ndarray, x: np.ndarray, bias: np.ndarray, **more: object) -> Case:
    numel = len(x) * m.shape[0]
    return Case(LINEAR, m.to_list(), memory, numel, n=len(x), input=x, bias=bias, **more)  # type: ignore[arg-type]


def run(machine: Machine, cases: list[Case], folder: Path) -> list[np.ndarray | None]:
    """float32[numel] of each case, or None where the library refused the record."""
    (folder / "cases").write_bytes(b"".join(case.encode() for case in cases))
    command = [*machine.command, str(machine.built), str(folder / "cases"), str(folder / "results")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    results = (folder / "results").read_bytes()[8:]
    outputs: list[np.ndarray | None] = []
    for case in cases:
        size = (case.numel * 4 + 7) // 8 * 8
        status, output = struct.unpack_from("<q", results)[0], results[8 : 8 + case.numel * 4]
        outputs.append(np.frombuffer(output, np.float32) if status == 0 else None)
        results = results[8 + size :]
    assert not results
    return outputs


@cache
def available_isas(machine: Machine, folder: Path) -> int:
    """Bit k is 1 where instruction set k works on the machine."""
    (folder / "none").write_bytes(b"")
    command = [*machine.command, str(machine.built), str(folder / "none"), str(folder / "isas")]
    subprocess.run(command, check=True)
    return int(struct.unpack("<q", (folder / "isas").read_bytes())[0])


def _padded(array: np.ndarray) -> bytes:
    return array.tobytes() + bytes(-array.nbytes % 8)
