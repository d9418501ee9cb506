"""What a file may ask of the machine: the limits in one place, by the size of the file.

A file that someone else wrote states sizes of its own: shapes, counts of loops, what its archive unpacks to.
Nothing that it states is believed before it is held to a limit here. Each limit is far above what real models
take, and an environment variable raises it for the model that takes more (SECURITY.md).
"""

from __future__ import annotations

import os

GIB = 1 << 30

MEMORY = "ROAST_LIMIT_MEMORY"
"""Variable: GiB of memory that running a file may take."""
SECONDS = "ROAST_LIMIT_SECONDS"
"""Variable: seconds that opening a file, or one run of it, may take."""


def memory(file_bytes: int) -> int:
    """Bytes that opening and running a file of `file_bytes` bytes may take beside what the process has."""
    return int(_override(MEMORY, GIB) or 8 * GIB + 16 * file_bytes)


def seconds(file_bytes: int) -> float:
    """Seconds that opening a file of `file_bytes` bytes, or one run of it, may take."""
    return _override(SECONDS, 1) or 600 + file_bytes / 1e6


def _override(variable: str, unit: int) -> float | None:
    """What the user allows; None where the variable is not set, or is no positive number."""
    try:
        number = float(os.environ.get(variable, ""))
    except ValueError:
        return None
    return number * unit if number > 0 else None
