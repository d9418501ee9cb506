"""ONNX Runtime in a process of its own, for builds that Python cannot load.

The program is custom_ops/cross/ort_run.c.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roast_export.runtimes import Array, Run
from roast_export.tensor_file import decode, encode, run_program

NO_LIBRARY = "-"


@dataclass(frozen=True)
class OrtProcess:
    """A build of ONNX Runtime, and how it is run on this machine.

    command: the words that run ort_run.
    """

    name: str
    command: tuple[Path | str, ...]
    onnxruntime: Path

    def open(
        self,
        model: str | bytes,
        library: str = NO_LIBRARY,
        entries: Sequence[str] = (),
        form: str = "onnx",
    ) -> Run:
        """See Runtime.open; each run starts the program anew, and raises RoastError with what it said.

        library: an operator library for the program's processor; entries: session entries, NAME=VALUE;
        form: what a model given as bytes is, "onnx" or "ort".
        """

        def run(inputs: dict[str, Array]) -> list[Array]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                path = folder / f"model.{form}" if isinstance(model, bytes) else Path(model)
                if isinstance(model, bytes):
                    path.write_bytes(model)
                (folder / "in").write_bytes(encode(inputs))
                files = (self.onnxruntime, path, library, folder / "in", folder / "out")
                run_program(self.name, [*self.command, *files, *entries])
                return decode((folder / "out").read_bytes())

        return run
