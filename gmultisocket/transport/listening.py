"""The listening sockets of one listener: one for each address of its host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import gevent
from gevent import socket as gsocket
from gevent.event import Event

from ..errors import Closed
from ..loop.owner import stop_abandoned
from .stream import abandon_socket

__all__ = ["ListeningSockets"]

_READABLE: Final = 1


class ListeningSockets:
    """Sockets that listen for one listener.

    Args:
        socks: bound and listening; at least one. They belong to this object from now on.
        shared: whether other descriptors of the same sockets go on listening when these are closed.
    """

    __slots__ = ("_news", "_shared", "_socks", "_watchers")

    def __init__(self, socks: Iterable[gsocket.socket], *, shared: bool = False) -> None:
        self._socks = deque[Any](socks)
        self._shared = shared
        #: Only with several sockets: a single one waits by itself.
        self._watchers: list[Any] = []
        self._news = Event()
        if len(self._socks) > 1:
            loop = gevent.get_hub().loop
            for sock in self._socks:
                sock.setblocking(False)
                self._watchers.append(loop.io(sock.fileno(), _READABLE))

    def accept(self) -> gsocket.socket:
        """Block until a peer connects to one of the sockets, and return the connection. Only one greenlet may wait.

        Raises:
            OSError: as ``accept`` of a socket.
            Closed: the sockets are closed.
        """
        while not self._socks[0].closed:
            if not self._watchers:
                client: gsocket.socket = self._socks[0].accept()[0]
                return client
            for _ in range(len(self._socks)):
                # Each socket has its turn, also if the first one always has a peer.
                sock = self._socks[0]
                self._socks.rotate(-1)
                try:
                    return _waiting(sock.accept()[0])
                except BlockingIOError:
                    pass
            self._wait()
        raise Closed("listener")

    def _wait(self) -> None:
        self._news.clear()
        try:
            for watcher in self._watchers:
                watcher.start(self._news.set)
            self._news.wait()
        finally:
            for watcher in self._watchers:
                watcher.stop()

    def close(self) -> None:
        """Close the sockets. Never blocks; may be repeated."""
        self._stop()
        for sock in self._socks:
            if not sock.closed:
                if not self._shared:
                    # While a greenlet waits for a socket, the event loop closes it later. The port must be free now.
                    # Not every system can do that with a socket that listens.
                    with suppress(OSError):
                        sock.shutdown(gsocket.SHUT_RDWR)
                sock.close()
        self._news.set()

    def _stop(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.stop()
            watcher.close()

    def abandon(self) -> None:
        """Close the descriptors in a forked child, without switching greenlets."""
        stop_abandoned(*self._watchers)
        self._watchers = []
        for sock in self._socks:
            abandon_socket(sock)


def _waiting(client: gsocket.socket) -> gsocket.socket:
    """Return an accepted socket that waits, unlike the socket that has accepted it."""
    client.setblocking(True)
    return client
