"""What the commands say on standard error; standard output is for messages.

Every line begins with ``gmultisocket:``. :func:`report` is for what went wrong, :func:`note` for what is good to know.
Log records of the library are printed in the same way: warnings and errors always, all others with ``-vv``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress

from ..errors import printable

__all__ = ["is_quiet", "note", "report", "set_verbosity", "set_line", "write"]

_quiet = False
#: Prints the line that moves on the terminal once more, or takes it away: see ``progress``.
_line: Callable[[bool], None] | None = None


def report(text: str) -> None:
    """Print a line on standard error."""
    if _line is not None:
        _line(False)
    write(f"gmultisocket: {printable(text)}\n")
    if _line is not None:
        _line(True)


def note(text: str) -> None:
    """Print a line on standard error, unless ``--quiet`` was given."""
    if not _quiet:
        report(text)


def write(text: str) -> None:
    """Write to standard error. If that is full or closed, the messages go on."""
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()


def set_line(line: Callable[[bool], None] | None) -> None:
    """Set the function that prints (True) or removes (False) the line that moves; None for no such line."""
    global _line
    _line = line


def is_quiet() -> bool:
    """Return whether ``--quiet`` was given."""
    return _quiet


def set_verbosity(verbose: int, quiet: bool) -> None:
    """Set what is printed from now on.

    Args:
        verbose: at least 2 prints all log records of the library; otherwise warnings and errors are printed.
        quiet: print no notes, and of the log records only errors.
    """
    global _quiet
    _quiet = quiet
    handler = _Handler(logging.DEBUG if verbose > 1 else logging.ERROR if quiet else logging.WARNING)
    logging.basicConfig(level=handler.level, format="%(message)s", handlers=[handler])


class _Handler(logging.Handler):
    """Prints log records as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            report(line)
