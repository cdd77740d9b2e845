"""Control messages of publish and subscribe, and what a Sub remembers of them for each pipe.

A control message (flag 0x20) is a byte that names its kind, and a pattern. :class:`Upstream` keeps, for one pipe of a
Sub, which subscriptions were sent to the publishers behind it, and which of them they have acknowledged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Final

from ..core.pipes.pipe import Pipe
from ..errors import BadTopic
from ..wire import CONTROL, SEND_TYPE_MASK, TO_ALL, TO_DEST, Message
from .outbox import Outbox
from .subscriptions import check_pattern

__all__ = ["REPEATS", "SUBSCRIBE", "SUBSCRIBED", "UNSUBSCRIBE", "Upstream", "control", "read_control"]

#: First bytes of the control messages; a pattern follows, except after REPEATS.
UNSUBSCRIBE: Final = b"\x00"
SUBSCRIBE: Final = b"\x01"
SUBSCRIBED: Final = b"\x02"
#: The sender repeats its subscriptions while it lives.
REPEATS: Final = b"\x08"

#: Publishers that are remembered behind one switch.
_MAX_PUBLISHERS = 1024
#: Acknowledgements that are awaited, counted for each pattern and publisher. With more, each further pattern waits for
#: one publisher.
_MAX_AWAITED = 65536
#: Unsubscribed patterns whose acknowledgements are still counted.
_MAX_UNSUBSCRIBED = 1024


def control(kind: bytes, pattern: bytes, destination: bytes = b"") -> Message:
    """Return a control message: to all, or along a path."""
    return Message(CONTROL | (TO_DEST if destination else TO_ALL), destination=destination, content=kind + pattern)


def read_control(message: Message) -> tuple[bytes, str] | None:
    """Return the kind and the pattern of a control message; None if it is not one of this protocol."""
    if message.flags & ~SEND_TYPE_MASK != CONTROL or message.destination:
        return None
    if message.content == REPEATS:
        return REPEATS, ""
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
        unsent: subscriptions that are sent later, because there are many. (Not a dict: the more keys were removed from
            its front, the longer it takes to find its first key.)
        acknowledging: whether an acknowledgement of any of these publishers has come.
    """

    __slots__ = ("_entries", "_outbox", "_unsubscribed", "acknowledging", "awaited", "pipe", "publishers", "unsent")

    def __init__(self, pipe: Pipe, outbox: Outbox) -> None:
        self.pipe = pipe
        self._outbox = outbox
        self.publishers = {pipe.path}
        self.awaited: dict[str, dict[bytes, int]] = {}
        #: The number of all publishers in all of ``awaited``.
        self._entries = 0
        self.unsent: OrderedDict[str, None] = OrderedDict()
        self.acknowledging = False
        #: Patterns that were unsubscribed since they were sent: nobody waits for their acknowledgements.
        self._unsubscribed: dict[str, None] = {}

    @property
    def direct(self) -> bool:
        """Whether the peer is known to be a publisher, not a switch."""
        return self.acknowledging and self.pipe.path in self.publishers

    def awaits(self, pattern: str) -> bool:
        """Return whether an acknowledgement of a pattern is to come."""
        return pattern in self.awaited or pattern in self.unsent

    def subscribe_all(self, patterns: Iterable[str]) -> None:
        """Send subscriptions, by calls of :meth:`subscribe_some`."""
        self.unsent = OrderedDict.fromkeys(patterns)

    def subscribe_some(self, count: int) -> bool:
        """Send at most ``count`` of the unsent subscriptions. Return whether there are more."""
        for _ in range(min(count, len(self.unsent))):
            self.subscribe(self.unsent.popitem(last=False)[0])
        return bool(self.unsent)

    def subscribe(self, pattern: str) -> None:
        """Send a subscription, unless one is about to leave."""
        if self._is_pending(pattern):
            return
        self._unsubscribed.pop(pattern, None)
        self._outbox.post(self.pipe, pattern, control(SUBSCRIBE, pattern.encode()))
        awaited = self.awaited.setdefault(pattern, {})
        # A peer may make publishers up.
        many = self._entries + len(self.publishers) > _MAX_AWAITED
        for source in islice(self.publishers, 1) if many else self.publishers:
            if source not in awaited:
                self._entries += 1
            awaited[source] = awaited.get(source, 0) + 1

    def promise_repeats(self) -> None:
        """Send, behind all subscriptions until now, that they are repeated. Needed again after the last one has ended.

        Without it a publisher behind a switch could not distinguish a Sub that died at once from one that never repeats
        itself.
        """
        self._outbox.forget(self.pipe, REPEATS)
        self._outbox.post(self.pipe, REPEATS, control(REPEATS, b""))

    def unsubscribe(self, pattern: str) -> None:
        """Send the end of a subscription."""
        self.unsent.pop(pattern, None)
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
                self._entries -= first in awaited
                awaited[first] = 1

    def give_up(self, pattern: str) -> None:
        """Forget the publishers behind a switch that have not acknowledged a pattern: they may have gone."""
        silent = {source for source in self.awaited.get(pattern, ()) if source != self.pipe.path}
        self.publishers -= silent
        for each in list(self.awaited) if silent else ():
            awaited = self.awaited[each]
            for source in silent.intersection(awaited):
                del awaited[source]
                self._entries -= 1
            if not awaited:
                self._end(each)
        if not self.publishers:
            self.publishers.add(self.pipe.path)
            # It is still no publisher: subscriptions are repeated until one behind it answers.
            self.acknowledging = False

    def _count_down(self, pattern: str, source: bytes) -> None:
        awaited = self.awaited.get(pattern)
        if awaited is None or source not in awaited:
            return
        awaited[source] -= 1
        if not awaited[source]:
            del awaited[source]
            self._entries -= 1
        if not awaited:
            self._end(pattern)

    def _end(self, pattern: str) -> None:
        """Await no more acknowledgements of a pattern."""
        self._entries -= len(self.awaited.pop(pattern))
        self._unsubscribed.pop(pattern, None)
