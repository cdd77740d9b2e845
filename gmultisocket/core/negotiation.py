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
from ..transport import Connection, StreamConnection

__all__ = ["Negotiation", "Negotiator"]


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
            return self._stream("receiving bytes").read_exactly(size)
        except OSError as error:
            raise PipeRefused("the peer closed the connection in the negotiation") from error

    def send(self, data: bytes) -> None:
        """Block until the bytes are on their way to the peer's negotiator.

        Raises:
            NotSupported: no bytes travel on this transport (inproc).
            PipeRefused: the peer closed the connection.
        """
        try:
            self._stream("sending bytes").write_all(data)
        except OSError as error:
            raise PipeRefused("the peer closed the connection in the negotiation") from error

    def refuse(self, reason: str) -> None:
        """Refuse the peer: raises :class:`PipeRefused`."""
        raise PipeRefused(reason)

    def _stream(self, what: str) -> StreamConnection:
        if isinstance(self._connection, StreamConnection):
            return self._connection
        raise NotSupported(what, "messages change hands whole on this transport")


Negotiator = Callable[[Negotiation], object]
