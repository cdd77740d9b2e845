"""A gevent socket as a :class:`StreamConnection`: what tcp and ipc share.

The hot calls go to the C socket below the gevent one, and to the hub, directly: ``send`` must not wait, and
``recv`` knows when trying again would only cost a system call. Three names of gevent's that are not in its
manual are used for that, here and in ``tls.py`` and nowhere else: ``_sock``, ``_read_event`` and ``_write_event``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from gevent import socket as gsocket
from gevent.monkey import get_original

from .base import StreamConnection

__all__ = ["SocketConnection", "abandon_socket", "describe_os_error"]

#: Under monkey patching ``os.close`` leaves the closing to the loop, which may never run again in a forked child.
_close_now = get_original("os", "close")


def describe_os_error(error: OSError) -> str:
    """Return an ``OSError`` in words, without its number where the system has words for it."""
    if error.errno is not None and not isinstance(error, gsocket.gaierror):
        return os.strerror(error.errno).lower()
    return str(error.args[-1] if error.args else error).lower()


def abandon_socket(sock: Any) -> None:
    """Close a socket's descriptor in a forked child; the parent's copy and the peer notice nothing.

    The descriptor is taken out of the socket object first: its number will soon be somebody else's, and a
    later clean-up of the object must not close that. Nothing here may switch greenlets.
    """
    try:
        sock._read_event.stop()
        sock._write_event.stop()
        _close_now(sock._sock.detach())
    except (OSError, AttributeError):
        # Closed or half made when the fork happened.
        pass


#: A read that brought so many bytes is likely to be followed by more: asking at once costs less than waiting for it.
_BULK = 16384


class SocketConnection(StreamConnection):
    """A connected gevent stream socket.

    Args:
        sock: connected; belongs to this object from now on.
    """

    __slots__ = ("_dry", "_raw_recv", "_sock", "_wait", "send", "sendmsg")

    # Bound in __init__ to the C socket's own methods: no Python frame between a pipe and the kernel.
    send: Callable[[bytes | memoryview], int]
    sendmsg: Callable[[list[bytes | memoryview]], int]

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        raw = sock._sock
        self.send = raw.send
        self.sendmsg = raw.sendmsg
        self._raw_recv = raw.recv
        self._wait = sock.hub.wait
        # Whether the last read took all there was, so that another try would find nothing.
        self._dry = True

    def recv(self, size: int, /) -> bytes:
        sock = self._sock
        while True:
            if self._dry:
                if sock.closed:
                    raise OSError(errno.EBADF, "the connection was closed")
                self._wait(sock._read_event)
            try:
                data: bytes = self._raw_recv(size)
            except BlockingIOError:
                self._dry = True
                continue
            self._dry = len(data) < size and len(data) < _BULK
            return data

    def wait_writable(self) -> None:
        sock = self._sock
        if sock.closed:
            raise OSError(errno.EBADF, "the connection was closed")
        self._wait(sock._write_event)

    def shutdown_write(self) -> None:
        try:
            self._sock.shutdown(gsocket.SHUT_WR)
        except OSError:
            # The peer was faster.
            pass

    def close(self) -> None:
        self._sock.close()

    def abandon(self) -> None:
        abandon_socket(self._sock)
