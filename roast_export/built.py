"""What `make cross` and `make mobile` build: libraries and programs for other machines."""

from __future__ import annotations

import os
from pathlib import Path

import roast_export


def build_folder() -> Path:
    """The checkout's build/, or the folder that the environment variable ROAST_BUILD names."""
    override = os.environ.get("ROAST_BUILD")
    return Path(override) if override else Path(roast_export.__file__).parent.parent / "build"


def missing(paths: list[Path], command: str) -> str | None:
    """A sentence about the first path that is not there, with the command that makes it; or None."""
    absent = [path for path in paths if not path.exists()]
    return f"{absent[0]} is missing; run `{command}`" if absent else None
