"""docs/benchmarks.md from the results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.limits import MODEL_TARGETS, layer_rows
from bench.results import Results
from bench.text import MEMORY_COLUMNS, memory_cells, peer_text, spread_text, time_text, what_text
from roast_export.report_text import bytes_text, shape_text

METHOD, LIMITS = (
    Path(__file__).with_name(f"{name}.md").read_text(encoding="utf-8").strip()
    for name in ("method", "limits")
)


def render(results: Results, images: Iterable[Path]) -> str:
    """The page; its pictures are in the folder images/ beside it."""
    names = {path.name: f"![{path.stem}](images/{path.name})" for path in images}
    parts = [
        "# Benchmarks",
        f"Written by `make bench{'' if results.form == 'full' else f'-{results.form}'}` "
        f"({results.seconds / 60:.0f} minutes); all numbers are in [benchmarks.json](benchmarks.json). "
        "Shapes are out x in. A ratio in brackets is time of dense fp32 / time of this: above 1 is faster.",
        _machine(results),
        "## Method\n\n" + METHOD,
        _section("## Layers", [names.get("bench-layers.png"), *_layers(results)]),
        _section("## How much of the core", [names.get("bench-peak.png"), *_efficiency(results)]),
        _section("## Lookups", _embeddings(results)),
        _section("## Whole models", [names.get("bench-models.png"), _models(results)]),
        _section("## Targets and limits", _limits(results)),
        _section("## Files, creation and memory", [names.get("bench-memory.png"), _memory(results)]),
    ]
    if results.failed:
        lines = [f"- {name}: {reason}" for name, reason in results.failed.items()]
        parts.append("## Not measured\n\n" + "\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """A column whose name starts with ">" is right-aligned."""
    lines = [
        "| " + " | ".join(name.lstrip(">") for name in columns) + " |",
        "|" + "|".join("---:" if name.startswith(">") else "---" for name in columns) + "|",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _section(title: str, parts: Iterable[str | None]) -> str:
    shown = [part for part in parts if part]
    return "\n\n".join([title, *shown]) if shown else ""


def _machine(results: Results) -> str:
    facts = results.machine
    caches = ", ".join(f"{name} {bytes_text(size)}" for name, size in facts["caches"].items())
    versions = ", ".join(
        f"{name} {facts[name]}"
        for name in ("onnxruntime", "onnx", "torch", "numpy", "roast_export", "python")
    )
    lines = [
        f"- {facts['cpu']}, {facts['cores']} cores; {caches}; {bytes_text(facts['memory_bytes'])} of RAM",
        f"- {facts['system']}; {versions}; {facts['date']}; load before the run {facts['load_before']}",
    ]
    for threads in sorted({row["threads"] for row in results.tables["peaks"]}):
        rows = [row for row in results.tables["peaks"] if row["threads"] == threads]

        def span(column: str, rows: list[dict] = rows) -> str:
            values = [row[column] for row in rows]
            low, high = f"{min(values):.3g}", f"{max(values):.3g}"
            return low if low == high else f"{low} to {high}"

        lines.append(
            f"- {threads} thread{'s' if threads > 1 else ''}: peak {span('gflops')} GFLOP/s fp32, product "
            f"{span('product_gflops')} GFLOP/s, L2 {span('l2_gb_s')} GB/s, DRAM {span('dram_gb_s')} GB/s "
            f"over {len(rows)} processes ({rows[0]['method']})"
        )
    if "note" in facts:
        lines.append(f"- {facts['note']}")
    return "## Machine\n\n" + "\n".join(lines)


def _layers(results: Results) -> list[str]:
    """For each weight and number of threads, batches down and peers across."""
    found: dict[tuple, list[dict]] = {}
    for row in results.tables["layers"]:
        found.setdefault((tuple(row["shape"]), row["threads"]), []).append(row)
    parts = []
    for (shape, threads), rows in sorted(found.items(), key=lambda item: item[0]):
        peers = list(dict.fromkeys(peer_text(row) for row in rows))
        cells = {(row["batch"], peer_text(row)): _cell(row) for row in rows}
        batches = list(dict.fromkeys(row["batch"] for row in rows))
        body = [[str(batch), *(cells[batch, peer] for peer in peers)] for batch in batches]
        paths = ", ".join(dict.fromkeys(row["path"] for row in rows if row["peer"] == "roast"))
        title = f"### {shape_text(shape)}, {threads} thread{'s' if threads > 1 else ''}"
        parts.append(f"{title}\n\nroast: {paths}\n\n" + table([">batch", *(f">{p}" for p in peers)], body))
    return parts


def _cell(row: dict) -> str:
    return time_text(row["seconds"]) + (f" ({row['speedup']:.2f}x)" if row["peer"] != "dense" else "")


def _efficiency(results: Results) -> list[str]:
    """Our layers and the dense ones against the machine."""
    rows = [row for row in results.tables["layers"] if row["peer"] in ("dense", "roast")]
    if not rows:
        return []
    columns = ["layer, batch", ">threads", "peer", ">median", ">p10-p90", ">GFLOP/s", ">% of peak"]
    body = [
        [
            what_text(row),
            str(row["threads"]),
            peer_text(row),
            time_text(row["seconds"]),
            spread_text(row),
            f"{row['gflops']:.0f}",
            f"{row['peak_percent']:.0f}",
            f"{row['gb_s']:.0f}",
            f"{row['l2_percent']:.0f}",
            f"{row['dram_percent']:.0f}",
        ]
        for row in rows
    ]
    return [table([*columns, ">GB/s", ">% of L2", ">% of DRAM"], body)]


def _embeddings(results: Results) -> list[str]:
    rows = results.tables["embeddings"]
    if not rows:
        return []
    columns = ["table, ids", ">threads", "peer", ">median", ">p10-p90", ">first", ">dense / this", ">GB/s"]
    body = [
        [
            what_text(row),
            str(row["threads"]),
            peer_text(row),
            time_text(row["seconds"]),
            spread_text(row),
            time_text(row["first"]),
            f"{row['speedup']:.2f}x",
            f"{row['gb_s']:.1f}",
        ]
        for row in rows
    ]
    return [table(columns, body)]


def _models(results: Results) -> str:
    rows = results.tables["models"]
    if not rows:
        return ""
    columns = [
        "model, input",
        ">threads",
        "peer",
        ">median",
        ">p10-p90",
        ">dense / this",
        ">% of peak",
        ">error",
    ]
    body = [
        [
            what_text(row),
            str(row["threads"]),
            peer_text(row),
            time_text(row["seconds"]),
            spread_text(row),
            f"{row['speedup']:.2f}x",
            f"{row['peak_percent']:.0f}" if row["gflops"] else "-",
            f"{row['error']:.1e}",
        ]
        for row in rows
    ]
    return table(columns, body)


def _limits(results: Results) -> list[str]:
    """What this project wants, what it has, and what the machine would allow."""
    rows = [
        [
            what_text(row),
            f"{row['ratio']:g}x",
            str(row["threads"]),
            f"{row['target']:.2f}x",
            f"{row['speedup']:.2f}x",
            f"{row['peak_percent']:.0f}",
            f"{row['limit']:.2f}x",
            f"{row['product_percent']:.0f}",
            f"{row['product_limit']:.2f}x",
        ]
        for row in layer_rows(results.tables["layers"])
    ]
    columns = [
        *("layer, batch", ">smaller", ">threads", ">wanted", ">is"),
        *(">% of peak", ">at the peak", ">% of product", ">at the product's"),
    ]
    parts = [LIMITS, table(columns, rows)] if rows else []
    models = [
        [
            f"{row['model']}, {row['case']}",
            str(row["threads"]),
            f"{MODEL_TARGETS[row['case']]:.2f}x" if row["case"] in MODEL_TARGETS else "",
            f"{row['speedup']:.2f}x",
            time_text(row["other_seconds"]),
            f"{row['limit']:.2f}x",
            f"{row['product_limit']:.2f}x",
        ]
        for row in results.tables["limits"]
    ]
    if models:
        columns = [
            *("model, input", ">threads", ">wanted", ">is", ">outside products"),
            *(">at the peak", ">at the product's"),
        ]
        parts.append(table(columns, models))
    return parts


def _memory(results: Results) -> str:
    rows = results.tables["memory"]
    return table(MEMORY_COLUMNS, [memory_cells(row) for row in rows]) if rows else ""
