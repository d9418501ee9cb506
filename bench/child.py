"""One group in a process of its own: python -m bench.child GROUP.json RESULT.json"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

# The threads of numpy and torch must not spin beside those that are timed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench import layers, machine


def measure_group(group: dict, library: Path | None, scratch: Path) -> dict:
    """The tables of one group, with the machine's peaks as this process saw them."""
    counts = group["threads"] if group["kind"] == "model" else [group["threads"]]
    cores = machine.pin(max(counts))
    measured = {threads: machine.peaks(library, threads) for threads in counts}
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="group-", dir=scratch) as name:
        folder = Path(name)
        if group["kind"] == "model":
            from bench import models

            found = models.measure_model(group, folder, measured)
        elif group["kind"] == "embedding":
            found = layers.measure_embedding(group, folder, measured[counts[0]])
        else:
            found = layers.measure_layer(group, folder, measured[counts[0]])
    found["peaks"] = [{**machine.as_row(peaks), "group": group["name"]} for peaks in measured.values()]
    found["cores"] = cores
    return found


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    library = Path(request["library"]) if request["library"] else None
    found = measure_group(request["group"], library, Path(request["scratch"]))
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
