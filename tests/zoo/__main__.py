"""`python -m tests.zoo [NAME...] [--jobs N] [--out FILE.json]`: runs the zoo and prints its table.

Exits 1 if fewer than 95 % pass, if a file is wrong, or if a failure is anything but a message that helps.
`python -m tests.zoo.document build/zoo.json docs/models.md` writes the page about it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.zoo.architecture import Architecture, architectures
from tests.zoo.rows import PASSED, REFUSED, TOLD, Row, context, run_row

SHARE = 0.95
"""Share of architectures that must pass."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures or patterns; all without")
    parser.add_argument("--jobs", type=int, default=1, help="rows at the same time (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every row as JSON")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are in FILE.json")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files of every row there")
    parser.add_argument("--form", help="only this target of those that a row has")
    parser.add_argument("--list", action="store_true", help="list the names, and exit")
    options = parser.parse_args()
    chosen = _chosen(options.names)
    if options.list:
        print("\n".join(f"{entry.name}\t{entry.family}" for entry in chosen))
        return 0
    if options.form:
        chosen = [replace(entry, forms=[options.form]) for entry in chosen if options.form in entry.forms]
    done = {}
    if options.resume and options.out and options.out.is_file():
        done = {row["name"]: Row.from_json(row) for row in json.loads(options.out.read_text())}
    rows = _run(chosen, done, options.jobs, options.keep, options.out)
    Console(width=160).print(_table(rows))
    return _summary(rows)


def _chosen(patterns: list[str]) -> list[Architecture]:
    known = architectures()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            sys.exit(f"no architecture is called {pattern!r}; --list shows the names")
    if not patterns:
        return list(known.values())
    names = [name for pattern in patterns for name in known if fnmatchcase(name, pattern)]
    return [known[name] for name in dict.fromkeys(names)]


def _run(
    chosen: list[Architecture], done: dict[str, Row], jobs: int, keep: Path | None, out: Path | None
) -> list[Row]:
    """Rows of `chosen` in their order. done: rows of an earlier run, which are not run again."""
    starter = context()
    known, writing = dict(done), Lock()
    columns = (TextColumn("{task.description:24}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        task = bar.add_task("zoo", total=len(chosen))

        def one(entry: Architecture) -> Row:
            if entry.name in done:
                bar.advance(task)
                return done[entry.name]
            bar.update(task, description=entry.name)
            folder = keep and keep / entry.name
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            row = run_row(entry, starter, folder)
            bar.advance(task)
            with writing:
                known[row.name] = row
                if out:
                    # After each row, so that a run that is stopped can be resumed.
                    in_order = [known[name] for name in architectures() if name in known]
                    out.write_text(json.dumps([row.to_json() for row in in_order], indent=1) + "\n")
            if row.verdict != PASSED:
                bar.console.print(f"{row.name}: {row.verdict}", highlight=False)
            return row

        return list(pool.map(one, chosen))


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("architecture", "family", "parameters", "form", "verdict", "shapes", "s", "message"):
        table.add_column(column, justify="right" if column in ("parameters", "shapes", "s") else "left")
    for row in rows:
        for k, (name, form) in enumerate(row.forms.items()):
            first = (row.name, row.family, f"{row.parameters:,}") if k == 0 else ("", "", "")
            message = form.message or ", ".join(sorted({text.partition(": ")[2] for text in form.fixed}))
            table.add_row(*first, name, form.verdict, str(form.held), f"{form.seconds:.0f}", message[:300])
    return table


def _summary(rows: list[Row]) -> int:
    counts, total = Counter(row.verdict for row in rows), len(rows)
    for verdict, count in counts.most_common():
        print(f"{count:5} {verdict}")
    passed = counts[PASSED]
    print(f"{passed} of {total} passed ({100 * passed / max(total, 1):.1f} %)")
    return 0 if enough(rows) else 1


def enough(rows: list[Row]) -> bool:
    """Whether 95 % pass and every other row has a message that helps."""
    counts = Counter(row.verdict for row in rows)
    return counts[PASSED] >= SHARE * len(rows) and counts[PASSED] + counts[REFUSED] + counts[TOLD] == len(
        rows
    )


if __name__ == "__main__":
    sys.exit(main())
