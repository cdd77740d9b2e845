"""What a hub keeps: the history of some topics, and the present values of all.

A publication is kept as what comes behind its topic: the stamp and the content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..protocol.history import Entry, MemoryHistory
from ..protocol.subscriptions import is_literal, matches
from .engine import MAX_HISTORY, MAX_HISTORY_SIZE, MAX_VALUES, MAX_VALUES_SIZE
from .planehistory import HistoryTopics

__all__ = ["HubHistory"]


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
            yield found[0] if found else None

    def complete_from(self, pattern: str) -> Iterator[int]:
        """Yield offsets; all publications of a pattern behind the last one of them are still here.

        Between two of them others may run. Then look again whether that is still so.
        """
        low, high = -1, self.last_offset
        middle = 0
        while high - low > 1:
            if self.since(pattern, middle).complete:
                high = middle
            else:
                low = middle
            middle = (low + high) // 2
            yield high
        yield high
