"""The interface of the protocols' adapters. Each uses its library in the library's best way, and does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["Protocols"]


class Protocols:
    """One library, as one peer.

    Attributes:
        green: whether its calls wait in gevent's loop; if not, they block the thread.
        handshake: the handshake of subscribers and takers: see ``takers.py``.
        ask: ``ask(content) -> bytes``, one request and its reply; ``dial_rep`` sets it.
        publish: ``publish(topic, content)``, to all subscribers; ``listen_pub`` sets it.
        push: ``push(content)``, to one of the takers; ``listen_push`` sets it.
    """

    green: ClassVar[bool] = False
    handshake: ClassVar[str] = ""

    ask: Callable[[bytes], bytes]
    publish: Callable[[str, bytes], Any]
    push: Callable[[bytes], Any]

    def answer(self, address: str, listening: Callable[[str], None]) -> None:
        """Listen, call ``listening(address)``, and answer every request with its content, until the process ends."""
        raise NotImplementedError

    def dial_rep(self, address: str) -> None:
        """Connect to the answering peer, for one request at a time."""
        raise NotImplementedError

    def ask_many(self, address: str, content: bytes, in_flight: int) -> Callable[[int], int]:
        """Connect to the answering peer, for many requests at a time.

        Returns:
            A function that sends the given number of requests, keeps ``in_flight`` of them unanswered, and returns
            the content bytes of a reply.
        """
        raise NotImplementedError

    def listen_pub(self) -> str:
        """Listen on tcp for subscribers. Returns the address."""
        raise NotImplementedError

    def wait_subscriptions(self, count: int) -> None:
        """Block until ``count`` subscriptions have effect."""
        raise NotImplementedError

    def publication_size(self, topic: str, size: int) -> int:
        """Return how many bytes a publication takes on a tcp connection."""
        raise NotImplementedError

    def listen_push(self) -> str:
        """Listen on tcp for takers. Returns the address."""
        raise NotImplementedError

    def wait_takers(self, count: int) -> None:
        """Block until ``count`` takers can get work. They have connected and done their part of the handshake."""

    def work_size(self, size: int) -> int:
        """Return how many bytes a piece of work takes on a tcp connection."""
        raise NotImplementedError
