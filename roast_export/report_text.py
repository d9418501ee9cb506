"""A report as plain text, and the few words and tables that other texts share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.box import Box
from rich.console import Console
from rich.table import Table

from roast_export.printable import one_line
from roast_export.report import Check, Report

WIDTH = 110
MAX_LAYERS = 40
MAX_FAILURES = 20

# ASCII only: the text goes to logs and terminals of every encoding.
_BOX = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


def render(report: Report) -> str:
    """The whole report, at most WIDTH columns wide, ending in one line that says passed or failed."""
    parts = [
        f"{report.model} -> {report.path} ({report.target})",
        *(f"  input {name}: {signature}" for name, signature in report.inputs.items()),
        "",
        _sizes(report),
    ]
    if report.layers:
        parts.append(_layers(report))
    if report.checks:
        parts.append(_checks(report))
    if report.measurements:
        parts.append(_measurements(report))
    parts += [f"not used: {name}: {reason}" for name, reason in report.skipped.items()]
    parts += [f"warning: {text}" for text in report.warnings]
    parts += _failures(report)
    return "\n".join([*parts, verdict(report)])


def verdict(report: Report) -> str:
    """One line: passed, failed (with the first failure) or not verified."""
    failures = ordered_failures(report)
    if failures:
        first = failures[0]
        return (
            f"FAILED: {len(failures)} of {count(len(report.checks), 'check')}; "
            f"first {first.kind} {first.name} in {first.runtime}"
        )
    if not report.passed:
        return "NOT VERIFIED: no runtime compared an element of an output"
    compared = [c.runtime for c in report.checks if c.kind in ("weight", "output") and c.runtime != "file"]
    where = ", ".join(dict.fromkeys(compared)) or "the file"
    return f"PASSED: {count(len(report.checks), 'check')} in {where}; {report.seconds:.1f} s"


def ordered_failures(report: Report) -> list[Check]:
    """Failed checks, those of layers first and in the layers' order: where the difference begins."""
    place = {layer.name: k for k, layer in reversed(list(enumerate(report.layers)))}
    return sorted(report.failures, key=lambda check: place.get(check.name, len(place)))


def failure_text(check: Check) -> str:
    """What is wrong in a failed check: where, both values and the bound, or the reason without values."""
    if check.kind == "size":
        sizes = f"{check.actual:,.0f} bytes, allowed are {check.bound:,.0f}"
        return check.note or sizes
    if check.kind not in ("weight", "output") or (check.note and not has_values(check)):
        return check.note or "does not hold"
    where = f"[{','.join(map(str, check.index))}] " if check.index else ""
    return (
        f"{where}{number(check.expected)} in PyTorch, {number(check.actual)} here, "
        f"difference {check.difference:.3g}, allowed {bound_text(check)}"
        + "".join(f"; {text}" for text in (check.note, check.source) if text)
    )


def has_values(check: Check) -> bool:
    """Whether a check came to compare values; one that could not run has none."""
    return check.kind in ("weight", "output") and bool(check.index or check.difference)


def bound_text(check: Check) -> str:
    return f"{check.bound:.3g}" if check.bound else "equal bits"


@dataclass(frozen=True)
class CheckGroup:
    """All checks of one kind in one runtime."""

    runtime: str
    kind: str
    checks: Sequence[Check]

    @property
    def elements(self) -> int:
        return sum(check.elements for check in self.checks)

    @property
    def cases(self) -> int:
        return len({check.case for check in self.checks})

    @property
    def failed(self) -> int:
        return sum(not check.passed for check in self.checks)

    @property
    def worst(self) -> Check:
        """A failed check if there is one, then the largest multiple of the bound; NaN is worse than any."""

        def badness(check: Check) -> tuple[bool, float, float]:
            unknown = 0.0 if check.passed else math.inf
            difference = unknown if math.isnan(check.difference) else check.difference
            return not check.passed, difference / check.bound if check.bound else difference, difference

        return max(self.checks, key=badness)


def check_groups(checks: Iterable[Check]) -> list[CheckGroup]:
    """Checks by runtime and kind, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.runtime, check.kind), []).append(check)
    return [CheckGroup(runtime, kind, found) for (runtime, kind), found in groups.items()]


def count(n: int, thing: str) -> str:
    """ "1 check", "2 checks", "1,024 checks"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def bytes_text(n: int) -> str:
    """A size people can compare: exact below 10 KiB, else three to four digits."""
    if n < 10 * 1024:
        return f"{n:,} B"
    for unit, size in (("KiB", 1 << 10), ("MiB", 1 << 20)):
        if n < 1000 * size:
            return f"{n / size:.4g} {unit}"
    return f"{n / (1 << 30):,.4g} GiB"


def seconds_text(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(str(d) for d in shape) if shape else "scalar"


def number(value: float) -> str:
    return f"{value:.9g}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A titled text table; a column whose name starts with ">" is right-aligned."""
    drawn = Table(
        box=_BOX, title=one_line(title), title_justify="left", title_style="", padding=(0, 1), show_edge=False
    )
    for name in columns:
        right = name.startswith(">")
        drawn.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(one_line, row))
    stream = StringIO()
    # Markup, highlighting and emoji off: names of layers and files are shown as they are.
    console = Console(file=stream, width=WIDTH, color_system=None, markup=False, highlight=False, emoji=False)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _sizes(report: Report) -> str:
    rows = [("file", report.file_bytes, ""), ("array", report.array_bytes, "the shared weights")]
    rows += [("kept", report.kept_bytes, "parameters and buffers that were never compressed")]
    rows += [("dense", report.dense_bytes, "the same model without compression")]
    if report.limit_bytes:
        rows.append(("limit", report.limit_bytes, "largest file that the size gate lets through"))
    shown = [(name, f"{size:,}", bytes_text(size), note) for name, size, note in rows]
    if report.file_bytes:
        ratio = report.dense_bytes / report.file_bytes
        shown.append(("ratio", "", f"{ratio:.4g}x", "dense / file"))
    return table("Sizes", ["what", ">bytes", ">", "meaning"], shown)


def _layers(report: Report) -> str:
    layers = report.layers
    shown = layers if len(layers) <= MAX_LAYERS else layers[: MAX_LAYERS - 10] + layers[-10:]
    rows: list[tuple[str, ...]] = [
        (
            layer.name,
            layer.operator,
            shape_text(layer.shape),
            shape_text(layer.tile),
            f"{layer.n_memory:,}",
            f"{layer.scale:.4g}",
            layer.array,
        )
        for layer in shown
    ]
    if len(shown) < len(layers):
        rows.insert(MAX_LAYERS - 10, (f"... {len(layers) - len(shown):,} more ...", *[""] * 6))
    columns = ["name", "operator", "shape", "tile", ">slots", ">scale", "array"]
    return table(f"Virtual weights: {len(layers):,}", columns, rows)


def _checks(report: Report) -> str:
    rows = []
    groups = check_groups(report.checks)
    for group in groups:
        worst = group.worst
        compared = group.kind in ("weight", "output")
        rows.append(
            (
                group.runtime,
                group.kind,
                f"{len(group.checks):,}",
                f"{group.cases:,}",
                f"{group.elements:,}",
                f"{worst.difference:.3g}" if compared else "",
                bound_text(worst) if compared else "",
                "pass" if not group.failed else f"FAIL ({group.failed:,})",
            )
        )
    columns = ["runtime", "kind", ">checks", ">cases", ">elements", ">worst", ">bound", "result"]
    return table("Proof: compared with PyTorch", columns, rows) + _places(groups)


def _places(groups: Iterable[CheckGroup]) -> str:
    """Where the largest accepted differences are; runtimes that agree share a line."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if group.worst.passed and group.worst.difference and has_values(group.worst):
            found.setdefault(_place(group.worst), []).append(group.runtime)
    lines = [f"largest difference: {place} ({', '.join(names)})\n" for place, names in found.items()]
    return "".join(["\n", *lines]) if lines else ""


def _place(check: Check) -> str:
    """Where the worst element is, and both values."""
    where = f"{check.name}[{','.join(map(str, check.index))}]" if check.index else check.name
    return f"{where}: {number(check.expected)} in PyTorch, {number(check.actual)} here"


def _measurements(report: Report) -> str:
    rows = [
        (
            item.path,
            seconds_text(item.load_seconds),
            # Zero means that the system does not tell (measure.py).
            bytes_text(item.load_resident_bytes) if item.load_peak_bytes else "-",
            bytes_text(item.load_peak_bytes) if item.load_peak_bytes else "-",
            bytes_text(item.run_resident_bytes) if item.load_peak_bytes else "-",
            seconds_text(item.run_seconds),
        )
        for item in report.measurements
    ]
    columns = ["path", ">load", ">resident", ">peak at load", ">resident after runs", ">one run"]
    return table("Measured in fresh processes (memory: growth)", columns, rows)


def _failures(report: Report) -> list[str]:
    failures = ordered_failures(report)
    lines = [
        f"FAIL {check.runtime}, {check.kind} {check.name}, {check.case}: {failure_text(check)}"
        for check in failures[:MAX_FAILURES]
    ]
    if len(failures) > MAX_FAILURES:
        lines.append(f"... and {len(failures) - MAX_FAILURES:,} more failures")
    return lines
