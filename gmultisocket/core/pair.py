"""Two sockets that are connected to each other, inside the process."""

from __future__ import annotations

from typing import Any

from ..address import Address
from ..options import Options, OptionValues
from ..transport.inproc import connected_pair
from .connecting.connector import Connector
from .connecting.endpoint import Endpoint
from .pipes.pipe import Pipe
from .socket import Socket

__all__ = ["pair"]

_OTHER_CLOSED = "the other end of the pair was closed"


class _PairEndpoint(Endpoint):
    """The endpoint of the only pipe of a pair's socket."""

    dials = False

    def __init__(self, address: Address, options: Options, connector: Connector) -> None:
        super().__init__(address, options, connector.pipes)
        self._connector = connector

    @property
    def address(self) -> str:
        return self._given.bare

    @property
    def closed(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: it neither dials nor listens."""

    def _pipe_closed(self, pipe: Pipe) -> None:
        # No other peer ever comes: nobody may wait for one.
        connector = self._connector
        connector.sender.stop(_OTHER_CLOSED)
        connector.receiver.stop(_OTHER_CLOSED)
        connector.stop()

    def _place_free(self) -> None:
        """Do nothing."""

    def _join(self) -> None:
        """Do nothing."""

    def _abandon(self) -> None:
        """Do nothing."""


def pair(options: OptionValues | None = None) -> tuple[Socket, Socket]:
    """Return two sockets, each the other's only peer. They neither dial nor listen.

    Unbuffered, unless ``options`` says otherwise: a send returns when the other socket's user receives the message.
    When one of them closes, the other one can still receive the messages that have arrived. After that its ``recv`` and
    ``send`` raise :class:`~gmultisocket.errors.Closed`, and iteration ends.

    Args:
        options: for both sockets.

    Source: pair.go of the Go code, where both are closed together.
    """
    unbuffered = {"socket.recv_queue_size": 0, "socket.send_queue_size": 0}
    values: dict[str, Any] = {**unbuffered, **{str(name): value for name, value in (options or {}).items()}}
    sockets = Socket(values), Socket(values)
    address = Address("inproc", "pair")
    for sock, connection in zip(sockets, connected_pair("inproc://pair"), strict=True):
        connector = sock._connector
        connector.sealed = "this socket is one end of a pair"
        endpoint = _PairEndpoint(address, Options(parent=sock.options), connector)
        connector.add(connector.maker.make(connection, endpoint))
    return sockets
