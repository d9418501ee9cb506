"""Why torch.export cannot trace a model, told to the person who wrote it: cause, line, next step."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

import torch

_LIBRARIES = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).parent) + os.sep)
"""Folders of code that no user wrote. Other installed packages, such as transformers, hold models."""

_RECURRENT = f"nn{os.sep}modules{os.sep}rnn.py"

_BY_VALUE = (
    "a branch, a loop, a length or a number (if, while, .item(), .tolist(), float()) depends on the values "
    "of a tensor"
)
_KEEP_OUT = (
    "express it with torch.where or torch.cond, give the number as an argument of its own, or pickle the "
    "module (torch.save) and export that with --trust --to torchscript"
)


def explain(error: BaseException) -> str:
    """One message about what torch.export raised while it traced a model.

    Cases:
    1. control flow or a length that depends on values
    2. a packed sequence in a recurrent layer
    3. values that leave torch, for numpy or for Python
    4. a type of input or output that torch.export does not know
    5. anything else: torch's own words
    """
    frames = traceback.extract_tb(error.__traceback__)
    cause, step = _cause(error, [frame.filename for frame in frames])
    return f"torch.export cannot trace this model: {cause}{_place(frames)}; {step}"


def _cause(error: BaseException, files: list[str]) -> tuple[str, str]:
    text = str(error)
    if "data-dependent" in text or re.search(r"not '?Sym(Bool|Int|Float)", text):
        return _BY_VALUE, _KEEP_OUT
    if "FakeTensor" in text and any(file.endswith(_RECURRENT) for file in files):
        return (
            "a recurrent layer takes a packed sequence, whose lengths are values of a tensor",
            "call the layer on the padded batch, and take each row's last valid output with torch.gather",
        )
    if ".numpy()" in text or "FakeTensor" in text:
        return (
            f"values of a tensor are taken out of torch ({_first_line(text)})",
            "stay in torch's operators there, or do it before the call of the model",
        )
    found = re.search(r"Found <class '([^']+)'> in (output|input)", text)
    if found:
        where = "returns" if found[2] == "output" else "takes"
        name = found[1].rpartition(".")[2]
        return (
            f"its forward {where} an object of {name}, which torch.export cannot take apart",
            "wrap the model in a module that takes and returns tensors, or tuples, lists and dicts of them",
        )
    return (
        _first_line(text) or type(error).__name__,
        "change that line, or wrap the model in a module whose forward leaves it out (--debug shows more)",
    )


def _place(frames: traceback.StackSummary) -> str:
    """The innermost line of the model's own code, if there is one."""
    own = [frame for frame in frames if is_own(frame.filename)]
    return f", at {place_of(own[-1])}" if own else ""


def place_of(frame: traceback.FrameSummary) -> str:
    """Such as "net.py:7 in forward: y = x[0]"."""
    line = f": {frame.line.strip()}" if frame.line else ""
    return f"{_short(frame.filename)}:{frame.lineno} in {frame.name}{line}"


def is_own(file: str) -> bool:
    """Whether a file is a model's code."""
    return not file.startswith(("<", *_LIBRARIES))


def _short(file: str) -> str:
    """The path as seen from the working folder, if it lies below."""
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else ""
