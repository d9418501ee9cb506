"""The pictures of docs/benchmarks.md. Without matplotlib there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.results import Results
from bench.text import peer_text
from roast_export.report_text import shape_text

COLOURS = {
    "dense": "#4d4d4d",
    "roast": "#d62728",
    "int8": "#1f77b4",
    "int4": "#17becf",
    "fp16": "#2ca02c",
    "portable": "#ff9896",
    "hashed": "#9467bd",
}
STYLES = {10: ":", 100: "-", 1000: "--"}
DPI = 90


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the pictures that the results have rows for; returns their paths."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "bench-layers.png": _speedups,
        "bench-peak.png": _peak,
        "bench-models.png": _models,
        "bench-memory.png": _memory,
    }
    written = []
    for name, make in pictures.items():
        figure = make(plt, results)
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI)
            plt.close(figure)
            written.append(folder / name)
    return written


def _speedups(plt: Any, results: Results) -> Any:
    figure, panels = _panels(plt, results, "Speed relative to dense fp32, {}; above 1 is faster")
    for panel, rows in panels:
        _lines(panel, rows, "speedup", ("int8", "int4", "fp16", "roast", "hashed"))
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}x")
        panel.axhline(1, color=COLOURS["dense"], linewidth=1)
    return _finish(figure, panels, "times dense fp32")


def _peak(plt: Any, results: Results) -> Any:
    figure, panels = _panels(plt, results, "Part of the measured multiply-add peak, {}")
    for panel, rows in panels:
        _lines(panel, rows, "peak_percent", ("dense", "roast"))
        # Layers that add inputs before they multiply pass the peak: what is counted is the dense product.
        panel.set_ylim(bottom=0)
        panel.axhline(100, color="#999999", linewidth=0.8)
        panel.axhline(85, color="#999999", linewidth=0.8, linestyle=":")
    return _finish(figure, panels, "% of peak")


def _models(plt: Any, results: Results) -> Any:
    rows = [row for row in results.tables["models"] if row["threads"] == 1] or results.tables["models"]
    entries = [(f"{row['model']}, {row['case']}", row["peer"], 1e3 * row["seconds"]) for row in rows]
    return _bars(plt, entries, "Whole models, milliseconds, one thread", "{:.3g}")


def _memory(plt: Any, results: Results) -> Any:
    kinds = ("dense", "int8", "int4", "roast")
    rows = [r for r in results.tables["memory"] if r["peer"] in kinds and r["ratio"] in (0, 100, 1000)]
    least = {r["subject"]: min(s["ratio"] or 9e9 for s in rows if s["subject"] == r["subject"]) for r in rows}
    rows = [row for row in rows if row["ratio"] in (0, least[row["subject"]])]
    entries = [(row["subject"], row["peer"], row["run_resident_bytes"] / (1 << 20)) for row in rows]
    return _bars(plt, entries, "Resident memory after runs: growth of the process, MiB", "{:.3g}")


def _panels(plt: Any, results: Results, title: str) -> tuple[Any, list[tuple[Any, list[dict]]]]:
    """One panel for each weight, with the rows of the smallest number of threads."""
    layers = results.tables["layers"]
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in layers))
    if not shapes:
        return None, []
    threads = min(row["threads"] for row in layers)
    columns = min(3, len(shapes))
    lines = -(-len(shapes) // columns)
    size = (max(7.5, 3.6 * columns + 0.4), 3.0 * lines + 1.0)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title.format("one thread" if threads == 1 else f"{threads} threads"))
    for panel in axes.flat[len(shapes) :]:
        panel.axis("off")
    panels = []
    for panel, shape in zip(axes.flat, shapes, strict=False):
        rows = [row for row in layers if tuple(row["shape"]) == shape and row["threads"] == threads]
        panel.set_title(f"{shape_text(shape)} (out x in)", fontsize=10)
        panels.append((panel, rows))
    return figure, panels


def _lines(panel: Any, rows: list[dict], column: str, peers: tuple[str, ...]) -> None:
    for name, line in _by_peer(rows):
        kind, ratio = line[0]["peer"], line[0]["ratio"]
        if kind in peers:
            x, y = [row["batch"] for row in line], [row[column] for row in line]
            style = STYLES.get(ratio, "-")
            panel.plot(x, y, style, color=COLOURS[kind], label=name, marker="o", markersize=3)
    batches = sorted({row["batch"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(batches, labels=[str(batch) for batch in batches])
    panel.minorticks_off()
    panel.set_xlabel("batch")
    panel.grid(alpha=0.3)


def _by_peer(rows: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(peer_text(row), []).append(row)
    yield from found.items()


def _finish(figure: Any, panels: list[tuple[Any, list[dict]]], label: str) -> Any:
    if figure is not None:
        panels[0][0].set_ylabel(label)
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=9)
    return figure


def _bars(plt: Any, entries: list[tuple[str, str, float]], title: str, form: str) -> Any:
    """Groups of horizontal bars on a logarithmic scale, each with its number."""
    if not entries:
        return None
    groups = list(dict.fromkeys(group for group, _, _ in entries))
    peers = list(dict.fromkeys(peer for _, peer, _ in entries))
    height = 0.8 / len(peers)
    size = (9, 0.5 + 0.24 * len(peers) * len(groups) + 0.9)
    figure, panel = plt.subplots(figsize=size, layout="constrained")
    for group, peer, value in entries:
        y = groups.index(group) + (peers.index(peer) - (len(peers) - 1) / 2) * height
        shown = max(value, 1e-3)
        panel.barh(y, shown, height * 0.9, color=COLOURS[peer])
        panel.annotate(
            form.format(value), (shown, y), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    panel.set_yticks(range(len(groups)), labels=groups)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.margins(x=0.12)
    panel.grid(axis="x", alpha=0.3)
    panel.set_title(title)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[peer]) for peer in peers]
    figure.legend(handles, peers, loc="outside lower center", ncols=len(peers), fontsize=9)
    return figure
