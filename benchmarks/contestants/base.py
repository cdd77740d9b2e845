"""The interface of the adapters. Each adapter uses its library in the library's best way, and does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["ECHO", "FAN_OUT", "ONE_WAY", "Contestant", "query_to_dial"]

# The purpose of a connection. A library with socket types chooses the type by it.
ONE_WAY, ECHO, FAN_OUT = "one way", "echo", "fan-out"


def query_to_dial(address: str) -> str:
    """Return the query of the address to dial, made from the address to listen at: over TLS, it names the CA file."""
    _, mark, query = address.partition("?")
    return mark + query.replace("transport.tls.certfile=", "transport.tls.cafile=")


class Contestant:
    """One library, as one peer.

    Attributes:
        green: whether its calls wait in gevent's loop; if not, they block the thread.
        handshake: the handshake of a fan-out's receivers: "", "zmtp", "sp", "ws", "wss" or "tls" (see ``drain.py``).
            It is set when the peer listens.
        send: ``send(content)``, blocks while the peer is slower. It is the library's own method, and ``dial`` or
            ``listen`` sets it: the adapter costs nothing while the clock runs.
        recv: ``recv() -> bytes``.
        publish: ``publish(content)``, to all connected peers.
    """

    green: ClassVar[bool] = False
    handshake: str = ""

    send: Callable[[bytes], Any]
    recv: Callable[[], bytes]
    publish: Callable[[bytes], Any]

    def listen(self, purpose: str, address: str) -> str:
        """Listen at an address of :func:`benchmarks.harness.address_of`. Returns the address to dial."""
        raise NotImplementedError

    def dial(self, purpose: str, address: str) -> None:
        """Connect to the address that another peer's ``listen`` returned."""
        raise NotImplementedError

    def echo(self) -> None:
        """Send every message back, one at a time, until the process ends."""
        recv, send = self.recv, self.send
        while True:
            send(recv())

    def frame_size(self, size: int) -> int:
        """Return how many bytes a content of ``size`` bytes takes on a connection."""
        raise NotImplementedError

    def wait_peers(self, count: int) -> None:
        """Block until ``count`` peers are connected and get what is published."""
        raise NotImplementedError

    def burst(self, content: bytes, count: int) -> None:
        """Publish ``count`` times, as fast as possible."""
        publish = self.publish
        for _ in range(count):
            publish(content)

    def in_process(self) -> tuple[Callable[[bytes], Any], Callable[[], bytes]]:
        """Return a ``send`` and a ``recv`` that are connected inside this process."""
        raise NotImplementedError
