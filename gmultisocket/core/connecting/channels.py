"""Where the pipes of a session's channel come from."""

from __future__ import annotations

from typing import Any

from ... import options as opts
from ...address import Address
from ...errors import Closed, PipeRefused
from ...options import DialerOptions, ListenerOptions, Option, Options
from ...transport.wschannels import ChannelConnection
from ..pipes.channelpipe import CarrierPipe, ChannelPipe
from ..pipes.ids import next_pipe_id
from ..pipes.pipe import Pipe
from .connector import Connector
from .endpoint import Endpoint

__all__ = ["ChannelEndpoint"]

#: The carrier watches over its peer. A channel may be silent.
_CARRIER_DOES: dict[Option[Any], Any] = {
    opts.connector.pipe.heartbeat_interval: 0,
    opts.connector.pipe.heartbeat_timeout: 0,
}


class ChannelEndpoint(Endpoint):
    """Makes the pipes of one socket that is a channel of a session.

    Args:
        connector: of the socket.
        parent: the options of the socket.
        name: of the channel.
        dials: whether it is the session's dialing side.
    """

    __slots__ = ("_connector", "dials")

    def __init__(self, connector: Connector, parent: Options, name: str, dials: bool) -> None:
        self.dials = dials
        options = (DialerOptions if dials else ListenerOptions)(_CARRIER_DOES, parent=parent)
        super().__init__(Address("session", name), options, connector.pipes)
        self._connector = connector

    @property
    def address(self) -> str:
        return self._given.bare

    @property
    def closed(self) -> bool:
        """Whether the socket is closing."""
        return self._connector.closing

    def open(self, carrier: CarrierPipe, connection: ChannelConnection) -> ChannelPipe:
        """Add a pipe to the socket. Does not block.

        Args:
            carrier: the pipe of the WebSocket.
            connection: of the channel.

        Raises:
            Closed: the socket is closed.
            PipeRefused: it has as many pipes as it may, or a negotiator, which cannot talk to a channel.
        """
        connector = self._connector
        if connector.closing:
            raise Closed("socket")
        if connector.maker.negotiator is not None:
            raise PipeRefused("the socket has a negotiator, which cannot work on a channel: use authorize")
        connector.places.check_below_limit()
        pipe = ChannelPipe(carrier, next_pipe_id(), connection, connector, self)
        try:
            connector.add(pipe)
        except BaseException:
            pipe.close("it could not be added")
            raise
        return pipe

    def close(self) -> None:
        """Do nothing: the session opens and closes channels."""

    def _pipe_closed(self, pipe: Pipe) -> None:
        """Do nothing: the session hears of it from the connection."""

    def _place_free(self) -> None:
        """Do nothing."""

    def _join(self) -> None:
        """Do nothing."""

    def _abandon(self) -> None:
        """Do nothing."""
