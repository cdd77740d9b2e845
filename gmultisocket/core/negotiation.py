"""What a negotiator sees: a new connection, before it becomes a pipe.

A socket's negotiator decides who may connect. It runs in a greenlet of that connection, outside of everything else,
with ``connector.pipe.negotiate_timeout`` seconds; other peers go on meanwhile. Until it has returned, the peer gets no
message, no share of the work and no event, and costs a place among the connections in their handshake.

Source: the Negotiator of the Go code's connector/types.go, which runs under the connector's lock there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import NotSupported, PipeRefused
from ..transport import Connection, PacketConnection, StreamConnection

__all__ = ["Negotiation", "Negotiator"]

#: How much of a packet connection is read at a time.
_MOST_READ = 4096


class Negotiation:
    """One connection's negotiation.

    Attributes:
        pipe_id: the id that the pipe will have.
        dialed: whether this side made the connection.
    """

    def __init__(self, connection: Connection, pipe_id: int, dialed: bool) -> None:
        self._connection = connection
        self.pipe_id = pipe_id
        self.dialed = dialed
        #: What is left of the packets that were read.
        self._left = b""

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
        """What the transport knows for sure about the peer."""
        return self._connection.identity

    def recv(self, size: int) -> bytes:
        """Block until exactly ``size`` bytes have come from the peer's negotiator.

        Raises:
            NotSupported: no bytes travel on this transport (inproc).
            PipeRefused: the peer closed the connection.
        """
        try:
            stream = self._stream("receiving bytes")
            if isinstance(stream, PacketConnection):
                return self._read_packets(stream, size)
            return stream.read_exactly(size)
        except OSError as error:
            raise PipeRefused("the peer closed the connection in the negotiation") from error

    def send(self, data: bytes) -> None:
        """Block until the bytes are on their way to the peer's negotiator.

        Raises:
            NotSupported: no bytes travel on this transport (inproc).
            PipeRefused: the peer closed the connection.
        """
        try:
            stream = self._stream("sending bytes")
            stream.write_all(stream.codec.wrap(data) if isinstance(stream, PacketConnection) else data)
        except OSError as error:
            raise PipeRefused("the peer closed the connection in the negotiation") from error

    def refuse(self, reason: str) -> None:
        """Refuse the peer: raises :class:`PipeRefused`."""
        raise PipeRefused(reason)

    def _read_packets(self, connection: PacketConnection, size: int) -> bytes:
        """Return the next bytes that are in packets."""
        codec = connection.codec
        while len(self._left) < size:
            data = connection.recv(_MOST_READ)
            if not data:
                raise ConnectionResetError("the stream ended in the negotiation")
            # Byte by byte: what follows a packet is for the next call, or for the pipe.
            for end in range(1, len(data) + 1):
                packets = codec.feed(data[end - 1 : end])
                if packets:
                    self._left += packets[0]
                    connection.unread(data[end:])
                    break
            connection.write_all(codec.replies())
            if codec.end():
                raise PipeRefused(codec.end())
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def _stream(self, what: str) -> StreamConnection:
        if isinstance(self._connection, StreamConnection):
            return self._connection
        raise NotSupported(what, "messages change hands whole on this transport")


Negotiator = Callable[[Negotiation], object]
