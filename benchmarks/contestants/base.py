"""What a work may ask of a library. Each adapter says how its library does it best, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["ECHO", "FAN_OUT", "ONE_WAY", "Contestant", "query_to_dial"]

# What two peers want of each other; libraries with socket types choose one by it.
ONE_WAY, ECHO, FAN_OUT = "one way", "echo", "fan-out"


def query_to_dial(address: str) -> str:
    """Return what the address to dial ends with, given that to listen at: over TLS, the file of whom to trust."""
    _, mark, query = address.partition("?")
    return mark + query.replace("transport.tls.certfile=", "transport.tls.cafile=")


class Contestant:
    """One library, as one peer.

    Attributes:
        green: whether its calls wait in gevent's loop; if not, they hold up the thread.
        handshake: what a fan-out's receivers have to say first: "", "zmtp", "sp", "ws" or "tls" (see ``drain.py``);
            known once it listens.
        send: ``send(content)``, blocks while the peer is slower. The library's own method, bound by ``dial`` or
            ``listen``: an adapter costs nothing while time is taken.
        recv: ``recv() -> bytes``.
        publish: ``publish(content)``, to all who have connected.
    """

    green: ClassVar[bool] = False
    handshake: str = ""

    send: Callable[[bytes], Any]
    recv: Callable[[], bytes]
    publish: Callable[[bytes], Any]

    def listen(self, purpose: str, address: str) -> str:
        """Listen at what :func:`benchmarks.harness.address_of` gives. Returns the address to dial."""
        raise NotImplementedError

    def dial(self, purpose: str, address: str) -> None:
        """Connect to what another peer's ``listen`` has returned."""
        raise NotImplementedError

    def close(self) -> None:
        """Let everything leave that was sent, and close."""
        raise NotImplementedError

    def echo(self, count: int) -> None:
        """Send back the next ``count`` messages, one at a time."""
        recv, send = self.recv, self.send
        for _ in range(count):
            send(recv())

    def frame_size(self, size: int) -> int:
        """Return how many bytes a content of so many bytes takes on a connection."""
        raise NotImplementedError

    def wait_peers(self, count: int) -> None:
        """Block until so many have connected and may be published to."""
        raise NotImplementedError

    def burst(self, content: bytes, count: int) -> None:
        """Publish ``count`` times, as fast as it goes."""
        publish = self.publish
        for _ in range(count):
            publish(content)

    def in_process(self) -> tuple[Callable[[bytes], Any], Callable[[], bytes]]:
        """Return a ``send`` and a ``recv`` that are connected inside this process."""
        raise NotImplementedError
