"""Present values that are fetched from a broker while newer ones come live.

What is fetched and what is published now come by different ways, so one may overtake the other. The server numbers all
changes. So of each topic only what is newer than the last one counts. Live changes come in the order of their numbers.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["FetchedValues", "ValuePlane"]


class ValuePlane(Protocol):
    """What takes present values: a plane, see :class:`.engine.Plane`, or what stands in front of it."""

    origin: bytes

    def retained(self, topic: str, content: bytes, origin: bytes, sequence: int, live: bool) -> None: ...
    def unretained(self, topic: str) -> None: ...
    def gap(self, reason: str) -> None: ...


class FetchedValues:
    """Reports present values to a plane, the live ones and the fetched ones.

    Args:
        plane: whom it reports to.
    """

    __slots__ = ("_fetched_to", "_fetching", "_last", "_last_live", "_plane")

    def __init__(self, plane: ValuePlane) -> None:
        self._plane = plane
        self._fetching = False
        #: By topic: the number of the last change, as long as an older one may come.
        self._last: dict[str, int] = {}
        #: The highest number that was fetched. When a live one is above it, no older ones come any more.
        self._fetched_to = 0
        self._last_live = 0

    def begin(self) -> None:
        """Patterns are about to be sent to the server, and the values that match will be fetched."""
        self._fetching = True

    def end(self) -> None:
        """All was fetched."""
        self._fetching = False

    def live(self, topic: str, content: bytes | None, origin: bytes, sequence: int, number: int) -> None:
        """Report a change that has come live; its copies, which follow each other, count once.

        Args:
            topic: its topic.
            content: None if the topic has no value any more.
            origin, sequence: of the publication.
            number: the server's.
        """
        if number == self._last_live:
            return
        if number < self._last_live:
            # The server has begun to count again: somebody has deleted what it had.
            self._last.clear()
            self._fetched_to = 0
        self._last_live = number
        if number <= self._last.get(topic, 0):
            return
        if self._fetching:
            self._last[topic] = number
        elif number > self._fetched_to:
            self._last.clear()
        if content is None:
            self._plane.unretained(topic)
        else:
            self._plane.retained(topic, content, origin, sequence, True)

    def fetched(self, topic: str, content: bytes, origin: bytes, sequence: int, number: int) -> None:
        """Report a value that was fetched, unless a newer one has come. As :meth:`live`."""
        if number > self._last.get(topic, 0):
            self._last[topic] = number
            self._fetched_to = max(self._fetched_to, number)
            self._plane.retained(topic, content, origin, sequence, False)
