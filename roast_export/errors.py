"""Every error a user can meet. Each message names the thing, the reason and a next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roast_export.report import Report


class RoastError(Exception):
    """Base of all errors of this package. The command line prints the message and exits 1."""


class MappingError(RoastError, ValueError):
    """A mapping record breaks a rule of docs/mapping.md section 2."""


class LoadError(RoastError):
    """A model file cannot be opened, or may not be opened without the user's consent."""


class InputError(RoastError, ValueError):
    """An argument, an input specification or an example input does not fit the model."""


class ExportError(RoastError):
    """The model cannot be expressed in the target format, or the output cannot be written."""


class VerificationError(RoastError):
    """The exported file is not proved equal to PyTorch. The command line exits 2; no file is put in place."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
