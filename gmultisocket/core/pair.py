"""Two sockets that are connected to each other, inside the process."""

from __future__ import annotations

from typing import Any

from ..address import Address
from ..options import Options, OptionValues
from ..transport.inproc import connected_pair
from .connecting.endpoint import Endpoint
from .pipes.pipe import Pipe
from .socket import Socket

__all__ = ["pair"]


class _PairEndpoint(Endpoint):
    """The endpoint of the only pipe of a pair's socket."""

    dials = False

    @property
    def address(self) -> str:
        return self._given.bare

    @property
    def closed(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: it neither dials nor listens."""

    def _pipe_closed(self, pipe: Pipe) -> None:
        """Do nothing."""

    def _place_free(self) -> None:
        """Do nothing."""

    def _join(self) -> None:
        """Do nothing."""

    def _abandon(self) -> None:
        """Do nothing."""


def pair(options: OptionValues | None = None) -> tuple[Socket, Socket]:
    """Return two sockets, each the other's only peer. They neither dial nor listen.

    Unbuffered, unless ``options`` says otherwise: a send returns when the other socket's user receives the message.

    Args:
        options: for both sockets.

    Source: pair.go of the Go code, where both are closed together. Here the other socket gets a pipe event, and can
    still receive the messages that have arrived.
    """
    unbuffered = {"socket.recv_queue_size": 0, "socket.send_queue_size": 0}
    values: dict[str, Any] = {**unbuffered, **{str(name): value for name, value in (options or {}).items()}}
    sockets = Socket(values), Socket(values)
    address = Address("inproc", "pair")
    for sock, connection in zip(sockets, connected_pair("inproc://pair"), strict=True):
        connector = sock._connector
        connector.sealed = "this socket is one end of a pair"
        endpoint = _PairEndpoint(address, Options(parent=sock.options), connector.pipes)
        connector.add(connector.maker.make(connection, endpoint))
    return sockets
