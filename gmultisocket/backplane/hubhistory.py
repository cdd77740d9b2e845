"""What a hub keeps: the history of some topics, and the present values of all.

A publication is kept as what comes behind its topic: the stamp and the content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..protocol.history import Entry, everything_since
from ..protocol.memoryhistory import MemoryHistory
from ..protocol.subscriptions import is_literal, matches
from .engine import MAX_HISTORY, MAX_HISTORY_SIZE, MAX_VALUES, MAX_VALUES_SIZE
from .planehistory import HistoryTopics

__all__ = ["HubHistory"]

#: Offsets that are looked at to find from where a pattern is complete.
_LOOKS = 6


class HubHistory(MemoryHistory):
    """A history in the memory of a hub.

    Args:
        patterns: of the topics with history.

    Attributes:
        topics: the topics with history.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        super().__init__(
            *patterns,
            max_entries=MAX_HISTORY,
            max_bytes=MAX_HISTORY_SIZE,
            max_retained=MAX_VALUES,
            max_retained_bytes=MAX_VALUES_SIZE,
        )
        self.topics = HistoryTopics(patterns)

    def is_retained(self, entry: Entry) -> bool:
        """Return whether a publication is the present value of its topic."""
        return self.retained(entry.topic) == [entry]

    def values(self, pattern: str) -> Iterator[Entry | None]:
        """Yield the present values that match a pattern, each as it is at that moment; None for other topics."""
        for topic in [pattern] if is_literal(pattern) else self.retained_topics():
            found = self.retained(topic) if matches(pattern, topic) else ()
            yield Entry(*found[0]) if found else None

    def fetch(self, pattern: str) -> tuple[list[Entry], int]:
        """Return all that is kept of a pattern, oldest first, and an offset behind which that is everything."""
        kept, complete = everything_since(self, pattern, 0)
        entries = [Entry(*entry) for entry in kept]
        if complete:
            return entries, 0
        # What a topic has lost ends in front of the first one that is kept.
        firsts: dict[str, int] = {}
        for _, previous, topic, _ in entries:
            firsts.setdefault(topic, previous)
        low, high = max(firsts.values(), default=0), self.last_offset
        if self._is_complete(pattern, low):
            return entries, low
        # There are topics of which nothing is kept any more. To look at few offsets is enough.
        for _ in range(_LOOKS):
            middle = (low + high) // 2
            if self._is_complete(pattern, middle):
                high = middle
            else:
                low = middle
        return entries, high

    def _is_complete(self, pattern: str, offset: int) -> bool:
        """Return whether everything behind an offset is kept."""
        return all(portion.complete for portion in self.since(pattern, offset))
