"""`make mutants`: the kill rate of the proof over models of many kinds; exit status 1 if one survives."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.mutants.judge import Judged, Score, verdicts_only
from tests.mutants.models import models


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="these models only")
    parser.add_argument("--mutants", type=int, default=36, help="mutants of each model (default 36)")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other mutants (default 1)")
    options = parser.parse_args()
    known = models()
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"no model is called {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    console = Console(width=None if sys.stdout.isatty() else 110)
    scores, failed, began = [], 0, time.perf_counter()
    with Progress(console=console, disable=not sys.stdout.isatty()) as bar:
        for name in options.names or known:
            task = bar.add_task(name, total=options.mutants)
            with tempfile.TemporaryDirectory() as folder, verdicts_only():
                judged = Judged(known[name], Path(folder))
                control = judged.differs(judged.right) is False and not judged.refused(judged.right)
                score = judged.score(
                    options.mutants, options.seed, lambda done, task=task: bar.update(task, completed=done)
                )
            scores.append((score, control))
            failed += not control or bool(score.survivors)
            console.print(f"{name}: {score.refused} of {score.differ} refused", highlight=False)
    console.print(_table(scores))
    for score, control in scores:
        for text in score.survivors:
            console.print(f"SURVIVED {score.name}, {text}", highlight=False)
        if not control:
            console.print(f"{score.name}: the unchanged file differs or is refused", highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s")
    return int(failed > 0)


def _table(scores: list[tuple[Score, bool]]) -> Table:
    table = Table("model", "mutants", "not valid", "differ", "refused", "kill rate", "unchanged file")
    total = Score("all")
    for score, control in scores:
        table.add_row(*_row(score), "passes" if control else "REFUSED")
        total.mutants += score.mutants
        total.invalid += score.invalid
        total.differ += score.differ
        total.refused += score.refused
    table.add_row(*_row(total), "")
    return table


def _row(score: Score) -> list[str]:
    counts = [score.mutants, score.invalid, score.differ, score.refused]
    return [score.name, *map(str, counts), f"{score.rate:.1%}"]


if __name__ == "__main__":
    sys.exit(main())
