"""Copies of a .ort file in which the bytes of one number are changed where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def with_number(source: Path, target: Path, old: np.ndarray, new: np.ndarray) -> Path:
    """Replace the bytes of `old`, wherever the file has them, by those of `new`, as many of them."""
    content, was, becomes = source.read_bytes(), old.tobytes(), new.tobytes()
    assert len(was) == len(becomes)
    assert was in content, f"{old} is not in {source}"
    target.write_bytes(content.replace(was, becomes))
    return target


def with_array_value(source: Path, target: Path, memory: np.ndarray, slot: int) -> Path:
    """One element of the stored array, a little larger."""
    changed = memory.copy()
    changed[slot] *= np.float32(1 + 2**-20)
    return with_number(source, target, memory, changed)


def with_coefficient(source: Path, target: Path, coefficient: int) -> Path:
    """One coefficient of a hash, one larger."""
    return with_number(source, target, np.int64([coefficient]), np.int64([coefficient + 1]))
