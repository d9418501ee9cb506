"""One row of the zoo: its steps run in child processes, and a verdict on each form."""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.zoo.architecture import Architecture
from tests.zoo.steps import child

TIME_LIMIT = 600.0
"""Seconds for one step."""

PASSED = "passed"
REFUSED = "refused"
UNHELPFUL = "unhelpful"
UNPROVED = "mismatch"
BUG = "traceback"
WRONG = "WRONG PASS"
BLIND = "proves nothing"
TIMEOUT = "timeout"
FEW = "too few shapes"
TOLD = "one length, and says so"

SHAPES = 3
"""Different shapes of its inputs at which a file must be right."""

_BUG = re.compile(r"Traceback|this is a bug in roast-export")
_RAW = re.compile(r"^\w*(Error|Exception): |cannot be opened as a torch.export archive: ")
_NEXT_STEP = re.compile(r"; | instead|, or |\(--|use |give |leave |pass ")


@dataclass
class Form:
    """What became of one target. held: cases that were compared; fixed: cases that the file does not take."""

    verdict: str
    message: str = ""
    held: int = 0
    fixed: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Row:
    """One architecture. parameters: elements of the dense model; kept: of the compressed one.

    fixed: why its shapes differ in their batch alone, or None.
    """

    name: str
    family: str
    parameters: int = 0
    kept: int = 0
    fixed: str | None = None
    forms: dict[str, Form] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst of its forms."""
        order = [WRONG, BUG, TIMEOUT, UNPROVED, UNHELPFUL, BLIND, FEW, REFUSED, TOLD, PASSED]
        return min((form.verdict for form in self.forms.values()), key=order.index)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}

    @classmethod
    def from_json(cls, read: dict[str, Any]) -> Row:
        fields = {key: value for key, value in read.items() if key != "verdict"}
        return cls(**{**fields, "forms": {name: Form(**form) for name, form in read["forms"].items()}})


def context() -> Any:
    """A starter of processes that hold torch and the package, and nothing of any model."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.zoo.preloaded"])
    return found


def run_row(entry: Architecture, starter: Any, folder: Path | None = None) -> Row:
    """Every form of one architecture. folder: where its files stay; else they are removed."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="zoo-") as made:
            return run_row(entry, starter, Path(made))
    row = Row(entry.name, entry.family, fixed=entry.fixed)
    began = time.monotonic()
    prepared = _step(starter, "prepare", [entry.name], folder)
    facts = folder / "facts.json"
    seen = json.loads(facts.read_text()) if facts.is_file() else {}
    row.parameters, row.kept = seen.get("parameters", 0), seen.get("kept", 0)
    if "error" in prepared:
        form = _refusal(prepared["error"], entry, bug=not prepared.get("refused"))
        row.forms["save"] = Form(TIMEOUT if prepared.get("timeout") else form.verdict, form.message)
        row.forms["save"].seconds = time.monotonic() - began
        return row
    for target in entry.forms:
        began = time.monotonic()
        form = _form(entry, starter, target, folder)
        if form.verdict == PASSED and seen["blind"]:
            form = Form(BLIND, "other inputs do not move the outputs")
        form.seconds = round(time.monotonic() - began, 1)
        row.forms[target] = form
    return row


def _form(entry: Architecture, starter: Any, target: str, folder: Path) -> Form:
    ran = _step(starter, "command", [target, list(entry.flags)], folder)
    if "exit" not in ran:
        return Form(TIMEOUT if ran.get("timeout") else BUG, ran["error"])
    said = (folder / f"command-{target}.err").read_text(errors="replace")
    if ran["exit"] == 0:
        return _compared(entry, starter, target, folder)
    complaint = said[said.rfind("error: ") :].removeprefix("error: ").strip()
    if _BUG.search(said):
        return Form(BUG, complaint)
    if ran["file"]:
        return Form(WRONG, f"exit {ran['exit']}, and the file is in place: {complaint}")
    return Form(UNPROVED, complaint) if ran["exit"] == 2 else _refusal(complaint, entry)


def _compared(entry: Architecture, starter: Any, target: str, folder: Path) -> Form:
    result = _step(starter, "compare", [target, len(entry.sizes)], folder)
    if "wrong" not in result:
        return Form(WRONG, f"the file was written and cannot be compared: {result.get('error')}")
    wrong, held, fixed = result["wrong"], result["held"], result["fixed"]
    if wrong:
        return Form(WRONG, "; ".join(wrong), held, fixed)
    if held >= SHAPES:
        return Form(PASSED, "", held, fixed)
    return _fixed(fixed, held, (folder / f"command-{target}.out").read_text(errors="replace"))


def _fixed(fixed: list[str], held: int, report: str) -> Form:
    """A file that takes fewer shapes than the module: its report must name each length that it fixes."""
    found = {place for text in fixed for place in re.findall(r"\S+:\d+ is fixed at \d+", text)}
    warnings = " ".join(line for line in report.splitlines() if line.startswith("warning: "))
    told = bool(found) and all(place in warnings for place in found)
    return Form(TOLD if told else FEW, ", ".join(sorted(found)), held, fixed)


def _refusal(message: str, entry: Architecture, *, bug: bool = False) -> Form:
    if bug:
        return Form(BUG, message)
    helpful = _NEXT_STEP.search(message) and not _RAW.search(message)
    return Form(REFUSED if helpful else UNHELPFUL, message)


def _step(starter: Any, step: str, arguments: list[Any], folder: Path) -> dict[str, Any]:
    """The result of one step, or what ended its process."""
    name = "-".join([step, *(a for a in arguments[:1] if step != "prepare")])
    process = starter.Process(target=child, args=(step, arguments, str(folder)), daemon=False)
    process.start()
    process.join(TIME_LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return {"error": f"{step} took more than {TIME_LIMIT:.0f} s", "timeout": True}
    written = folder / f"{name}.json"
    if written.is_file():
        return json.loads(written.read_text())
    return {"error": f"{step} ended with {process.exitcode} and left no result"}
