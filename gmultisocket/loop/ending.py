"""How a greenlet of this library ends: when this library ends it, and not by an error of a function that it calls.

Functions of the program run in greenlets of this library: negotiators, header functions, transports, hooks. They may
raise anything, also what gevent uses to end greenlets. A greenlet that serves a dialer, a listener or a timer reports
such an error and goes on.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import gevent
from gevent import Greenlet, GreenletExit, getcurrent
from gevent.hub import Hub

from ..log import ThrottledLog

__all__ = ["LOG_INTERVAL", "SYSTEM_ERRORS", "Ended", "end", "survive"]

#: Seconds between two records of the same kind of error.
LOG_INTERVAL: Final = 60.0

#: Errors that end the program: gevent raises them in the main greenlet, whichever greenlet they happened in.
SYSTEM_ERRORS: Final = Hub.SYSTEM_ERROR


class Ended(GreenletExit):
    """Ends a greenlet of this library. Nobody else raises it, so any other GreenletExit is an error or a mistake."""


def end(greenlet: Greenlet[..., Any] | None) -> None:
    """End a greenlet of this library, unless it is the caller. Never blocks."""
    if greenlet is not None and greenlet is not getcurrent():
        greenlet.kill(Ended, block=False)


def survive(log: ThrottledLog, kind: str, error: BaseException, text: str, *args: object) -> None:
    """Report an error that does not end the calling greenlet. Never raises and never blocks.

    One of :data:`SYSTEM_ERRORS` is raised in the main greenlet.

    Args:
        log: where to report; limits the number of records.
        kind: as for :meth:`~gmultisocket.log.ThrottledLog.log`.
        error: the error; its traceback is logged.
        text: the record's message.
        args: its arguments.
    """
    if isinstance(error, SYSTEM_ERRORS):
        hub = gevent.get_hub()
        hub.loop.run_callback(hub.handle_error, None, type(error), error, error.__traceback__)
        return
    log.log(kind, logging.ERROR, text, *args, error=error)
