"""Run the benchmark: python -m bench --form full|quick [--only NAME] [--threads N]"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import machine, markdown, plan, plots, results, text
from roast_export.libraries import ort_library_path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "bench"
TIMEOUT_SECONDS = 3600


def run_group(group: dict, library: Path | None) -> dict:
    """The tables of one group, from a fresh process.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory(prefix="request-", dir=BUILD) as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        facts = {"group": group, "library": str(library) if library else None, "scratch": str(BUILD)}
        request.write_text(json.dumps(facts), encoding="utf-8")
        child = subprocess.run(
            [sys.executable, "-m", "bench.child", str(request), str(result)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if child.returncode != 0:
            raise RuntimeError((child.stderr.strip().splitlines() or ["no message"])[-1])
        return json.loads(result.read_text(encoding="utf-8"))


def run_all(form: plan.Form, only: str, console: Console) -> results.Results:
    BUILD.mkdir(parents=True, exist_ok=True)
    library = machine.build_loops(BUILD)
    found = results.Results(form.name, machine.describe(list(form.threads)))
    found.machine["operator_library_bytes"] = os.path.getsize(ort_library_path())
    start = time.perf_counter()
    groups = plan.groups(form, only)
    for number, group in enumerate(groups, 1):
        console.print(f"[{number}/{len(groups)}] {group['name']}", markup=False, highlight=False)
        begin = time.perf_counter()
        try:
            tables = run_group(group, library)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found.failed[group["name"]] = str(error)
            console.print(f"FAILED {group['name']}: {error}", markup=False, highlight=False)
            continue
        found.machine["affinity"] = tables.pop("cores")
        found.add(tables)
        text.show(console, tables, time.perf_counter() - begin)
    found.seconds = time.perf_counter() - start
    found.machine["largest_process_bytes"] = machine.largest_child_bytes()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=list(plan.FORMS), default="full")
    parser.add_argument("--only", default="", help="measure only groups whose name contains this")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads, default 1 and 2")
    parser.add_argument("--out", type=Path, default=None, help="folder for benchmarks.json, .md, images")
    parser.add_argument("--render", type=Path, help="measure nothing: write text and plots from this JSON")
    options = parser.parse_args()
    form = plan.FORMS[options.form]
    if options.threads:
        form = replace(form, threads=tuple(options.threads))
    # Only the whole full form replaces what the project publishes.
    whole = form.name == "full" and not options.only and not options.threads
    out = options.out or (ROOT / "docs" if whole or options.render else BUILD / form.name)
    console = Console()
    console.width = max(console.width, 150)  # a table that is cut off says nothing
    if options.render:
        found = results.load(options.render)
    else:
        found = run_all(form, options.only, console)
        found.save(out / "benchmarks.json")
    images = plots.draw(found, out / "images")
    (out / "benchmarks.md").write_text(markdown.render(found, images), encoding="utf-8")
    console.print(f"{found.seconds:.0f} s; wrote {out / 'benchmarks.md'}", markup=False, highlight=False)
    return int(bool(found.failed))


if __name__ == "__main__":
    sys.exit(main())
