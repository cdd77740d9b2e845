"""The answers that a Pub owes for subscriptions that have ended before they were answered.

A Sub counts the answers, to find out which one is that to its last 0x01; a browser client does not. So an answer that
did not leave in time waits for the next 0x01 for the pattern, and goes with the answer to that, as the same one: then
it makes no difference which of them a subscriber takes for its own.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

__all__ = ["Owed"]

#: Subscriptions that are remembered for one pipe. A Sub counts the answers for as many that have ended.
_MAX_OWED: Final = 1024
#: Answers that are owed for one pattern: they are all sent in one turn.
_MAX_ANSWERS: Final = 1024


class Owed:
    """How many answers are owed, by pipe, source and pattern."""

    __slots__ = ("_pipes",)

    def __init__(self) -> None:
        #: Has no pipe without any.
        self._pipes: dict[Hashable, OrderedDict[tuple[bytes, str], int]] = {}

    def add(self, pipe: Hashable, source: bytes, pattern: str) -> None:
        """Owe one more answer."""
        owed = self._pipes.setdefault(pipe, OrderedDict())
        owed[source, pattern] = min(owed.get((source, pattern), 0) + 1, _MAX_ANSWERS)
        owed.move_to_end((source, pattern))
        if len(owed) > _MAX_OWED:
            owed.popitem(last=False)

    def take(self, pipe: Hashable, source: bytes, pattern: str) -> int:
        """Return how many answers are owed, and owe none any more."""
        owed = self._pipes.get(pipe)
        if owed is None:
            return 0
        number = owed.pop((source, pattern), 0)
        if not owed:
            del self._pipes[pipe]
        return number

    def remove_pipe(self, pipe: Hashable) -> None:
        """Forget what is owed to the subscribers of a pipe that has closed."""
        self._pipes.pop(pipe, None)
