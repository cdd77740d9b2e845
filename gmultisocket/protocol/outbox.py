"""What a protocol owes its peers: answers and the like, which leave as soon as there is room in the peer's pipe.

A protocol learns what it owes in callbacks, where nothing may be sent, and no peer that does not read may hold up what
is for the others. So messages are left here, and a greenlet for each pipe that is owed something sends them, in the
order in which they were posted. ``socket.send_overflow`` does not touch them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import gevent
from gevent import Greenlet

from ..core.pipe import Pipe
from ..core.seam import Seam
from ..errors import Closed, ForkedSocketError
from ..wire import Message

__all__ = ["Outbox"]


class Outbox:
    """Messages that wait to be sent, by pipe and key. How many there may be is for the protocol to bound, by its keys.

    Args:
        seam: of the protocol's socket.
        spawn: the protocol's ``_spawn``.
    """

    __slots__ = ("_greenlets", "_owed", "_seam", "_spawn")

    def __init__(self, seam: Seam, spawn: Callable[..., Greenlet[..., Any]]) -> None:
        self._seam = seam
        self._spawn = spawn
        self._owed: dict[Pipe, dict[Hashable, Message]] = {}
        self._greenlets: dict[Pipe, Greenlet[..., Any]] = {}

    def post(self, pipe: Pipe, key: Hashable, message: Message) -> None:
        """Have a message sent by a pipe, in the place of one with the same key that has not left yet.

        Never blocks nor switches greenlets: may be used in callbacks of the seam.
        """
        owed = self._owed.get(pipe)
        if owed is None:
            owed = self._owed[pipe] = {}
            self._greenlets[pipe] = self._spawn(self._send, pipe, owed)
        owed[key] = message

    def pending(self, pipe: Pipe, key: Hashable) -> Message | None:
        """Return the message of a key that has not left yet, None where there is none."""
        owed = self._owed.get(pipe)
        return owed.get(key) if owed is not None else None

    def forget(self, pipe: Pipe, key: Hashable) -> None:
        """Do not send the message of a key, if it has not left yet."""
        owed = self._owed.get(pipe)
        if owed is not None:
            owed.pop(key, None)

    def waiting(self, pipe: Pipe) -> int:
        """Return how many messages wait for a pipe."""
        return len(self._owed.get(pipe, ()))

    def flush(self, timeout: float | None) -> None:
        """Block until everything has left, or the time is up."""
        gevent.joinall(list(self._greenlets.values()), timeout)

    def _send(self, pipe: Pipe, owed: dict[Hashable, Message]) -> None:
        """Send what one pipe is owed (a greenlet for each pipe, while there is something)."""
        try:
            while owed and self._seam.wait_room(pipe):
                # Looked at only now: while there was no room, others may have posted, replaced and forgotten.
                if owed:
                    self._seam.put(pipe, owed.pop(next(iter(owed))))
        except (Closed, ForkedSocketError):
            pass
        finally:
            del self._owed[pipe], self._greenlets[pipe]
