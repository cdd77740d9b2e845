"""What publishers and subscribers say to each other beside the publications, and what a Sub remembers of it.

These are control messages (flag 0x20): a byte that says which, and a pattern. :class:`Feed` keeps, for one pipe of a
Sub, what its publishers were told and have acknowledged.
"""

from __future__ import annotations

from typing import Final

from ..core.pipe import Pipe
from ..errors import BadTopic
from ..wire import CONTROL, SEND_TYPE_MASK, TO_ALL, TO_DEST, Message
from .outbox import Outbox
from .subscriptions import check_pattern

__all__ = ["SUBSCRIBE", "SUBSCRIBED", "UNSUBSCRIBE", "Feed", "control", "read_control"]

#: First bytes of the control messages; a pattern follows.
UNSUBSCRIBE: Final = b"\x00"
SUBSCRIBE: Final = b"\x01"
SUBSCRIBED: Final = b"\x02"

#: Publishers that are known behind one switch.
_MAX_PUBLISHERS = 1024
#: Patterns that are not wanted any more and still to be acknowledged.
_MAX_LEFT = 1024


def control(kind: bytes, pattern: bytes, destination: bytes = b"") -> Message:
    """Return a control message: to all, or along a path."""
    return Message(CONTROL | (TO_DEST if destination else TO_ALL), destination=destination, content=kind + pattern)


def read_control(message: Message) -> tuple[bytes, str] | None:
    """Return the kind and the pattern of a control message; None if it is none of this protocol's."""
    if message.flags & ~SEND_TYPE_MASK != CONTROL or message.destination:
        return None
    try:
        pattern = message.content[1:].decode()
        check_pattern(pattern)
    except (UnicodeDecodeError, BadTopic):
        return None
    return message.content[:1], pattern


class Feed:
    """What a Sub has told the publishers behind one pipe.

    Attributes:
        pipe: the pipe.
        publishers: the sources of those known to be there. Until something was heard, the peer itself stands there.
        awaited: by pattern and publisher: acknowledgements that are still to come.
        heard: whether any has come.
    """

    __slots__ = ("_left", "_outbox", "awaited", "heard", "pipe", "publishers")

    def __init__(self, pipe: Pipe, outbox: Outbox) -> None:
        self.pipe = pipe
        self._outbox = outbox
        self.publishers = {pipe.path}
        self.awaited: dict[str, dict[bytes, int]] = {}
        self.heard = False
        #: Patterns that were left since they were sent: what is awaited for them is no waiter's business.
        self._left: dict[str, None] = {}

    @property
    def direct(self) -> bool:
        """Whether the peer is known to be a publisher, not a switch."""
        return self.heard and self.pipe.path in self.publishers

    def want(self, pattern: str) -> None:
        """Have the publishers told of a pattern, unless they are just about to be."""
        if self._is_pending(pattern):
            return
        self._left.pop(pattern, None)
        self._outbox.post(self.pipe, pattern, control(SUBSCRIBE, pattern.encode()))
        awaited = self.awaited.setdefault(pattern, {})
        for source in self.publishers:
            awaited[source] = awaited.get(source, 0) + 1

    def unwant(self, pattern: str) -> None:
        """Have the publishers told that a pattern is not wanted any more."""
        if self._is_pending(pattern):
            # It will not be sent, and not acknowledged.
            for source in self.publishers:
                self._count_down(pattern, source)
        self._outbox.post(self.pipe, pattern, control(UNSUBSCRIBE, pattern.encode()))
        if pattern in self.awaited:
            # Still counted, so that the next one to want it does not take these for the answers to its own asking;
            # but not for ever, as the peer may be one that never answers.
            self._left[pattern] = None
            if len(self._left) > _MAX_LEFT:
                self._end(next(iter(self._left)))

    def _is_pending(self, pattern: str) -> bool:
        pending = self._outbox.pending(self.pipe, pattern)
        return pending is not None and pending.content[:1] == SUBSCRIBE

    def acknowledged(self, pattern: str, source: bytes) -> None:
        """Hear that a publisher has a subscription."""
        self.heard = True
        if source not in self.publishers and len(self.publishers) < _MAX_PUBLISHERS:
            if self.pipe.path in self.publishers:
                self._is_switch(source)
            self.publishers.add(source)
        self._count_down(pattern, source)

    def _is_switch(self, first: bytes) -> None:
        """Know that the peer is a switch, and acknowledges nothing itself: the first publisher behind it is to."""
        self.publishers.discard(self.pipe.path)
        for awaited in self.awaited.values():
            if awaited.pop(self.pipe.path, 0):
                # Once, however often it was asked for: what was sent before that publisher came, it has not heard.
                awaited[first] = 1

    def give_up(self, pattern: str) -> None:
        """Wait no longer for those behind a switch that have not acknowledged a pattern: they may have gone."""
        for source in list(self.awaited.get(pattern, ())):
            if source != self.pipe.path:
                self._forget(source)
        if not self.publishers:
            self.publishers.add(self.pipe.path)

    def _forget(self, source: bytes) -> None:
        self.publishers.discard(source)
        for pattern in list(self.awaited):
            self.awaited[pattern].pop(source, None)
            if not self.awaited[pattern]:
                self._end(pattern)

    def _count_down(self, pattern: str, source: bytes) -> None:
        awaited = self.awaited.get(pattern)
        if awaited is None or source not in awaited:
            return
        awaited[source] -= 1
        if not awaited[source]:
            del awaited[source]
        if not awaited:
            self._end(pattern)

    def _end(self, pattern: str) -> None:
        """Await nothing more for a pattern."""
        del self.awaited[pattern]
        self._left.pop(pattern, None)
