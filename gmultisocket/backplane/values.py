"""The present values of topics, for subscribers in this process that come later.

A value is kept while a pattern that matches its topic is wanted here, because only then the engine tells of the next
one; and while the engine is there.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["Values"]


class Values:
    """What is known.

    Args:
        forget: called with the topic when a value is not known any more.
    """

    __slots__ = ("_forget", "_values")

    def __init__(self, forget: Callable[[str], object]) -> None:
        self._forget = forget
        #: By topic: the content, its origin and its sequence.
        self._values: dict[str, tuple[bytes, bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Iterate over the topics and their values."""
        return iter([(topic, content) for topic, (content, _, _) in self._values.items()])

    def is_new(self, topic: str, origin: bytes, sequence: int) -> bool:
        """Return whether a value is not the one that is known."""
        known = self._values.get(topic)
        return known is None or known[1:] != (origin, sequence)

    def keep(self, topic: str, content: bytes, origin: bytes, sequence: int) -> None:
        """Store the value of a topic, in the place of the one before."""
        self._values[topic] = content, origin, sequence

    def forget(self, topic: str) -> None:
        """Remove the value of a topic, if there is one."""
        if self._values.pop(topic, None) is not None:
            self._forget(topic)

    def forget_others(self, wanted: Callable[[str], bool]) -> None:
        """Remove the values of all topics but the wanted ones."""
        for topic in [topic for topic in self._values if not wanted(topic)]:
            self.forget(topic)

    def clear(self) -> None:
        """Remove all values."""
        self.forget_others(lambda topic: False)
