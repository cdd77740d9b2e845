"""Work that is done at intervals."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent import Greenlet, GreenletExit

from ..log import ThrottledLog, get_logger
from .ending import LOG_INTERVAL, Ended, survive
from .yielding import keep_to_turn

__all__ = ["Periodic"]

_log = ThrottledLog(get_logger("gmultisocket.socket"), LOG_INTERVAL)


class Periodic:
    """Calls a function at intervals, in a greenlet that exists only while there is work. An error does not end it.

    Args:
        interval: called before each pause; returns the seconds of the pause, or 0 to end the greenlet.
            :meth:`start` begins again.
        check: called as ``check(elapsed, late)`` after each pause. ``elapsed`` is how long the pause really was, in
            seconds. ``late`` is the part of it over the interval, for which the process did something else.
        spawn: starts a function in a greenlet and returns the greenlet.
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
        #: Whether the greenlet was killed. It ends at a later turn of the event loop.
        self._stopped = False

    def start(self) -> None:
        """Begin, unless it has begun already. Never blocks."""
        if self._greenlet is None or self._stopped or self._greenlet.ready():
            self._stopped = False
            self._greenlet = self._spawn(self._run)

    def stop(self) -> None:
        """End it. Never blocks."""
        if self._greenlet is not None:
            self._stopped = True
            self._greenlet.kill(Ended, block=False)

    def join(self) -> None:
        """Block until the greenlet has ended. Return at once if the caller is that greenlet."""
        if self._greenlet is not None and self._greenlet is not gevent.getcurrent():
            self._greenlet.join()

    def _run(self) -> None:
        killed = False
        try:
            while pause := self._interval():
                before = monotonic()
                gevent.sleep(pause)
                keep_to_turn()
                elapsed = monotonic() - before
                try:
                    self._check(elapsed, max(0.0, elapsed - pause))
                except GreenletExit:
                    raise
                except BaseException as error:
                    self._survive(error)
        except Ended:
            pass
        except GreenletExit as error:
            self._survive(error)
            killed = True
        finally:
            # After a stop and a start this may be another greenlet already.
            if self._greenlet is gevent.getcurrent():
                self._greenlet = None
                if killed:
                    # The killer may wait until this greenlet has ended, so another one takes over.
                    self.start()

    def _survive(self, error: BaseException) -> None:
        name = getattr(self._check, "__qualname__", "a periodic check")
        survive(_log, name, error, "%s failed, and will be called again", name)
