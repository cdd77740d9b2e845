"""What a negotiator gets: a new connection, before it becomes a pipe.

A socket's negotiator decides who may connect. It runs in the greenlet of that connection; other peers are served
meanwhile. It may wait for the peer for at most ``connector.pipe.negotiate_timeout`` seconds. The time that it needs
itself has no limit. Until it has returned, the peer gets no message, no share of the work and no event, and takes no
place of ``connector.pipe_limit``.

Source: the Negotiator of the Go code's connector/types.go, which runs under the connector's lock there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import NotSupported, PipeRefused
from ...transport import Connection, PacketConnection, StreamConnection
from .entry import Entry

__all__ = ["Negotiation", "Negotiator"]

#: Bytes that are read from a packet connection at a time.
_READ_SIZE = 4096


class Negotiation:
    """One connection's negotiation.

    Attributes:
        pipe_id: the id that the pipe will have.
        dialed: whether this side made the connection.
    """

    def __init__(self, connection: Connection, pipe_id: int, dialed: bool, entry: Entry) -> None:
        self._connection = connection
        self._entry = entry
        self.pipe_id = pipe_id
        self.dialed = dialed
        #: Contents of packets that were read and not returned yet.
        self._unread = b""

    @property
    def local_address(self) -> str:
        """This end's address."""
        return self._connection.local_address

    @property
    def peer_address(self) -> str:
        """The peer's address."""
        return self._connection.peer_address

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the transport knows for sure about the peer (uid, certificate, ...)."""
        return self._connection.identity

    def recv(self, size: int) -> bytes:
        """Block until exactly ``size`` bytes have arrived from the peer's negotiator, and return them.

        Raises:
            NotSupported: no bytes travel on this transport (inproc).
            PipeRefused: the peer closed the connection.
        """
        try:
            stream = self._stream("receiving bytes")
            with self._entry.peer():
                if isinstance(stream, PacketConnection):
                    data = self._read_packets(stream, size)
                else:
                    data = stream.read_exactly(size)
        except OSError as error:
            raise PipeRefused("the peer closed the connection in the negotiation") from error
        self._entry.begin()
        return data

    def send(self, data: bytes) -> None:
        """Block until the bytes are on their way to the peer's negotiator.

        Raises:
            NotSupported: no bytes travel on this transport (inproc).
            PipeRefused: the peer closed the connection.
        """
        try:
            stream = self._stream("sending bytes")
            rest = memoryview(stream.codec.wrap(data) if isinstance(stream, PacketConnection) else data)
            while rest:
                try:
                    rest = rest[stream.send(rest) :]
                except BlockingIOError:
                    with self._entry.peer():
                        stream.wait_writable()
        except OSError as error:
            raise PipeRefused("the peer closed the connection in the negotiation") from error

    def refuse(self, reason: str) -> None:
        """Refuse the peer, by raising :class:`PipeRefused`."""
        raise PipeRefused(reason)

    def _read_packets(self, connection: PacketConnection, size: int) -> bytes:
        """Return the next bytes out of packets."""
        codec = connection.codec
        while len(self._unread) < size:
            data = connection.recv(_READ_SIZE)
            if not data:
                raise ConnectionResetError("the stream ended in the negotiation")
            # Byte by byte: bytes behind a packet belong to the next call, or to the pipe.
            for end in range(1, len(data) + 1):
                packets = codec.feed(data[end - 1 : end])
                while codec.more:
                    packets += codec.feed(b"")
                if packets:
                    self._unread += packets[0]
                    connection.unread(data[end:])
                    break
            connection.write_all(codec.replies())
            if codec.end():
                raise PipeRefused(codec.end())
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken

    def _stream(self, what: str) -> StreamConnection:
        if isinstance(self._connection, StreamConnection):
            return self._connection
        raise NotSupported(what, "this transport passes whole messages")


Negotiator = Callable[[Negotiation], object]
