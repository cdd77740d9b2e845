"""A copy of a broker's log in this process: all publications of topics with history that the broker keeps.

The broker numbers its publications. They come in the order of their numbers, with numbers left out where some were
deleted.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections import deque

from ..protocol.history import Entry
from ..protocol.subscriptions import matching
from .engine import MAX_HISTORY, MAX_HISTORY_SIZE

__all__ = ["LogCopy"]


class LogCopy:
    """The copy.

    Attributes:
        last: the number of the last publication that has come.
        floor: all publications behind this number, up to the last one, are here.
    """

    __slots__ = ("_by_topic", "_entries", "_size", "floor", "last")

    def __init__(self) -> None:
        self.last = 0
        self.floor = 0
        self._entries: deque[Entry] = deque()
        self._by_topic: dict[str, deque[Entry]] = {}
        self._size = 0

    def pass_over(self, number: int) -> None:
        """What has a number is no publication."""
        if number > self.last:
            if number != self.last + 1:
                self.floor = number - 1
            self.last = number

    def skip_to(self, number: int) -> None:
        """The broker has nothing up to a number that has not come."""
        if number > self.last:
            self.floor = self.last = number

    def add(self, number: int, topic: str, content: bytes) -> Entry:
        """Add the next publication, and return it."""
        self.pass_over(number)
        kept = self._by_topic.get(topic)
        if kept is None:
            kept = self._by_topic[topic] = deque()
        entry = Entry(number, kept[-1].offset if kept else 0, topic, content)
        kept.append(entry)
        self._entries.append(entry)
        self._size += len(content)
        while len(self._entries) > MAX_HISTORY or (self._size > MAX_HISTORY_SIZE and len(self._entries) > 1):
            self._forget_oldest()
        return entry

    def _forget_oldest(self) -> None:
        offset, _, topic, content = self._entries.popleft()
        kept = self._by_topic[topic]
        kept.popleft()
        if not kept:
            del self._by_topic[topic]
        self._size -= len(content)
        self.floor = max(self.floor, offset)

    def matching(self, pattern: str) -> list[Entry]:
        """Return the publications whose topics match a pattern, oldest first."""
        return sorted(entry for _, kept in matching(pattern, self._by_topic) for entry in kept)
