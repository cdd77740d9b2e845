"""Work that is done again and again while there is something to do it for."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent import Greenlet

__all__ = ["Periodic"]


class Periodic:
    """Calls a function at intervals, from one greenlet that exists only while there is a next time.

    Args:
        interval: called before each pause; returns its seconds, or 0 to end. :meth:`start` begins again.
        check: called as ``check(elapsed, late)`` after each pause: the seconds that it took, and by how much that is
            longer than it should have been because the process did something else.
        spawn: makes the greenlet.
    """

    __slots__ = ("_check", "_greenlet", "_interval", "_spawn", "_stopped")

    def __init__(
        self,
        interval: Callable[[], float],
        check: Callable[[float, float], object],
        spawn: Callable[..., Greenlet[..., Any]] = gevent.spawn,
    ) -> None:
        self._interval = interval
        self._check = check
        self._spawn = spawn
        self._greenlet: Greenlet[..., Any] | None = None
        #: Whether the greenlet was told to end, which it does later.
        self._stopped = False

    def start(self) -> None:
        """Begin, unless it has begun. Never blocks."""
        if self._greenlet is None or self._stopped or self._greenlet.ready():
            self._stopped = False
            self._greenlet = self._spawn(self._run)

    def stop(self) -> None:
        """End it. Never blocks."""
        if self._greenlet is not None:
            self._stopped = True
            self._greenlet.kill(block=False)

    def join(self) -> None:
        """Block until the greenlet has ended, unless that is the caller."""
        if self._greenlet is not None and self._greenlet is not gevent.getcurrent():
            self._greenlet.join()

    def _run(self) -> None:
        try:
            while pause := self._interval():
                before = monotonic()
                gevent.sleep(pause)
                elapsed = monotonic() - before
                self._check(elapsed, max(0.0, elapsed - pause))
        finally:
            # After a stop and a start another greenlet may be there already.
            if self._greenlet is gevent.getcurrent():
                self._greenlet = None
