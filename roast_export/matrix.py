"""Several files of one model, proved in every runtime: one table, one verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from roast_export.printable import printable, to_json
from roast_export.report import FIRST_DIFFERENCE, Check, Measurement, Report
from roast_export.report_files import Bar, bars, page, to_junit
from roast_export.report_text import (
    MAX_FAILURES,
    bytes_text,
    count,
    failure_text,
    number,
    ordered_failures,
    seconds_text,
    table,
)


@dataclass(frozen=True)
class Cell:
    """One file in one runtime."""

    report: Report
    runtime: str
    checks: list[Check]
    measurement: Measurement | None

    @property
    def name(self) -> str:
        """The file without its folder."""
        return Path(self.report.path).name

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def path(self) -> str:
        """What computes the weights: the library, the file's functions or operators, or folding at load."""
        if self.report.materialized or self.runtime.endswith("folded"):
            return "folded"
        if self.runtime.endswith("native"):
            return "native"
        return "function" if self.report.target == "onnx" else "operators"

    @property
    def weights(self) -> str:
        """How many elements of virtual weights were read back with equal bits."""
        found = [check for check in self.checks if check.kind == "weight"]
        if not found:
            return "not read apart"
        wrong = sum(not check.passed for check in found)
        return f"{wrong} of {len(found)} differ" if wrong else f"{sum(c.elements for c in found):,} equal"

    @property
    def worst(self) -> Check | None:
        """The output that is nearest to its bound, or furthest beyond it."""
        outputs = [c for c in self.checks if c.kind == "output" and not c.note.startswith(FIRST_DIFFERENCE)]
        return max(outputs, key=lambda c: (not c.passed, c.difference / (c.bound or 1.0)), default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": self.report.path,
            "runtime": self.runtime,
            "path": self.path,
            "passed": self.passed,
            "weights": self.weights,
            "worst": asdict(self.worst) if self.worst else None,
            "file_bytes": self.report.file_bytes,
            "measured": asdict(self.measurement) if self.measurement else None,
        }


@dataclass
class Matrix:
    """The reports of one model's files."""

    model: str
    reports: list[Report]
    lacking: list[str] = field(default_factory=list)
    """Runtimes that were required and that none of the files runs in."""

    @property
    def passed(self) -> bool:
        """Whether every file was proved in at least one runtime, nothing failed and nothing is lacking."""
        return bool(self.reports) and not self.lacking and all(report.passed for report in self.reports)

    @property
    def cells(self) -> list[Cell]:
        """File by runtime, in order. Checks of the file itself are in the report."""
        found = []
        for report in self.reports:
            runs = [c for c in report.checks if c.kind in ("weight", "output") and c.runtime != "file"]
            for runtime in dict.fromkeys(check.runtime for check in runs):
                checks = [check for check in runs if check.runtime == runtime]
                found.append(Cell(report, runtime, checks, _measurement(report, runtime)))
        return found

    def to_dict(self) -> dict[str, Any]:
        reports = [report.to_dict() for report in self.reports]
        return {
            "model": self.model,
            "passed": self.passed,
            "lacking": self.lacking,
            "cells": [cell.to_dict() for cell in self.cells],
            "reports": reports,
        }

    def __str__(self) -> str:
        return _text(printable(self))

    @property
    def verdict(self) -> str:
        wrong = [report.path for report in self.reports if not report.passed]
        checks = sum(len(report.checks) for report in self.reports)
        if self.lacking:
            wrong.append(f"no file ran in {', '.join(self.lacking)}, which is required")
        if wrong:
            return f"FAILED: {', '.join(wrong)}"
        if not self.reports:
            return "NOT VERIFIED: there is no file"
        return f"PASSED: {count(checks, 'check')}, {count(len(self.cells), 'cell')} of file and runtime"

    def save(self, path: str | Path) -> None:
        """Write it; the suffix chooses the form: .html, .json, .xml (JUnit), else plain text."""
        path = Path(path)
        if path.suffix == ".html":
            text = page("matrix.html.j2", matrix=self, charts=_charts(self.cells))
        elif path.suffix == ".json":
            text = to_json(self.to_dict())
        elif path.suffix == ".xml":
            text = to_junit(*self.reports)
        else:
            text = f"{self}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _text(matrix: Matrix) -> str:
    proof = ["file", "runtime", "path", "weights", ">worst output", ">bound", "result"]
    costs = ["file", "runtime", ">bytes", ">load", ">one run", ">peak at load", ">after runs"]
    measured = [_costs(cell, cell.measurement) for cell in matrix.cells if cell.measurement is not None]
    places = [f"largest difference: {_place(cell)}" for cell in matrix.cells if cell.worst is not None]
    parts = [table(f"{matrix.model}: {count(len(matrix.reports), 'file')}", proof, map(_row, matrix.cells))]
    parts += [*places, ""] if places else []
    if measured:
        parts.append(table("Measured in fresh processes (memory: growth)", costs, measured))
    for report in matrix.reports:
        failures = ordered_failures(report)
        parts += [
            f"FAIL {report.path}: {c.runtime}, {c.kind} {c.name}, {c.case}: {failure_text(c)}"
            for c in failures[:MAX_FAILURES]
        ]
        if len(failures) > MAX_FAILURES:
            parts.append(f"... and {len(failures) - MAX_FAILURES:,} more failures in {report.path}")
        parts += [f"not used for {report.path}: {n}: {why}" for n, why in report.skipped.items()]
        parts += [f"warning: {report.path}: {text}" for text in report.warnings]
    return "\n".join([*parts, matrix.verdict])


def _measurement(report: Report, runtime: str) -> Measurement | None:
    """ONNX's measurements go by the path alone: "native" is "onnxruntime native"."""
    names = (runtime, runtime.removeprefix("onnxruntime "))
    return next((item for item in report.measurements if item.path in names), None)


def _row(cell: Cell) -> tuple[str, ...]:
    worst = cell.worst
    return (
        cell.name,
        cell.runtime,
        cell.path,
        cell.weights,
        f"{worst.difference:.2g}" if worst else "",
        f"{worst.bound:.2g}" if worst else "",
        "pass" if cell.passed else "FAIL",
    )


def _place(cell: Cell) -> str:
    """Where the worst output of a cell is, and both values."""
    worst = cell.worst
    assert worst is not None
    where = f"[{','.join(map(str, worst.index))}]" if worst.index else ""
    name = f"{cell.name} in {cell.runtime}"
    return f"{name}, {worst.name}{where}: {number(worst.expected)} in PyTorch, {number(worst.actual)} here"


def _costs(cell: Cell, cost: Measurement) -> tuple[str, ...]:
    return (
        cell.name,
        cell.runtime,
        bytes_text(cell.report.file_bytes),
        seconds_text(cost.load_seconds),
        seconds_text(cost.run_seconds),
        bytes_text(cost.load_peak_bytes) if cost.load_peak_bytes else "-",
        bytes_text(cost.run_resident_bytes) if cost.load_peak_bytes else "-",
    )


def _charts(cells: list[Cell]) -> dict[str, Any]:
    """Bars by title."""
    files = {cell.name: cell.report.file_bytes for cell in cells}
    dense = {"dense": cells[0].report.dense_bytes} if cells else {}
    known = [(_label(cell), cell.measurement) for cell in cells if cell.measurement is not None]
    worst = [(_label(cell), cell.worst) for cell in cells if cell.worst is not None]
    found = {
        "Bytes on disk": {k: (float(v), bytes_text(v)) for k, v in (dense | files).items()},
        "Resident memory after runs": {
            k: (float(m.run_resident_bytes), bytes_text(m.run_resident_bytes)) for k, m in known
        },
        "Peak memory at load": {
            k: (float(m.load_peak_bytes), bytes_text(m.load_peak_bytes)) for k, m in known
        },
        "Latency of one run": {k: (m.run_seconds, seconds_text(m.run_seconds)) for k, m in known},
    }
    charts = {title: bars(values) for title, values in found.items() if values}
    # Here the full length is the bound, not the longest bar.
    charts["Worst difference, part of its bound"] = [
        Bar(name, f"{c.difference:.2g}", min(100.0, 100 * c.difference / (c.bound or 1.0)))
        for name, c in worst
    ]
    return charts


def _label(cell: Cell) -> str:
    return f"{cell.name}, {cell.runtime}"
