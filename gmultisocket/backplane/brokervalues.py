"""Present values that are fetched from a broker while newer ones come live.

What is fetched and what is published now come by different ways, so one may overtake the other. The server numbers all
changes. So of each topic only what is newer than the last one counts.

Some servers publish changes in the order of their numbers. Others do not quite: of two changes at the same time, the
older one may come last. There a lower number than the last one of its topic has two reasons: the change is late, or the
server has begun to count again, because somebody has deleted what it had. So the server is asked what the topic has.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from .engine import FOREIGN

__all__ = ["FetchedValues", "ValuePlane"]

#: A change whose number is so much below another one is not late.
_WINDOW: Final = 4096
#: In the place of the last change of a topic of which none has come.
_NONE: Final = (0, 0)


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
        ask: called as ``ask(topic)`` when it is not known whether a change is late. The answer goes to
            :meth:`answered`. None: live changes come in the order of their numbers.
    """

    __slots__ = ("_ask", "_asked", "_fetched_to", "_fetching", "_highest", "_last", "_plane")

    def __init__(self, plane: ValuePlane, ask: Callable[[str], object] | None = None) -> None:
        self._plane = plane
        self._ask = ask
        self._fetching = False
        #: By topic: the number of the last change, as long as an older one may come, and the publisher's own.
        self._last: dict[str, tuple[int, int]] = {}
        #: The highest number that was fetched; and of those that have come live, the last one, or the highest one.
        self._fetched_to = 0
        self._highest = 0
        #: By topic of which the server was asked: its last change at that time; and whether there was doubt since.
        self._asked: dict[str, tuple[tuple[int, int], bool]] = {}

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
        if not (self._is_next(number) if self._ask is None else self._is_newer(topic, number, sequence)):
            return
        if number <= self._last.get(topic, _NONE)[0]:
            return
        if self._fetching or self._ask is not None:
            self._last[topic] = number, sequence
        elif number > self._fetched_to:
            self._last.clear()
        self._report(topic, content, origin, sequence)

    def _report(self, topic: str, content: bytes | None, origin: bytes, sequence: int) -> None:
        if content is None:
            self._plane.unretained(topic)
        else:
            self._plane.retained(topic, content, origin, sequence, True)

    def fetched(self, topic: str, content: bytes, origin: bytes, sequence: int, number: int) -> None:
        """Report a value that was fetched, unless a newer one has come. As :meth:`live`."""
        if number > self._last.get(topic, _NONE)[0]:
            self._last[topic] = number, sequence
            self._fetched_to = max(self._fetched_to, number)
            self._plane.retained(topic, content, origin, sequence, False)

    # Live changes in the order of their numbers

    def _is_next(self, number: int) -> bool:
        if number == self._highest:
            return False
        if number < self._highest:
            # The server has begun to count again.
            self._last.clear()
            self._fetched_to = 0
        self._highest = number
        return True

    # Live changes in about the order of their numbers

    def _is_newer(self, topic: str, number: int, sequence: int) -> bool:
        """Return whether a change is newer than the last one of its topic. If it is older, the server may be asked."""
        last = self._last.get(topic, _NONE)
        if number < self._highest - _WINDOW or (number == last[0] and sequence != last[1]):
            self._begin_again(topic, number)
            return True
        self._highest = max(self._highest, number)
        if number < last[0]:
            self._doubt(topic)
        elif len(self._last) > 2 * _WINDOW and not self._fetching and number > self._fetched_to + _WINDOW:
            oldest, highest = self._highest - _WINDOW, self._highest
            self._last = {topic: last for topic, last in self._last.items() if oldest <= last[0] <= highest}
        return number > last[0]

    def _begin_again(self, topic: str, number: int) -> None:
        """The server has begun to count again, and has counted this. What is known of other topics may be newer."""
        self._last.pop(topic, None)
        self._highest = number
        self._fetched_to = 0

    def _doubt(self, topic: str) -> None:
        assert self._ask is not None
        if (asked := self._asked.get(topic)) is not None:
            self._asked[topic] = asked[0], True
        else:
            self._asked[topic] = self._last.get(topic, _NONE), False
            self._ask(topic)

    def answered(self, topic: str, change: tuple[int, bytes | None, bytes, int] | None) -> None:
        """Take what the server says that a topic has, as the answer to ``ask``.

        Args:
            topic: the topic.
            change: its last change: the number, the content, None if that has ended the value, the origin and the
                sequence. None: the server has nothing of the topic.
        """
        last = self._last.get(topic, _NONE)
        before, again = self._asked.pop(topic)
        number, content, origin, sequence = change or (0, None, FOREIGN, 0)
        if number < before[0] or (number == before[0] and sequence != before[1]):
            if last != before:
                # Something has come since, and may be newer than this.
                again = True
            elif change is None:
                self._plane.unretained(topic)
            else:
                self._begin_again(topic, number)
                last = _NONE
        if number > last[0]:
            self._last[topic] = number, sequence
            self._report(topic, content, origin, sequence)
        if again:
            self._doubt(topic)

    def unanswered(self) -> None:
        """There will be no answers to what was asked so far."""
        self._asked.clear()
