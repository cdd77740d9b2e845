"""Log records of the library: safe to print, limited in number, and without any effect on the work that logs.

What the program has configured runs when a record is handled: filters and handlers. They may raise, block, switch
greenlets, or be interrupted by a timeout of the caller. So no record of the core is handled in the middle of its work.
It waits, and a greenlet that exists only while records wait handles them in their order. Records about errors of the
program's own code (``usercode.py``) are handled at once: nothing is half done there, and a filter or a handler sees the
context that the program's code had.

Records that peers can cause are safe to print, and a :class:`ThrottledLog` limits their number.

Where nobody has configured ``logging``, errors go to ``sys.stderr``, and in gunicorn to its error log; see
:func:`show_by_default`.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from collections import deque
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

import gevent
from gevent import Greenlet, get_hub
from gevent.hub import Hub

from .errors import printable

__all__ = ["Logger", "ThrottledLog", "get_logger", "report_failure", "show_by_default"]

#: Records that may wait in one thread. When handling one takes long, further ones are left out.
_MAX_WAITING: Final = 1000
#: Seconds between two reports that the program's logging has failed.
_REPORT_INTERVAL: Final = 60.0
_THIS_FILE: Final = __file__

#: Kinds of records that one throttled log distinguishes.
_MAX_KINDS: Final = 32


class _Printable:
    """An argument of a log record whose text is printable, also if a peer has put other characters into it."""

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


class Logger:
    """A logger of the library. No ``Exception`` of the program's filters and handlers comes out of a method.

    Args:
        name: of the ``logging.Logger`` that it writes to.
        at_once: whether records are handled before a method returns. Otherwise no method blocks or switches greenlets,
            and no exception at all comes out of it.
    """

    __slots__ = ("_at_once", "_logger", "isEnabledFor", "name")

    def __init__(self, name: str, *, at_once: bool = False) -> None:
        self._logger = logging.getLogger(name)
        if _make_printable not in self._logger.filters:
            self._logger.addFilter(_make_printable)
        self._at_once = at_once
        self.name = name
        #: As of ``logging.Logger``.
        self.isEnabledFor = self._logger.isEnabledFor

    def log(
        self, level: int, text: str, *args: object, exc_info: Any = None, extra: dict[str, object] | None = None
    ) -> None:
        """Write a record, as ``logging.Logger.log`` does."""
        if not self.isEnabledFor(level):
            return
        if exc_info is True:
            exc_info = sys.exc_info()
        elif isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename == _THIS_FILE:
            frame = frame.f_back
        code = frame.f_code
        try:
            record = self._logger.makeRecord(
                self._logger.name, level, code.co_filename, frame.f_lineno, text, args, exc_info or None, code.co_name,
                extra,
            )  # fmt: skip
        except Exception:
            # The program has its own factory for records.
            report_failure()
            return
        if self._at_once:
            try:
                self._logger.handle(record)
            except Exception:
                # Not a gevent.Timeout, which may be the caller's.
                report_failure()
        else:
            _put(self._logger, record)

    def debug(self, text: str, *args: object, exc_info: Any = None) -> None:
        """Write a record of this level."""
        self.log(logging.DEBUG, text, *args, exc_info=exc_info)

    def info(self, text: str, *args: object, exc_info: Any = None) -> None:
        """Write a record of this level."""
        self.log(logging.INFO, text, *args, exc_info=exc_info)

    def warning(self, text: str, *args: object, exc_info: Any = None) -> None:
        """Write a record of this level."""
        self.log(logging.WARNING, text, *args, exc_info=exc_info)

    def error(self, text: str, *args: object, exc_info: Any = None) -> None:
        """Write a record of this level."""
        self.log(logging.ERROR, text, *args, exc_info=exc_info)

    def exception(self, text: str, *args: object) -> None:
        """Write an ERROR record with the traceback of the exception that is being handled."""
        self.log(logging.ERROR, text, *args, exc_info=True)


_loggers: dict[tuple[str, bool], Logger] = {}


def get_logger(name: str, *, at_once: bool = False) -> Logger:
    """Return the library's logger of this name.

    Args:
        name: as for ``logging.getLogger``.
        at_once: whether records are handled before a method returns. Only for code that may block at that place and
            has nothing half done, and for code that may run without an event loop.
    """
    logger = _loggers.get((name, at_once))
    if logger is None:
        logger = _loggers[name, at_once] = Logger(name, at_once=at_once)
    return logger


# Handling records


class _Waiting:
    """The records of one thread that wait to be handled."""

    __slots__ = ("_greenlet", "_left_out", "_records")

    def __init__(self) -> None:
        self._records: deque[tuple[logging.Logger, logging.LogRecord]] = deque()
        self._greenlet: Greenlet[..., Any] | None = None
        self._left_out = 0

    def put(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Add a record. Never blocks."""
        if len(self._records) >= _MAX_WAITING:
            self._left_out += 1
            return
        self._records.append((logger, record))
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            self.handle_all()
        finally:
            # If a handler has killed this greenlet, another one does the rest.
            self._greenlet = gevent.spawn(self._run) if self._records else None

    def forget(self) -> None:
        """Drop the records that wait."""
        self._records.clear()

    def handle_all(self) -> None:
        """Handle the records that wait. Blocks as the program's handlers do."""
        while self._records:
            logger, record = self._records.popleft()
            try:
                logger.handle(record)
            except (Exception, gevent.Timeout):
                # No timeout of a caller runs in this greenlet.
                report_failure()
            if self._left_out and not self._records:
                count, self._left_out = self._left_out, 0
                get_logger("gmultisocket", at_once=True).warning(
                    "%d log records are missing: a handler of logging is slow", count
                )


#: By the hub of their thread.
_waiting: WeakKeyDictionary[Hub, _Waiting] = WeakKeyDictionary()


def _put(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Add a record to those that wait in this thread."""
    hub = get_hub()
    waiting = _waiting.get(hub)
    if waiting is None:
        if not _waiting:
            atexit.unregister(_handle_all)
            atexit.register(_handle_all)
        waiting = _waiting[hub] = _Waiting()
    waiting.put(logger, record)


_reported = -_REPORT_INTERVAL


def report_failure() -> None:
    """Print the exception that came out of the program's logging to ``sys.stderr``, as ``logging`` does itself."""
    global _reported
    if not logging.raiseExceptions or sys.stderr is None or monotonic() - _reported < _REPORT_INTERVAL:
        return
    _reported = monotonic()
    try:
        sys.stderr.write(f"gmultisocket: logging has failed, and records are missing:\n{traceback.format_exc()}")
    except Exception:
        # Nothing is left to say it to.
        pass


def _handle_all() -> None:
    """Handle the waiting records when the process ends."""
    for waiting in list(_waiting.values()):
        waiting.handle_all()


def _forget_all() -> None:
    """Forget the waiting records in a forked child: its parent handles them."""
    for waiting in list(_waiting.values()):
        waiting.forget()
    _waiting.clear()


os.register_at_fork(after_in_child=_forget_all)


# Without a configuration


class _Default(logging.Handler):
    """Handles the errors that nobody else handles."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter(logging.BASIC_FORMAT))

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of a handler: nothing here needs it, and other handlers have their own.
        if self._is_handled(record.name):
            return False
        gunicorn = logging.root.manager.loggerDict.get("gunicorn.error")
        if isinstance(gunicorn, logging.Logger) and gunicorn.handlers:
            if gunicorn.isEnabledFor(record.levelno):
                gunicorn.handle(record)
        elif logging.lastResort is not None and sys.stderr is not None:
            # A program that has removed the standard library's last resort wants no such lines.
            self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")

    def _is_handled(self, name: str) -> bool:
        """Return whether a logger has another handler than this one, of its own or of its parents."""
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def show_by_default() -> None:
    """Show errors on ``sys.stderr`` while the program has not configured ``logging``.

    These are errors of this side. Warnings tell of peers, which may be many and strange, and are not shown.

    In a gunicorn worker errors go to gunicorn's error log. As soon as any handler gets the library's records, this one
    does nothing. A ``logging.NullHandler`` for the logger "gmultisocket" is such a handler: it silences the library.
    """
    logger = logging.getLogger("gmultisocket")
    if not any(isinstance(handler, _Default) for handler in logger.handlers):
        logger.addHandler(_Default())


class ThrottledLog:
    """Writes records to a logger: in each interval the first record of a kind at its own level, the others at DEBUG.

    It distinguishes at most 32 kinds. All further ones are one kind, as they may come from peers.

    Args:
        logger: the logger.
        interval: seconds.
    """

    __slots__ = ("_interval", "_logger", "_written")

    def __init__(self, logger: Logger | logging.Logger, interval: float) -> None:
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
