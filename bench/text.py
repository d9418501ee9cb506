"""The tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from roast_export.report_text import bytes_text, shape_text


def show(console: Console, tables: dict[str, list[dict]], seconds: float) -> None:
    """All columns of the rows that one group found."""

    def draw(columns: list[str], rows: list[list[str]]) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        for name in columns:
            table.add_column(name.lstrip(">"), justify="right" if name[0] == ">" else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    for peaks in tables.get("peaks", []):
        console.print(
            f"peak of {peaks['threads']} thread(s): {peaks['gflops']:.0f} GFLOP/s, product "
            f"{peaks['product_gflops']:.0f} GFLOP/s, L2 {peaks['l2_gb_s']:.0f} GB/s, "
            f"DRAM {peaks['dram_gb_s']:.1f} GB/s ({peaks['method']})",
            markup=False,
            highlight=False,
        )
    timed = [row for name in ("layers", "embeddings", "models") for row in tables.get(name, [])]
    if timed:
        draw(TIME_COLUMNS, [time_cells(row) for row in timed])
        paths = dict.fromkeys((peer_text(row), row["path"]) for row in timed if row["ratio"])
        for peer, path in paths:
            console.print(f"{peer}: {path}", markup=False, highlight=False)
    if tables.get("memory"):
        draw(MEMORY_COLUMNS, [memory_cells(row) for row in tables["memory"]])
    console.print(f"({seconds:.0f} s)\n", highlight=False)


TIME_COLUMNS = [
    *("what", ">threads", "peer", ">median", ">p10-p90", ">first", ">dense/this", ">GFLOP/s", ">% FMA"),
    *(">GB/s", ">% L2", ">% DRAM", ">error"),
]
MEMORY_COLUMNS = [
    *("subject", "peer", ">file", ">creation", ">resident", ">peak at load", ">resident after runs"),
]


def peer_text(row: dict) -> str:
    return f"{row['peer']} {row['ratio']}x" if row["ratio"] else row["peer"]


def time_text(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def spread_text(row: dict) -> str:
    """p10-p90 in the unit of p90."""
    unit, factor = ("ms", 1e3) if row["p90"] >= 1e-3 else ("us", 1e6)
    return f"{factor * row['p10']:.3g}-{factor * row['p90']:.3g} {unit}"


def what_text(row: dict) -> str:
    if "model" in row:
        return f"{row['model']}, {row['case']}"
    case = f", {row['case']}" if "case" in row else ""
    return f"{shape_text(row['shape'])}, {row['batch']:,}{case}"


def time_cells(row: dict) -> list[str]:
    def some(value: float, digits: int = 0) -> str:
        return f"{value:,.{digits}f}" if value else "-"

    return [
        what_text(row),
        str(row["threads"]),
        peer_text(row),
        time_text(row["seconds"]),
        spread_text(row),
        time_text(row["first"]),
        f"{row['speedup']:.2f}x",
        some(row["gflops"], 1),
        some(row["peak_percent"]),
        some(row["gb_s"], 1),
        some(row["l2_percent"]),
        some(row["dram_percent"]),
        f"{row['error']:.1e}",
    ]


def memory_cells(row: dict) -> list[str]:
    return [
        row["subject"],
        peer_text(row),
        bytes_text(row["file_bytes"]),
        time_text(row["load_seconds"]),
        bytes_text(row["load_resident_bytes"]),
        bytes_text(row["load_peak_bytes"]),
        bytes_text(row["run_resident_bytes"]),
    ]
