"""A proxy that joins plain byte connections and streams, so that a TCP service can be had through a net of switches.

At its front a :class:`StreamProxy` takes connections, and for each makes one at its back; what comes by the one goes
out by the other. A side is a Stream, or the address of plain connections: where to listen, at the front, or what to
dial, at the back. A tunnel is two of them, with any number of switches between their streams::

    StreamProxy("tcp://127.0.0.1:8080", stream)     # here, for the clients
    StreamProxy(stream, "tcp://127.0.0.1:80")       # there, beside the service

Each plain connection has its own two ends of everything: one that nobody reads holds up its stream, and no other. The
end of data goes through, in each direction by itself, and so does a loss: when one side breaks, the other is closed.

Source: protocol/stream/proxy.go and rawtostream.go of the Go code, which have all plain connections in one Socket.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from socket import SHUT_WR
from types import TracebackType
from typing import Any

import gevent
from gevent import Greenlet, getcurrent
from gevent.lock import BoundedSemaphore, DummySemaphore

from .. import options as opts
from ..address import Address
from ..core.connector import time_limit
from ..errors import Closed, ConnectionFailed, HandshakeFailed, MultiSocketError, NotSupported, snippet
from ..options import Options, OptionValues
from ..transport import Connection as TransportConnection
from ..transport import PacketConnection, StreamConnection, TransportListener, find
from .connection import Connection
from .stream import Stream

__all__ = ["StreamProxy"]

logger = logging.getLogger("gmultisocket.protocol")

#: Bytes that are read at a time.
_READ = 65536
#: Errors of accept() that go away only when something is freed, and the wait before trying again, in seconds.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE = 0.1


class _Plain:
    """A plain connection, with what a proxy needs of a stream's."""

    __slots__ = ("_connection",)

    def __init__(self, connection: TransportConnection) -> None:
        if not isinstance(connection, StreamConnection) or isinstance(connection, PacketConnection):
            connection.close()
            raise NotSupported("a plain connection", "no plain bytes travel on this transport: use tcp, tls or ipc")
        self._connection = connection

    def recv(self, size: int) -> bytes:
        return self._connection.recv(size)

    def sendall(self, data: bytes) -> None:
        self._connection.write_all(data)

    def shutdown(self, how: int) -> None:
        self._connection.shutdown_write()

    def close(self) -> None:
        self._connection.close()

    abort = close


_End = _Plain | Connection
_Taken = Connection | TransportConnection


class StreamProxy:
    """Joins the connections that come at its front with ones that it makes at its back.

    Streams stay the caller's, who connects and closes them.

    Args:
        front: a Stream, whose connections are accepted, or an address to listen at for plain ones.
        back: a Stream, by which a connection is opened for each, or an address to dial with plain ones.
        options: of the plain connections; they override those in the address.
        limit: as many connections at once; more wait until one has ended. None for any number.
        timeout: as long, in seconds, the back may take to be connected.

    Attributes:
        joined: how many connections were joined so far.
        failed: how many were not, as there was nothing to join them with.
    """

    def __init__(
        self,
        front: Stream | str | Address,
        back: Stream | str | Address,
        options: OptionValues | None = None,
        *,
        limit: int | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._front = front if isinstance(front, Stream) else Address.parse(front)
        self._back = back if isinstance(back, Stream) else Address.parse(back)
        self._options = options
        self._timeout = timeout
        self._limit = limit
        self._listener: TransportListener | None = None
        self._greenlet: Greenlet[..., Any] | None = None
        self._joins: set[Greenlet[..., Any]] = set()
        self.joined = 0
        self.failed = 0

    def __repr__(self) -> str:
        return f"<StreamProxy {self.address or self._front} -> {self._back} connections={len(self._joins)}>"

    def __enter__(self) -> StreamProxy:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where it listens, with the real port after port 0; "" if its front is a Stream."""
        return self._listener.address if self._listener is not None else ""

    @property
    def connections(self) -> int:
        """How many connections it joins now, those included that are being made."""
        return len(self._joins)

    def start(self) -> None:
        """Begin to take connections. Does not block; harmless when repeated.

        Raises:
            AddressInUse, ConnectionFailed: the front's address could not be bound.
        """
        if self._greenlet is not None:
            return
        places = BoundedSemaphore(self._limit) if self._limit is not None else DummySemaphore()
        if isinstance(self._front, Stream):
            self._greenlet = gevent.spawn(self._take, self._front.accept, places)
            return
        listener = find(self._front.scheme, self._front).listener(self._front, self._plain_options(self._front))
        listener.listen()
        self._listener = listener
        self._greenlet = gevent.spawn(self._take, listener.accept, places)

    def stop(self) -> None:
        """Take no more connections, and end those that there are. Blocks until all is ended. May be repeated."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        greenlet, self._greenlet = self._greenlet, None
        workers = [worker for worker in (greenlet, *self._joins) if worker not in (None, getcurrent())]
        gevent.killall(workers)

    def join(self, timeout: float | None = None) -> bool:
        """Block until its front Stream has closed. Returns False when the time is up."""
        return self._greenlet is None or len(gevent.joinall([self._greenlet], timeout)) == 1

    def _plain_options(self, address: Address) -> Options:
        return Options(address.merged(self._options))

    def _take(self, accept: Callable[[], _Taken], places: BoundedSemaphore | DummySemaphore) -> None:
        """Take connections until stopped, or the Stream closes (one greenlet)."""
        exhausted = False
        while True:
            places.acquire()
            try:
                taken = accept()
            except (Closed, NotSupported):
                return
            except OSError as error:
                places.release()
                if self._listener is None:
                    return
                first, exhausted = not exhausted, error.errno in _EXHAUSTED
                logger.log(logging.ERROR if exhausted and first else logging.DEBUG, "%r: %s", self, error)
                gevent.sleep(_PAUSE if exhausted else 0)
                continue
            exhausted = False
            greenlet = gevent.spawn(self._serve, taken)
            self._joins.add(greenlet)
            # A link, not a finally clause: a greenlet that is killed before it began runs no code of its own.
            greenlet.rawlink(partial(self._served, taken, places))

    def _served(
        self, taken: _Taken, places: BoundedSemaphore | DummySemaphore, greenlet: Greenlet[..., Any]
    ) -> None:
        taken.close()
        self._joins.discard(greenlet)
        places.release()

    def _serve(self, taken: _Taken) -> None:
        """Make the other half of a connection, and join the two (a greenlet for each)."""
        front: _End | None = None
        back: _End | None = None
        whole = False
        try:
            front = taken if isinstance(taken, Connection) else self._shake_hands(taken)
            back = self._reach()
            self.joined += 1
            whole = _join(front, back)
        except (MultiSocketError, OSError) as error:
            self.failed += 1
            logger.log(logging.WARNING if self.failed == 1 else logging.DEBUG, "%r: %s", self, snippet(error, 200))
        finally:
            for end in (front, back):
                if end is not None:
                    if whole:
                        end.close()
                    else:
                        end.abort()

    def _shake_hands(self, connection: TransportConnection) -> _Plain:
        if connection.needs_handshake:
            assert isinstance(self._front, Address)
            seconds = self._plain_options(self._front).get(opts.connector.listener.handshake_timeout)
            with time_limit(seconds, HandshakeFailed(connection.peer_address, f"no handshake within {seconds} s")):
                connection.handshake()
        return _Plain(connection)

    def _reach(self) -> _End:
        """Make a connection at the back."""
        if isinstance(self._back, Stream):
            return self._back.connect(self._timeout)
        address = self._back
        dialer = find(address.scheme, address).dialer(address, self._plain_options(address))
        with time_limit(self._timeout, ConnectionFailed(address.bare, f"no connection within {self._timeout} s")):
            return _Plain(dialer.connect())


def _join(front: _End, back: _End) -> bool:
    """Copy both ways until both have ended. Returns False if one broke, and the other was left as it was."""
    copies = [gevent.spawn(_copy, front, back), gevent.spawn(_copy, back, front)]
    try:
        return all(copy.value for copy in gevent.iwait(copies))
    finally:
        gevent.killall(copies)


def _copy(source: _End, target: _End) -> bool:
    """Copy one way until the source has no more. Returns False if one of the two broke."""
    try:
        while data := source.recv(_READ):
            target.sendall(data)
        target.shutdown(SHUT_WR)
    except (OSError, MultiSocketError):
        return False
    return True
