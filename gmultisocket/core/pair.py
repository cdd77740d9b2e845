"""A pair of sockets that are connected to each other, inside the process."""

from __future__ import annotations

from ..address import Address
from ..options import Options, OptionValues
from ..transport.inproc import connected_pair
from .endpoint import Endpoint
from .pipe import Pipe
from .socket import Socket

__all__ = ["pair"]


class _End(Endpoint):
    """What the one pipe of a pair's socket came from."""

    dials = False

    @property
    def address(self) -> str:
        return self._address.bare

    @property
    def closed(self) -> bool:
        return True

    def close(self) -> None:
        """There is nothing to stop."""

    def pipe_closed(self, pipe: Pipe, lived: bool) -> None:
        """There is nothing to dial."""

    def limit_changed(self) -> None:
        """No other pipe ever comes."""


def pair(options: OptionValues | None = None) -> tuple[Socket, Socket]:
    """Return two sockets, each the other's only peer. They neither dial nor listen.

    Unbuffered, unless ``options`` says otherwise: a send ends when the other socket's user receives the message.

    Args:
        options: for both sockets.

    Source: pair.go of the Go code, where the two are closed together; here as everywhere the other one is told, and
    may still receive what has arrived.
    """
    unbuffered = {"socket.recv_queue_size": 0, "socket.send_queue_size": 0}
    values = {**unbuffered, **{str(name): value for name, value in (options or {}).items()}}
    sockets = Socket(values), Socket(values)
    address = Address("inproc", "pair")
    for sock, connection in zip(sockets, connected_pair("inproc://pair"), strict=True):
        connector = sock._connector
        connector.sealed = "this socket is one end of a pair"
        connector.add(connector.make_pipe(connection, _End(connector, address, Options(parent=sock.options))))
    return sockets
