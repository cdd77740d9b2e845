"""The resets that a Stream sends for connections that do not exist, or not any more."""

from __future__ import annotations

from typing import Final

from ..core.pipes.pipe import Pipe
from ..wire import CONTROL, TO_DEST, Message
from .outbox import Outbox
from .streamend import RESET

__all__ = ["Resets"]

#: Resets that may wait for one pipe. Further ones are not sent: a peer without one finds out when it asks.
_MAX_WAITING: Final = 1024
#: The ends of one peer that have got a reset and are remembered. A Go program with more of them may keep some alive.
_MAX_REMEMBERED: Final = 1024


class Resets:
    """Sends resets, to each end that writes to a connection only one.

    A Go program takes everything that comes for a sign of life, also a reset. An answer to each of its keepalives
    would keep its end alive for ever.
    """

    __slots__ = ("_outbox", "_sent")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        #: Hashes of both ends of the connections, by pipe, the oldest first.
        self._sent: dict[Pipe, dict[int, None]] = {}

    def send(self, pipe: Pipe, path: bytes, ident: bytes) -> bool:
        """Send a reset. Return False if too many wait already. Never blocks.

        Args:
            pipe: where it goes.
            path: the path to the end that gets it.
            ident: the id that this end wrote to; empty if there never was one.
        """
        if self._outbox.waiting(pipe) >= _MAX_WAITING:
            return False
        message = Message(CONTROL | TO_DEST, source=ident, destination=path, content=RESET)
        self._outbox.post(pipe, (RESET, path), message)
        return True

    def answer(self, pipe: Pipe, message: Message) -> None:
        """Send a reset to the sender of a message, unless it has got one. Never blocks."""
        sent = self._sent.setdefault(pipe, {})
        key = hash(message.source + message.destination)
        if key not in sent and self.send(pipe, message.source, message.destination):
            sent[key] = None
            if len(sent) > _MAX_REMEMBERED:
                del sent[next(iter(sent))]

    def forget(self, pipe: Pipe) -> None:
        """Forget what was sent by a pipe, which has closed."""
        self._sent.pop(pipe, None)
