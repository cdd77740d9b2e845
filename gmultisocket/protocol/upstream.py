"""Control messages of publish and subscribe, and what a Sub remembers of them for each pipe.

A control message (flag 0x20) is a byte that names its kind, and a pattern. :class:`Upstream` keeps, for one pipe of a
Sub, which subscriptions were sent to the publishers behind it, and which of them they have acknowledged.
"""

from __future__ import annotations

from typing import Final

from ..core.pipes.pipe import Pipe
from ..errors import BadTopic
from ..wire import CONTROL, SEND_TYPE_MASK, TO_ALL, TO_DEST, Message
from .outbox import Outbox
from .subscriptions import check_pattern

__all__ = ["SUBSCRIBE", "SUBSCRIBED", "UNSUBSCRIBE", "Upstream", "control", "read_control"]

#: First bytes of the control messages; a pattern follows.
UNSUBSCRIBE: Final = b"\x00"
SUBSCRIBE: Final = b"\x01"
SUBSCRIBED: Final = b"\x02"

#: Publishers that are remembered behind one switch.
_MAX_PUBLISHERS = 1024
#: Unsubscribed patterns whose acknowledgements are still counted.
_MAX_UNSUBSCRIBED = 1024


def control(kind: bytes, pattern: bytes, destination: bytes = b"") -> Message:
    """Return a control message: to all, or along a path."""
    return Message(CONTROL | (TO_DEST if destination else TO_ALL), destination=destination, content=kind + pattern)


def read_control(message: Message) -> tuple[bytes, str] | None:
    """Return the kind and the pattern of a control message; None if it is not one of this protocol."""
    if message.flags & ~SEND_TYPE_MASK != CONTROL or message.destination:
        return None
    try:
        pattern = message.content[1:].decode()
        check_pattern(pattern)
    except (UnicodeDecodeError, BadTopic):
        return None
    return message.content[:1], pattern


class Upstream:
    """The publishers behind one pipe of a Sub.

    Attributes:
        pipe: the pipe.
        publishers: the sources of the known publishers. Until an acknowledgement has come, this is the peer itself.
        awaited: by pattern and publisher: the number of acknowledgements that are still to come.
        acknowledging: whether an acknowledgement of any of these publishers has come.
    """

    __slots__ = ("_outbox", "_unsubscribed", "acknowledging", "awaited", "pipe", "publishers")

    def __init__(self, pipe: Pipe, outbox: Outbox) -> None:
        self.pipe = pipe
        self._outbox = outbox
        self.publishers = {pipe.path}
        self.awaited: dict[str, dict[bytes, int]] = {}
        self.acknowledging = False
        #: Patterns that were unsubscribed since they were sent: nobody waits for their acknowledgements.
        self._unsubscribed: dict[str, None] = {}

    @property
    def direct(self) -> bool:
        """Whether the peer is known to be a publisher, not a switch."""
        return self.acknowledging and self.pipe.path in self.publishers

    def subscribe(self, pattern: str) -> None:
        """Send a subscription, unless one is about to leave."""
        if self._is_pending(pattern):
            return
        self._unsubscribed.pop(pattern, None)
        self._outbox.post(self.pipe, pattern, control(SUBSCRIBE, pattern.encode()))
        awaited = self.awaited.setdefault(pattern, {})
        for source in self.publishers:
            awaited[source] = awaited.get(source, 0) + 1

    def unsubscribe(self, pattern: str) -> None:
        """Send the end of a subscription."""
        if self._is_pending(pattern):
            # It is replaced, so no acknowledgement comes for it.
            for source in self.publishers:
                self._count_down(pattern, source)
        self._outbox.post(self.pipe, pattern, control(UNSUBSCRIBE, pattern.encode()))
        if pattern in self.awaited:
            # Still counted, so that a later subscription does not take these acknowledgements for its own. But at most
            # this number of patterns: the peer may be one that never answers.
            self._unsubscribed[pattern] = None
            if len(self._unsubscribed) > _MAX_UNSUBSCRIBED:
                self._end(next(iter(self._unsubscribed)))

    def _is_pending(self, pattern: str) -> bool:
        pending = self._outbox.pending(self.pipe, pattern)
        return pending is not None and pending.content[:1] == SUBSCRIBE

    def acknowledge(self, pattern: str, source: bytes) -> None:
        """Count an acknowledgement that a publisher has sent."""
        self.acknowledging = True
        if source not in self.publishers and len(self.publishers) < _MAX_PUBLISHERS:
            if self.pipe.path in self.publishers:
                self._is_switch(source)
            self.publishers.add(source)
        self._count_down(pattern, source)

    def _is_switch(self, first: bytes) -> None:
        """The peer is a switch: expect acknowledgements from the first publisher behind it, not from the peer."""
        self.publishers.discard(self.pipe.path)
        for awaited in self.awaited.values():
            if awaited.pop(self.pipe.path, 0):
                # One, however often the subscription was sent: the publisher got none that was sent before it came.
                awaited[first] = 1

    def give_up(self, pattern: str) -> None:
        """Forget the publishers behind a switch that have not acknowledged a pattern: they may have gone."""
        for source in list(self.awaited.get(pattern, ())):
            if source != self.pipe.path:
                self._forget(source)
        if not self.publishers:
            self.publishers.add(self.pipe.path)
            # It is still no publisher: subscriptions are repeated until one behind it answers.
            self.acknowledging = False

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
        """Await no more acknowledgements of a pattern."""
        del self.awaited[pattern]
        self._unsubscribed.pop(pattern, None)
