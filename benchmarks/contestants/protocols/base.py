"""What a work may ask of a library's protocols. Each adapter says how its library does it best, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["Protocols"]


class Protocols:
    """One library, as one peer.

    Attributes:
        green: whether its calls wait in gevent's loop; if not, they hold up the thread.
        handshake: what those who subscribe or take work say first: see ``takers.py``.
        ask: ``ask(content) -> bytes``, one request and its reply; bound by ``dial_rep``.
        publish: ``publish(topic, content)``, to all who have subscribed; bound by ``listen_pub``.
        push: ``push(content)``, to one of those who take work; bound by ``listen_push``.
    """

    green: ClassVar[bool] = False
    handshake: ClassVar[str] = ""

    ask: Callable[[bytes], bytes]
    publish: Callable[[str, bytes], Any]
    push: Callable[[bytes], Any]

    def answer(self, address: str, listening: Callable[[str], None]) -> None:
        """Listen, say where, and answer every request with what was asked, until the process is ended."""
        raise NotImplementedError

    def dial_rep(self, address: str) -> None:
        """Connect to who answers, for one request at a time."""
        raise NotImplementedError

    def ask_many(self, address: str, content: bytes, in_flight: int) -> Callable[[int], int]:
        """Connect to who answers, for many requests at a time.

        Returns:
            A function that asks so many times, always keeping ``in_flight`` of them unanswered, and returns the
            content bytes of a reply.
        """
        raise NotImplementedError

    def listen_pub(self) -> str:
        """Listen on tcp for those who subscribe. Returns the address."""
        raise NotImplementedError

    def wait_subscriptions(self, count: int) -> None:
        """Block until so many subscriptions count."""
        raise NotImplementedError

    def publication_size(self, topic: str, size: int) -> int:
        """Return how many bytes a publication takes on a tcp connection."""
        raise NotImplementedError

    def listen_push(self) -> str:
        """Listen on tcp for those who take work. Returns the address."""
        raise NotImplementedError

    def wait_takers(self, count: int) -> None:
        """Block until so many may take work. They have connected, and said and heard what comes first."""

    def work_size(self, size: int) -> int:
        """Return how many bytes a piece of work takes on a tcp connection."""
        raise NotImplementedError
