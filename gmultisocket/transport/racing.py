"""Connects to the first of several addresses of a host that answers (Happy Eyeballs, RFC 8305).

The addresses are tried in the resolver's order, but families alternate (section 4). If an attempt has no answer after
``_DELAY``, the next one begins beside it; if it fails, the next one begins at once (section 5). The first connection
wins, and the others are closed. So an address that drops packets delays a connection by ``_DELAY``, and not by all the
time that there is.

One greenlet, the caller's, waits for all attempts. With one address there is one attempt, and nothing else.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final

import gevent
from gevent import socket as gsocket
from gevent.event import Event

from ..loop.owner import stop_abandoned
from ..loop.yielding import keep_to_turn
from .stream import abandon_socket

__all__ = ["Race", "alternate"]

#: Seconds between the beginnings of two attempts (the Connection Attempt Delay of RFC 8305, section 8).
_DELAY: Final = 0.25
_WRITABLE: Final = 2


def alternate(found: Iterable[Any]) -> list[Any]:
    """Return results of ``getaddrinfo`` without repetitions, such that families alternate."""
    families: dict[int, deque[Any]] = {}
    for each in dict.fromkeys((int(family), int(kind), protocol, name) for family, kind, protocol, _, name in found):
        families.setdefault(each[0], deque()).append(each)
    lines = [*families.values()]
    ordered = []
    while lines:
        ordered += [line.popleft() for line in lines]
        lines = [line for line in lines if line]
    return ordered


class _Attempt:
    """A socket that is being connected.

    Attributes:
        sock: the socket.
        name: what it is connected to.
        watcher: watches it; None before it is started.
        over: whether the kernel has a result.
    """

    __slots__ = ("name", "over", "sock", "watcher")

    def __init__(self, sock: gsocket.socket, name: Any) -> None:
        self.sock = sock
        self.name = name
        self.watcher: Any = None
        self.over = False

    def result(self) -> OSError | None:
        """Return the kernel's result, None for a connection."""
        number = self.sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def stop(self) -> None:
        """Stop watching the socket."""
        if self.watcher is not None:
            self.watcher.stop()
            self.watcher.close()
            self.watcher = None


class Race:
    """One attempt to connect to a host.

    Args:
        found: the addresses, as ``getaddrinfo`` returns them.
        prepare: called with each new socket before it is connected.
        finish: called with each connected socket. Raises ``OSError`` if it is of no use: the address has failed then.

    Attributes:
        failures: the addresses that have failed so far, with their errors.
    """

    __slots__ = ("_abandoned", "_addresses", "_finish", "_loop", "_news", "_prepare", "_running", "failures")

    def __init__(
        self,
        found: Iterable[Any],
        prepare: Callable[[gsocket.socket], object],
        finish: Callable[[gsocket.socket], object],
    ) -> None:
        self._addresses = deque(alternate(found))
        self._prepare = prepare
        self._finish = finish
        self._running: list[_Attempt] = []
        self._loop = gevent.get_hub().loop
        self._news = Event()
        self._abandoned = False
        self.failures: list[tuple[Any, OSError]] = []

    @property
    def unanswered(self) -> list[Any]:
        """The addresses that had not answered when the race ended, without those whose turn had not come."""
        return [attempt.name for attempt in self._running]

    def run(self) -> gsocket.socket | None:
        """Block until one address is connected, and return its socket; None if all have failed.

        When this call ends, also by an error, no other socket is open.
        """
        try:
            return self._run()
        finally:
            self._close_all()

    def _run(self) -> gsocket.socket | None:
        next_begin = 0.0
        while self._addresses or self._running:
            if self._addresses and (not self._running or monotonic() >= next_begin):
                if self._begin(*self._addresses.popleft()):
                    next_begin = monotonic() + _DELAY
            winner, failed = self._look()
            if winner is not None:
                return winner
            if failed and self._addresses:
                next_begin = 0.0
            elif self._running:
                self._news.wait(max(0.0, next_begin - monotonic()) if self._addresses else None)
                self._news.clear()
                # One look of the loop may bring the answers to thousands.
                keep_to_turn()
                if self._abandoned:
                    raise ConnectionAbortedError(errno.ECONNABORTED, "the process was forked")
        return None

    def _begin(self, family: int, kind: int, protocol: int, name: Any) -> bool:
        """Begin to connect to an address. Return whether that did not fail at once."""
        try:
            sock = gsocket.socket(family, kind, protocol)
        except OSError as error:
            self.failures.append((name, error))
            return False
        attempt = _Attempt(sock, name)
        self._running.append(attempt)
        try:
            self._prepare(sock)
            # From here on connect() does not wait.
            sock.setblocking(False)
            sock.connect(name)
        except BlockingIOError:
            attempt.watcher = self._loop.io(sock.fileno(), _WRITABLE)
            attempt.watcher.start(self._answered, attempt)
            return True
        except OSError as error:
            self._fail(attempt, error)
            return False
        self._answered(attempt)
        return True

    def _answered(self, attempt: _Attempt) -> None:
        attempt.over = True
        if attempt.watcher is not None:
            attempt.watcher.stop()
        self._news.set()

    def _look(self) -> tuple[gsocket.socket | None, bool]:
        """Return the first connection, and whether an attempt has failed."""
        failed = False
        for attempt in [attempt for attempt in self._running if attempt.over]:
            error = attempt.result()
            if error is None:
                try:
                    self._finish(attempt.sock)
                except OSError as useless:
                    error = useless
            if error is not None:
                self._fail(attempt, error)
                failed = True
                continue
            self._running.remove(attempt)
            attempt.stop()
            attempt.sock.setblocking(True)
            return attempt.sock, failed
        return None, failed

    def _fail(self, attempt: _Attempt, error: OSError) -> None:
        # With its traceback it would refer to this race: only the garbage collector could free the two.
        self.failures.append((attempt.name, error.with_traceback(None)))
        self._running.remove(attempt)
        attempt.stop()
        attempt.sock.close()

    def _close_all(self) -> None:
        for attempt in self._running:
            attempt.stop()
            attempt.sock.close()

    def abandon(self) -> None:
        """Close the descriptors in a forked child, without switching greenlets."""
        self._abandoned = True
        self._addresses.clear()
        for attempt in self._running:
            stop_abandoned(attempt.watcher)
            attempt.watcher = None
            abandon_socket(attempt.sock)
