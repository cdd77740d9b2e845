"""The accept loop: takes connections one after the other, whatever errors come, until it is stopped.

Which errors pass and which stay is decided here, for all listeners alike. An error that came with one connection (the
peer has reset it, say) is gone with that connection, and the next one is accepted at once. After any other error
descriptors or memory have run out, so the loop pauses, longer each time.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import gevent
from gevent import Greenlet, getcurrent

from ..errors import Closed
from ..log import ThrottledLog
from .yielding import yield_to_loop

__all__ = ["AcceptLoop"]

logger = logging.getLogger("gmultisocket.listener")

T = TypeVar("T")

#: Errors of accept(2) that came with one connection; see the page accept(2) of the Linux manual, "Error handling".
_PASSING: Final = {
    errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENONET, errno.ENOPROTOOPT, errno.ENOTCONN, errno.EOPNOTSUPP, errno.EPIPE, errno.EPROTO, errno.ETIMEDOUT,
}  # fmt: skip
#: Seconds of the pause after an error that stays: the first one, and the longest. Each is twice the one before.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0
#: After this number of connections in a row other greenlets run.
_BATCH: Final = 16
#: Seconds between two records of an error that stays.
_LOG_INTERVAL: Final = 60.0


class AcceptLoop(Generic[T]):
    """Accepts connections in a greenlet.

    Args:
        accept: blocks until there is a connection, and returns it. Raises ``OSError`` when this attempt failed, and
            :class:`~gmultisocket.errors.Closed` to end the loop.
        take: called with each connection, which it owns from then on. May block: the next one is accepted after it.
        address: returns the address, for log records.
        wait: called before each ``accept``; blocks while no connection may be accepted.
    """

    __slots__ = ("_accept", "_address", "_greenlet", "_log", "_stopped", "_take", "_wait")

    def __init__(
        self,
        accept: Callable[[], T],
        take: Callable[[T], object],
        address: Callable[[], str],
        wait: Callable[[], object] | None = None,
    ) -> None:
        self._accept = accept
        self._take = take
        self._address = address
        self._wait = wait
        self._log = ThrottledLog(logger, _LOG_INTERVAL)
        self._stopped = False
        self._greenlet: Greenlet[..., Any] | None = None

    def start(self) -> None:
        """Begin to accept. Never blocks."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End the loop, and a call of ``take`` that has not returned. Never blocks; may be called from ``take``."""
        self._stopped = True
        if self._greenlet is not None and self._greenlet is not getcurrent():
            self._greenlet.kill(block=False)

    def join(self, timeout: float | None = None) -> bool:
        """Block until the loop has ended. Return False when the time is up; True at once if the caller is the loop."""
        greenlet = self._greenlet
        if greenlet is None or greenlet is getcurrent():
            return True
        greenlet.join(timeout)
        return greenlet.ready()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        accepted = 0
        while not self._stopped:
            try:
                if self._wait is not None:
                    self._wait()
                connection = self._accept()
                pause = _FIRST_PAUSE
                self._take(connection)
                accepted += 1
                if accepted % _BATCH == 0:
                    yield_to_loop()
            except Closed:
                return
            except OSError as error:
                if self._stopped:
                    return
                if error.errno in _PASSING:
                    logger.debug("%s could not accept a connection: %s", self._address(), error)
                    yield_to_loop()
                else:
                    self._log.log("accept", logging.ERROR, "%s cannot accept a connection: %s", self._address(), error)
                    gevent.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
