"""How far a long command is: a bar on a terminal, one plain line for each step anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from roast_export.printable import one_line

Report = Callable[[str, int, int], None]
"""Called with the step's name, how much of it is done, and how much there is."""


@contextmanager
def progress() -> Iterator[Report]:
    """Show steps on stderr, so that stdout stays the result."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _bars(bars)


def _lines() -> Report:
    seen: set[str] = set()

    def show(step: str, done: int, total: int) -> None:
        if step not in seen and done < total:
            seen.add(step)
            click.echo(f"{one_line(step)} ...", err=True)

    return show


def _bars(bars: Progress) -> Report:
    tasks: dict[str, TaskID] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            # A step that is reported no more has ended.
            for task in bars.tasks:
                bars.update(task.id, completed=task.total)
            tasks[step] = bars.add_task(escape(one_line(step)), total=total)
        bars.update(tasks[step], completed=done, total=total)

    return show
