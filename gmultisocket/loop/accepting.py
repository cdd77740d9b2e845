"""The accept loop: accepts connections one after the other until it is stopped. Errors do not end it.

All listeners use the same rule for errors. Some errors belong to one connection, for example because its peer has reset
it: the next connection is then accepted at once. After any other error of ``accept`` the loop pauses, each time longer:
descriptors or memory have run out, or the transport is broken. Only :class:`~gmultisocket.errors.Closed`, raised by
``accept``, and :meth:`AcceptLoop.stop` end the loop.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from ..errors import Closed
from ..log import ThrottledLog, get_logger
from .ending import LOG_INTERVAL, Ended, end, survive
from .yielding import yield_to_loop

__all__ = ["AcceptLoop"]

logger = get_logger("gmultisocket.listener")

T = TypeVar("T")

#: Errors that belong to one connection; see accept(2) in the Linux manual, "Error handling".
_PASSING: Final = {
    errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENONET, errno.ENOPROTOOPT, errno.ENOTCONN, errno.EOPNOTSUPP, errno.EPIPE, errno.EPROTO, errno.ETIMEDOUT,
}  # fmt: skip
#: Seconds of the first and of the longest pause. Each pause is twice as long as the one before.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0
#: After this number of connections in a row other greenlets run.
_BATCH: Final = 16


class AcceptLoop(Generic[T]):
    """Accepts connections in a greenlet.

    Args:
        accept: blocks until there is a connection, and returns it. Raises ``OSError`` if this attempt failed, and
            :class:`~gmultisocket.errors.Closed` to end the loop.
        take: called with each connection, which belongs to it from then on: it must close the connection if it fails.
            May block: the next connection is accepted when it has returned.
        address: returns the address, for log records.
        wait: called before each ``accept``; blocks while no connection may be accepted. Raises as ``accept`` does.
    """

    __slots__ = ("_accept", "_accepted", "_address", "_greenlet", "_log", "_pause", "_stopped", "_take", "_wait")

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
        self._log = ThrottledLog(logger, LOG_INTERVAL)
        #: Seconds of the next pause after an error, and the number of connections so far.
        self._pause = _FIRST_PAUSE
        self._accepted = 0
        self._stopped = False
        self._greenlet: Greenlet[..., Any] | None = None

    def start(self) -> None:
        """Begin to accept. Never blocks."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End the loop, and a running call of ``take``, unless that is the caller. Never blocks."""
        self._stopped = True
        end(self._greenlet)

    def join(self, timeout: float | None = None) -> bool:
        """Block until the loop has ended. Return False if the time is up, True at once if the caller is the loop."""
        greenlet = self._greenlet
        if greenlet is None or greenlet is getcurrent():
            return True
        greenlet.join(timeout)
        return greenlet.ready()

    def _run(self) -> None:
        """Accept until the loop is stopped (its greenlet)."""
        while not self._stopped:
            try:
                self._accept_one()
            except Closed:
                return
            except GreenletExit as error:
                if self._stopped or isinstance(error, Ended):
                    return
                survive(self._log, "killed", error, "%s goes on accepting, though something killed it", self._address())
                # The killer may wait until this greenlet has ended, so another one takes over.
                self.start()
                return

    def _accept_one(self) -> None:
        """Accept one connection and take it. An error of either is logged.

        Raises:
            Closed: there are no more connections.
            GreenletExit: something killed this greenlet.
        """
        try:
            if self._wait is not None:
                self._wait()
            connection = self._accept()
        except (Closed, GreenletExit):
            raise
        except BaseException as error:
            if self._stopped:
                return
            if self._log_error(error):
                yield_to_loop()
            else:
                gevent.sleep(self._pause)
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return
        self._pause = _FIRST_PAUSE
        self._accepted += 1
        try:
            self._take(connection)
        except GreenletExit:
            raise
        except BaseException as error:
            # No pause: a peer may have caused the error, and a pause would delay other peers.
            self._log_error(error)
            yield_to_loop()
        if self._accepted % _BATCH == 0:
            yield_to_loop()

    def _log_error(self, error: BaseException) -> bool:
        """Log an error. Return whether it belongs to one connection."""
        passing = isinstance(error, Closed) or (isinstance(error, OSError) and error.errno in _PASSING)
        if passing:
            logger.debug("%s could not accept a connection: %s", self._address(), error)
        elif isinstance(error, OSError):
            self._log.log("accept", logging.ERROR, "%s cannot accept a connection: %s", self._address(), error)
        else:
            survive(self._log, "exception", error, "%s failed to accept a connection", self._address())
        return passing
