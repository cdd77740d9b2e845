"""A proxy that joins plain byte connections and streams, so that a TCP service can be reached through switches.

A :class:`StreamProxy` takes connections at its front, and for each makes one at its back; what comes by the one goes
out by the other. A side is a Stream, or the address of plain connections: where to listen, at the front, or what to
dial, at the back. A tunnel is two proxies, with any number of switches between their streams::

    StreamProxy("tcp://127.0.0.1:8080", stream)     # here, for the clients
    StreamProxy(stream, "tcp://127.0.0.1:80")       # there, beside the service

Each plain connection has a stream to itself, so a reader that does not read blocks its own stream, and no other. The
end of data goes through, in each direction by itself. When one side breaks, the other one is closed. A Go program at
the other end of a stream knows no end of data, and would keep the connection for ever: see ``end_timeout``.

Source: protocol/stream/proxy.go and rawtostream.go of the Go code, which have all plain connections in one Socket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from socket import SHUT_WR
from types import TracebackType
from typing import Any

import gevent
from gevent import Greenlet, getcurrent
from gevent.lock import BoundedSemaphore

from .. import options as opts
from ..address import Address
from ..errors import Closed, ConnectionFailed, HandshakeFailed, MultiSocketError, NotSupported, snippet
from ..log import ThrottledLog, get_logger
from ..loop.accepting import AcceptLoop
from ..loop.ending import LOG_INTERVAL, survive
from ..loop.timelimit import time_limit
from ..loop.yielding import yield_to_loop
from ..options import Options, OptionValues
from ..transport import Connection, PacketConnection, StreamConnection, TransportListener, find
from .stream import Stream
from .streamsocket import StreamSocket

__all__ = ["StreamProxy"]

logger = get_logger("gmultisocket.protocol")
_log = ThrottledLog(logger, LOG_INTERVAL)

#: Bytes that are read at a time.
_READ = 65536
#: Bytes that are copied one way before others run.
_YIELD_BYTES = 1 << 18


class _Plain:
    """A plain connection with the methods of a StreamSocket that a proxy uses."""

    __slots__ = ("_connection",)

    knows_end = True

    def __init__(self, connection: Connection) -> None:
        if not isinstance(connection, StreamConnection) or isinstance(connection, PacketConnection):
            connection.close()
            raise NotSupported("a plain connection", "this transport carries no plain bytes: use tcp, tls or ipc")
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


_Side = _Plain | StreamSocket
_Accepted = StreamSocket | Connection


class StreamProxy:
    """Joins each connection that it accepts at its front with a connection that it makes at its back.

    The caller connects and closes the streams.

    Args:
        front: a Stream to accept connections from, or an address to listen at for plain ones.
        back: a Stream to open connections by, or an address to dial with plain ones.
        options: of the plain connections; they override those in the address.
        limit: maximum number of connections at once; further ones wait until one has ended. None for any number.
        timeout: seconds that a connection at the back may take.
        end_timeout: when the data has ended in one direction, and the stream that should be told leads to a Go program,
            the connection ends after this number of seconds without data in the other direction.

    Attributes:
        joined: the number of connections that were joined so far.
        failed: the number of connections that could not be joined, e.g. because none could be made at the back.
    """

    def __init__(
        self,
        front: Stream | str | Address,
        back: Stream | str | Address,
        options: OptionValues | None = None,
        *,
        limit: int | None = None,
        timeout: float = 10.0,
        end_timeout: float = 60.0,
    ) -> None:
        self._front = front if isinstance(front, Stream) else Address.parse(front)
        self._back = back if isinstance(back, Stream) else Address.parse(back)
        self._options = options
        self._timeout = timeout
        self._end_timeout = end_timeout
        self._limit = limit
        self._listener: TransportListener | None = None
        self._loop: AcceptLoop[_Accepted] | None = None
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
        """The address where it listens, with the real port after port 0; "" if its front is a Stream."""
        return self._listener.address if self._listener is not None else ""

    @property
    def connections(self) -> int:
        """The number of connections that it joins now, or is about to join."""
        return len(self._joins)

    def start(self) -> None:
        """Begin to accept connections. Does not block; may be repeated.

        Raises:
            AddressInUse, ConnectionFailed: the front's address could not be bound.
        """
        if self._loop is not None:
            return
        accept: Callable[[], _Accepted]
        if isinstance(self._front, Stream):
            accept = partial(_accept_stream, self._front)
        else:
            listener = find(self._front.scheme, self._front).listener(self._front, self._plain_options(self._front))
            listener.listen()
            self._listener = listener
            accept = listener.accept
        places = BoundedSemaphore(self._limit) if self._limit is not None else None
        wait = partial(_wait_place, places) if places is not None else None
        self._loop = AcceptLoop(accept, partial(self._join, places), self.__repr__, wait)
        self._loop.start()

    def stop(self) -> None:
        """Accept no more connections, and end those that there are. Blocks until all have ended. May be repeated."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if loop is not None:
            loop.join()
        gevent.killall([join for join in self._joins if join is not getcurrent()])

    def join(self, timeout: float | None = None) -> bool:
        """Block until its front Stream has closed. Return False when the time is up."""
        return self._loop is None or self._loop.join(timeout)

    def _plain_options(self, address: Address) -> Options:
        return Options(address.merged(self._options))

    def _join(self, places: BoundedSemaphore | None, accepted: _Accepted) -> None:
        """Start the greenlet that joins an accepted connection."""
        if places is not None:
            places.acquire(blocking=False)
        greenlet = gevent.spawn(self._serve, accepted)
        self._joins.add(greenlet)
        # A link, not a finally clause: a greenlet that is killed before it began runs none of its own code.
        greenlet.rawlink(partial(self._joined, accepted, places))

    def _joined(self, accepted: _Accepted, places: BoundedSemaphore | None, greenlet: Greenlet[..., Any]) -> None:
        accepted.close()
        self._joins.discard(greenlet)
        if places is not None:
            places.release()

    def _serve(self, accepted: _Accepted) -> None:
        """Make the connection at the back, and copy both ways (a greenlet for each connection)."""
        front: _Side | None = None
        back: _Side | None = None
        whole = False
        try:
            front = accepted if isinstance(accepted, StreamSocket) else self._shake_hands(accepted)
            back = self._connect_back()
            self.joined += 1
            whole = _copy_both_ways(front, back, self._end_timeout)
        except (MultiSocketError, OSError) as error:
            self.failed += 1
            logger.log(logging.WARNING if self.failed == 1 else logging.DEBUG, "%r: %s", self, snippet(error, 200))
        except (Exception, gevent.Timeout) as error:
            self.failed += 1
            survive(_log, "unexpected", error, "%r failed by an unexpected error, and goes on", self)
        finally:
            for side in (front, back):
                if side is not None:
                    if whole:
                        side.close()
                    else:
                        side.abort()

    def _shake_hands(self, connection: Connection) -> _Plain:
        if connection.needs_handshake:
            assert isinstance(self._front, Address)
            seconds = self._plain_options(self._front).get(opts.connector.listener.handshake_timeout)
            with time_limit(seconds, HandshakeFailed(connection.peer_address, f"no handshake within {seconds} s")):
                connection.handshake()
        return _Plain(connection)

    def _connect_back(self) -> _Side:
        if isinstance(self._back, Stream):
            return self._back.connect(self._timeout)
        address = self._back
        dialer = find(address.scheme, address).dialer(address, self._plain_options(address))
        with time_limit(self._timeout, ConnectionFailed(address.bare, f"no connection within {self._timeout} s")):
            return _Plain(dialer.connect())


def _accept_stream(front: Stream) -> StreamSocket:
    try:
        return front.accept()
    except NotSupported as error:
        # protocol.stream.acceptable is off: there will be no more connections.
        raise Closed("Stream", str(error)) from error


def _wait_place(places: BoundedSemaphore) -> None:
    """Block while the limit of connections is reached. Only the accept loop takes places, so one stays free."""
    while places.locked():
        places.wait()


class _Copy:
    """Copies one way until the source has no more (a greenlet).

    Attributes:
        target: where to.
        copied: the number of bytes so far.
        greenlet: its value is False if the source or the target broke.
    """

    __slots__ = ("_source", "copied", "greenlet", "target")

    def __init__(self, source: _Side, target: _Side) -> None:
        self._source = source
        self.target = target
        self.copied = 0
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> bool:
        try:
            unyielded = 0
            while data := self._source.recv(_READ):
                self.target.sendall(data)
                self.copied += len(data)
                unyielded += len(data)
                if unyielded >= _YIELD_BYTES:
                    # Two ends that are always ready would keep the loop from all others.
                    unyielded = 0
                    yield_to_loop()
            self.target.shutdown(SHUT_WR)
        except (OSError, MultiSocketError):
            return False
        return True


def _copy_both_ways(front: _Side, back: _Side, end_timeout: float) -> bool:
    """Copy both ways until both have ended. Return False if one did not end well; the other one is left as it was."""
    copies = _Copy(front, back), _Copy(back, front)
    greenlets = [copy.greenlet for copy in copies]
    try:
        gevent.wait(greenlets, count=1)
        ended, other = copies if copies[0].greenlet.ready() else reversed(copies)
        return bool(ended.greenlet.value) and _wait_other(ended.target, other, end_timeout)
    finally:
        gevent.killall(greenlets)


def _wait_other(told: _Side, copy: _Copy, end_timeout: float) -> bool:
    """Wait for the second direction. Return False if it does not end well, or has no end.

    Args:
        told: the side that the second direction comes from. It was told that no more data comes.
        copy: the second direction.
        end_timeout: seconds without data after which a side that does not know the end of data has gone or is done.
    """
    while not copy.greenlet.ready():
        before = copy.copied
        copy.greenlet.join(None if told.knows_end else end_timeout)
        if not copy.greenlet.ready() and copy.copied == before and not told.knows_end:
            return False
    return bool(copy.greenlet.value)
