"""How a command ends: every exception becomes one message on stderr and an exit code.

Exit codes: 0 done (and verified), 1 refused or failed, 2 the file does not match or nothing compared it.
The one `try` of the package is in `RoastCommand.main`.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from roast_export.budget import MEMORY
from roast_export.errors import RoastError, VerificationError
from roast_export.printable import message
from roast_export.watched import in_child

REFUSED, MISMATCH, INTERRUPTED = 1, 2, 130


class RoastCommand(click.Command):
    """A command that turns every exception into one message on stderr and an exit code.

    It works in a process of its own, because it runs what is in files of other people (watched.py). Called
    with arguments, from Python, it works in the caller's process.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if not args and kwargs.get("args") is None:
            status = in_child(lambda text: _complain(text, False))
            if status is not None:
                # All that was imported here is taken down a second time otherwise, which takes a while.
                sys.stderr.flush()
                os._exit(status)
        kwargs["standalone_mode"] = False
        # Read before the arguments are parsed: parsing them may be what fails.
        given = kwargs.get("args", args[0] if args else None)
        debug = "--debug" in (sys.argv if given is None else given)
        try:
            with _calm(debug):
                code = super().main(*args, **kwargs)
        except VerificationError as error:
            _complain(str(error), debug)
            sys.exit(MISMATCH)
        except RoastError as error:
            _complain(str(error), debug)
            sys.exit(REFUSED)
        except click.ClickException as error:
            name = getattr(getattr(error, "ctx", None), "command_path", self.name)
            _complain(f"{error.format_message()} (see {name} --help)", debug)
            sys.exit(REFUSED)
        except (click.Abort, KeyboardInterrupt):
            _complain("interrupted", False)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whoever reads the output has gone.
            sys.exit(REFUSED)
        except MemoryError:
            _complain(f"there is not enough memory; free some, or set {MEMORY} to more GiB", debug)
            sys.exit(REFUSED)
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            _complain(
                f"{named}{error.strerror or error}; check the room on the disk and the rights of the folder "
                "(TMPDIR names the one for temporary files)",
                debug,
            )
            sys.exit(REFUSED)
        except Exception as error:
            hint = "" if debug else "; this is a bug in roast-export, --debug shows where"
            _complain(f"{type(error).__name__}: {error}{hint}", debug)
            sys.exit(REFUSED)
        sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, debug: bool) -> None:
    if debug:
        click.echo(message(traceback.format_exc()), err=True)
    click.echo(message(f"error: {text}"), err=True)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return message(super().format(record))


@contextmanager
def _calm(debug: bool) -> Iterator[None]:
    """Only our own log, from warnings up, unless the user asks for everything."""
    shown = logging.StreamHandler()
    shown.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[shown], level=logging.INFO if debug else logging.ERROR)
    own = logging.getLogger("roast_export")
    level = own.level
    own.setLevel(logging.INFO if debug else logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield
    finally:
        own.setLevel(level)
