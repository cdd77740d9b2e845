"""Log records that peers can cause: safe to print, and limited in number so that no peer can fill the disk."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final

from .errors import printable

__all__ = ["ThrottledLog", "get_logger"]

#: Kinds of records that one throttled log distinguishes.
_MAX_KINDS: Final = 32


class _Printable:
    """An argument of a log record whose text is printable, whatever a peer has put into it."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))


def _make_printable(record: logging.LogRecord) -> bool:
    """Change a record so that it prints no control character. A filter; lets every record through."""
    # A single argument that is a mapping does not arrive in a tuple.
    args = record.args if isinstance(record.args, tuple) else (record.args,) if record.args else ()
    record.args = tuple([arg if isinstance(arg, (int, float)) else _Printable(arg) for arg in args])
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        text = logging.Formatter().formatException(record.exc_info)
        safe = _printable_traceback(text, record.exc_info[1])
        # Otherwise the program's own formatter has its say.
        if safe != text:
            record.exc_text = safe
    return True


def _printable_traceback(text: str, error: BaseException) -> str:
    """Return a traceback in which no error's message begins a line, or acts on a terminal."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        errors += [each.__cause__, each.__context__]
        message = str(each)
        if message.strip():
            text = text.replace(message, printable(message))
    return "\n".join(map(printable, text.split("\n")))


def get_logger(name: str) -> logging.Logger:
    """Return the logger of this name. Its records are safe to print."""
    logger = logging.getLogger(name)
    if _make_printable not in logger.filters:
        logger.addFilter(_make_printable)
    return logger


class ThrottledLog:
    """Writes records to a logger: in each interval the first record of a kind at its own level, the others at DEBUG.

    It distinguishes at most 32 kinds. All further ones are one kind, as they may come from peers.

    Args:
        logger: the logger.
        interval: seconds.
    """

    __slots__ = ("_interval", "_logger", "_written")

    def __init__(self, logger: logging.Logger, interval: float) -> None:
        self._logger = logger
        self._interval = interval
        #: When the last record of each kind was written at its own level.
        self._written: dict[str, float] = {}

    def log(self, kind: str, level: int, text: str, *args: object, error: BaseException | None = None) -> None:
        """Log ``text % args``.

        Args:
            kind: each kind has its own intervals.
            level: as for :meth:`logging.Logger.log`.
            text: the record's message.
            args: its arguments.
            error: an exception whose traceback the record has.
        """
        now = monotonic()
        if kind not in self._written and len(self._written) >= _MAX_KINDS:
            kind = ""
        written = self._written.get(kind)
        if written is not None and now - written < self._interval:
            level = logging.DEBUG
        else:
            self._written[kind] = now
        self._logger.log(level, text, *args, exc_info=error)
