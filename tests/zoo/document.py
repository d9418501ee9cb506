"""`python -m tests.zoo.document build/zoo.json docs/models.md`: writes the page about the zoo."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

from tests.zoo.rows import PASSED, Row

HEAD = """# Models that were tried

`make zoo` takes {total} architectures through the whole tool and compares every file with the module that
it was made of. Each model is small (a few layers, hidden sizes of 16 to 64) and is built from its
configuration or from a class in `tests/zoo/`, with random weights: what is tried is the architecture, not a
checkpoint.

One row goes this way:

1. `roast_export.compress(model, ratio)` makes the large weights virtual.
2. The compressed module computes outputs for inputs of several shapes. These outputs are the truth.
3. `roast_export.save` writes an archive, and `roast-export archive.pt --to FORM` writes the file in a
   process that has never seen the model's code.
4. The file runs on the same inputs: `.onnx` in plain onnxruntime and with the native operators, `.ort` with
   the native operators, TorchScript and `.pt2` in torch. A comparison that shares no code with the tool's
   own proof says whether every output is right.

A row has passed if the file takes three different shapes of its inputs and is right at all of them. Where
the column "shapes" says "batches", the three differ in their batch alone, because the architecture takes one
length; the reasons are at the end of this page. "Ratio" is the number of parameters of the dense model over
that of the compressed one, biases and norms included: the models are so small that it stays below the ratio
asked for.

**{passed} of {total} passed.** {others}
"""


_OTHERS = (
    "What the tool says of them, in its own words. Where it says that a length is fixed, it writes a file "
    "for that length. A mismatch leaves no file: the tool's proof refuses it."
)

_SITE = re.compile(r"\S*/site-packages/")
"""The folder of packages on the machine of a run, which no page shows."""


def page(rows: list[Row]) -> str:
    """The text of docs/models.md."""
    counts = Counter(row.verdict for row in rows)
    others = ", ".join(f"{verdict}: {n}" for verdict, n in counts.most_common() if verdict != PASSED)
    lines = [
        HEAD.format(total=len(rows), passed=counts[PASSED], others=f"The others: {others}." * bool(others))
    ]
    lines += [
        "| architecture | family | parameters | ratio | forms | shapes |",
        "|---|---|---:|---:|---|---|",
    ]
    lines += [_line(row) for row in rows if row.verdict == PASSED]
    left = [row for row in rows if row.verdict != PASSED]
    if left:
        lines += ["", "## The others", "", _OTHERS, ""]
        lines += ["| architecture | family | form | verdict | message |", "|---|---|---|---|---|"]
        for row in left:
            for name, form in row.forms.items():
                if form.verdict != PASSED:
                    lines.append(
                        _cells(f"`{row.name}`", row.family, name, form.verdict, _escaped(form.message))
                    )
    lines += ["", "## Architectures that take one length", ""]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.fixed:
            reasons.setdefault(row.fixed, []).append(f"`{row.name}`")
    lines += [f"- {reason[0].upper()}{reason[1:]}: {', '.join(names)}." for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    shapes = min(form.held for form in row.forms.values())
    ratio = f"{row.parameters / max(row.kept, 1):.1f}x"
    which = f"{shapes} batches" if row.fixed else str(shapes)
    return _cells(f"`{row.name}`", row.family, f"{row.parameters:,}", ratio, ", ".join(row.forms), which)


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return _SITE.sub("", text).replace("|", "\\|").replace("\n", " ")


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.write_text(page([Row.from_json(row) for row in json.loads(source.read_text())]))


if __name__ == "__main__":
    main()
