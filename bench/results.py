"""The results as one JSON file: tables of columns and rows, numbers of four digits."""

from __future__ import annotations

import json
from pathlib import Path

SCHEMA = 3
_TIMES = [
    *("threads", "peer", "ratio", "path", "seconds", "p10", "p90", "first", "runs", "speedup", "gflops"),
    *("peak_percent", "product_percent", "gb_s", "l2_percent", "dram_percent", "error"),
]
_COSTS = ["file_bytes", "load_seconds", "load_resident_bytes", "load_peak_bytes", "run_resident_bytes"]
COLUMNS = {
    "peaks": ["group", "threads", "gflops", "product_gflops", "l2_gb_s", "dram_gb_s", "method"],
    "layers": ["shape", "batch", *_TIMES],
    "embeddings": ["shape", "batch", "case", *_TIMES],
    "models": ["model", "case", *_TIMES],
    "limits": ["model", "case", "threads", "speedup", "other_seconds", "limit", "product_limit"],
    "memory": ["subject", "peer", "ratio", "path", *_COSTS],
}


class Results:
    """Rows by table name, the machine, and the groups that failed with the reason."""

    def __init__(self, form: str, machine: dict) -> None:
        self.form, self.machine = form, machine
        self.tables: dict[str, list[dict]] = {name: [] for name in COLUMNS}
        self.failed: dict[str, str] = {}
        self.seconds = 0.0

    def add(self, found: dict[str, list[dict]]) -> None:
        for name, rows in found.items():
            self.tables[name] += [{column: row[column] for column in COLUMNS[name]} for row in rows]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {
            "schema": SCHEMA,
            "form": self.form,
            "seconds": round(self.seconds),
            "machine": self.machine,
            "failed": self.failed,
        }
        parts = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
        for name, rows in self.tables.items():
            lines = [json.dumps([_short(row[column]) for column in COLUMNS[name]]) for row in rows]
            body = ",\n".join(lines)
            parts.append(f'"{name}": {{"columns": {json.dumps(COLUMNS[name])}, "rows": [\n{body}\n]}}')
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def load(path: Path) -> Results:
    """Read what `save` wrote.

    Raises:
        ValueError: another schema.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {data.get('schema')}, this program reads {SCHEMA}")
    results = Results(data["form"], data["machine"])
    results.failed, results.seconds = data["failed"], data["seconds"]
    for name in COLUMNS:
        columns = data[name]["columns"]
        results.add({name: [dict(zip(columns, row, strict=True)) for row in data[name]["rows"]]})
    return results


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
