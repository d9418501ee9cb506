"""What an export or a verification found: data only. report_text.py and report_files.py show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from roast_export.printable import printable, to_json

FIRST_DIFFERENCE = "first differing layer"
"""How the note of a check begins that is there to name a layer, after an output differed."""


@dataclass(frozen=True)
class Layer:
    """One virtual weight in the exported file."""

    name: str
    """Dotted name of the parameter it replaces; a tied one goes by its first use."""
    operator: str
    shape: tuple[int, ...]
    n_memory: int
    tile: tuple[int, int]
    scale: float
    array: str
    """Name of the initializer that holds its array."""
    fields: tuple[int, ...] = ()
    """The mapping, as the flat list of docs/mapping.md section 5."""

    @property
    def dense_bytes(self) -> int:
        size = 4
        for dimension in self.shape:
            size *= dimension
        return size


@dataclass(frozen=True)
class Check:
    """One comparison of the exported file with PyTorch."""

    runtime: str
    """"onnxruntime native", "onnxruntime portable", "onnx reference", "file" ..."""
    kind: str
    """"weight" (bit-equal), "output" (within a bound), "size" or "structure"."""
    name: str
    """Layer, output or rule."""
    case: str
    """Which input: "ids[1,7] random", "all elements" ..."""
    elements: int
    passed: bool
    bound: float = 0.0
    """Largest difference allowed; 0 means equal bits."""
    index: tuple[int, ...] = ()
    """Where the worst element is."""
    expected: float = 0.0
    actual: float = 0.0
    note: str = ""
    source: str = ""
    """Of a virtual weight that differs: the array's slot and the seed of its worst element."""

    @property
    def difference(self) -> float:
        return abs(self.expected - self.actual)


@dataclass(frozen=True)
class Measurement:
    """One fresh process that loads the file and runs it. Bytes and seconds."""

    path: str
    """"native", "portable", "dense" ..."""
    load_seconds: float
    load_resident_bytes: int
    """Growth of resident memory by creating the session."""
    load_peak_bytes: int
    run_resident_bytes: int
    """Growth of resident memory by creating the session and running it."""
    run_seconds: float
    """Median latency of one run."""


@dataclass
class Report:
    """Everything the proof of one file found."""

    model: str
    path: str
    target: str
    layers: list[Layer] = field(default_factory=list)
    file_bytes: int = 0
    array_bytes: int = 0
    kept_bytes: int = 0
    """Parameters and buffers that were never compressed."""
    limit_bytes: int = 0
    """The size gate: tensors and everything else."""
    tensor_bytes: int | None = None
    """Of the file; None where its format does not tell tensors from the rest."""
    tensor_limit_bytes: int = 0
    """The part of limit_bytes that is for tensors."""
    checks: list[Check] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Runtimes that were not used, with the reason."""
    measurements: list[Measurement] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    """Signature of each input, "int64[batch, 7]": names are dynamic dimensions."""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    materialized: bool = False
    """Whether runtimes are meant to expand the weights when they load the file."""

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether a runtime compared outputs and nothing failed. A proof of nothing is none."""
        ran = any(
            check.kind == "output" and check.runtime != "file" and check.elements > 0 for check in self.checks
        )
        return ran and not self.failures

    @property
    def dense_bytes(self) -> int:
        """What the file would hold if every virtual weight were stored as float32."""
        weights = {(layer.array, layer.fields or layer.name): layer.dense_bytes for layer in self.layers}
        return sum(weights.values()) + self.kept_bytes

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed, "dense_bytes": self.dense_bytes}

    def __str__(self) -> str:
        from roast_export.report_text import render

        return render(printable(self))

    def save(self, path: str | Path) -> None:
        """Write the report; the suffix chooses the form: .html, .json, .xml (JUnit), else plain text."""
        from roast_export.report_files import to_html, to_junit

        path = Path(path)
        if path.suffix == ".html":
            text = to_html(self)
        elif path.suffix == ".json":
            text = to_json(self.to_dict())
        elif path.suffix == ".xml":
            text = to_junit(self)
        else:
            text = str(self) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
