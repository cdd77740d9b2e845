"""A gevent socket as a :class:`StreamConnection`, for tcp and ipc.

The frequent calls go directly to the hub and to the C socket inside the gevent socket: ``send`` must not wait, and
``recv`` avoids system calls that would return nothing. For that, three undocumented names of gevent are used, only here
and in ``tls.py``: ``_sock``, ``_read_event`` and ``_write_event``.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable
from typing import Any

from gevent import socket as gsocket

from ..loop.owner import original, stop_abandoned
from ..loop.yielding import turn_of
from .base import StreamConnection

__all__ = ["SocketConnection", "abandon_socket", "describe_os_error", "has_hung_up"]

#: The original ``os.close``. gevent's, under monkey patching, closes in the event loop, which may never run in a child.
_close_now = original("os", "close")
#: The system's: gevent's is for waiting.
_poll = original("select", "poll")
#: Linux only. Other systems report the end of one direction as something to read, which this must not look at.
_POLLRDHUP: int = getattr(select, "POLLRDHUP", 0)


def describe_os_error(error: OSError) -> str:
    """Return the text of an ``OSError``, without its number if the system has a text for it."""
    if error.errno is not None and not isinstance(error, gsocket.gaierror):
        return os.strerror(error.errno).lower()
    return str(error.args[-1] if error.args else error).lower()


def abandon_socket(sock: Any) -> None:
    """Close a socket's descriptor in a forked child. The parent's copy and the peer are not affected.

    The descriptor is detached from the socket object first: its number will soon be used again, and a later clean-up of
    the object must not close that other descriptor. Nothing here may switch greenlets.
    """
    try:
        stop_abandoned(sock._read_event, sock._write_event)
        _close_now(sock._sock.detach())
    except (OSError, AttributeError):
        # The socket was closed or incomplete at the fork.
        pass


def has_hung_up(sock: Any, may_half_close: bool) -> bool:
    """Return whether a socket's peer has closed the connection. Reads nothing, and never blocks.

    Args:
        sock: connected, or closed.
        may_half_close: whether a peer that sends no more may still read.
    """
    if sock.closed:
        return True
    poll = _poll()
    # Errors and the end of both directions are always reported.
    poll.register(sock.fileno(), 0 if may_half_close else _POLLRDHUP)
    return bool(poll.poll(0))


#: The value of SO_LINGER with which closing resets a connection by TCP.
_RESET = struct.pack("ii", 1, 0)
#: After a read of so many bytes more are probably there: reading again at once is faster than waiting first.
_BULK = 16384


class SocketConnection(StreamConnection):
    """A connected gevent stream socket.

    A subclass with a ``recv`` of its own, to decrypt what comes, say, reads in no other way unless it says so.

    Args:
        sock: connected; belongs to this object from now on.
    """

    __slots__ = ("_dry", "_raw_recv", "_sock", "_turn", "_wait", "send", "sendmsg")

    # Set in __init__ to methods of the C socket: no Python function between a pipe and the kernel.
    send: Callable[[bytes | memoryview], int]
    sendmsg: Callable[[list[bytes | memoryview]], int]

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        raw = sock._sock
        self.send = raw.send
        self.sendmsg = raw.sendmsg
        self._raw_recv = raw.recv
        self._turn = turn_of(sock.hub)
        self._wait = self._turn.wait_for
        # Whether the last read has emptied the kernel's buffer, so that another read would return nothing.
        self._dry = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        before = cls.mro()[: cls.mro().index(SocketConnection)]
        reads = next((number for number, each in enumerate(before, 1) if "recv" in vars(each)), 0)
        for name in ("offers", "reads_into") if reads else ():
            # Said by the class that has the last word about recv, or by one that knows of it.
            if not any(name in vars(each) for each in before[:reads]):
                setattr(cls, name, False)

    def recv(self, size: int, /) -> bytes:
        sock = self._sock
        while True:
            if self._dry:
                # It may close before the wait, or between the wait and the next turn.
                if sock.closed or (self._wait(sock._read_event) and sock.closed):
                    raise OSError(errno.EBADF, "the connection was closed")
            try:
                data: bytes = self._raw_recv(size)
            except BlockingIOError:
                self._dry = True
                continue
            self._dry = len(data) < size and len(data) < _BULK
            return data

    offers = True

    def recv_offered(self, size: int, take: Callable[[bytes], bool], /) -> bytes:
        if self._dry:
            sock = self._sock
            data = None if sock.closed else self._turn.read_for(sock._read_event, self._raw_recv, size, take)
            if data is not None:
                self._dry = len(data) < size and len(data) < _BULK
                return data
            if sock.closed:
                raise OSError(errno.EBADF, "the connection was closed")
            self._dry = False
        return self.recv(size)

    reads_into = True

    def recv_into(self, buffers: list[memoryview | bytearray], /) -> int:
        if self._dry:
            raise BlockingIOError
        try:
            size: int = self._sock._sock.recvmsg_into(buffers)[0]
        except BlockingIOError:
            self._dry = True
            raise
        self._dry = size < _BULK and size < sum(map(len, buffers))
        return size

    def wait_readable(self) -> None:
        sock = self._sock
        if sock.closed or (self._wait(sock._read_event) and sock.closed):
            raise OSError(errno.EBADF, "the connection was closed")
        self._dry = False

    def wait_writable(self) -> None:
        sock = self._sock
        if sock.closed or (self._wait(sock._write_event) and sock.closed):
            raise OSError(errno.EBADF, "the connection was closed")

    def shutdown_write(self) -> None:
        try:
            self._sock.shutdown(gsocket.SHUT_WR)
        except OSError:
            # The peer has closed the connection first.
            pass

    def discard_unsent(self) -> None:
        try:
            self._sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, _RESET)
        except OSError:
            # It is closed, or broken.
            pass

    def hung_up(self, may_half_close: bool = True) -> bool:
        return has_hung_up(self._sock, may_half_close)

    def close(self) -> None:
        self._sock.close()

    def abandon(self) -> None:
        abandon_socket(self._sock)
