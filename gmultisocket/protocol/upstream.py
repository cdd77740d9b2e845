"""What a Sub remembers for each pipe: which subscriptions were sent to the publishers behind it, and their answers.

Each 0x01 gets one answer from each publisher: 0x02, or 0x03 if it refuses. With a 0x05 in front, it may be 0x06
instead, and that answers everything that was asked before. The kinds of messages are in
:mod:`~gmultisocket.protocol.pubsubwire`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import islice

from ..core.pipes.pipe import Pipe
from ..wire import CONTROL, TO_ALL, TO_DEST, Message
from .outbox import Outbox
from .pubsubwire import ASK, REPEATS, SUBSCRIBE, UNSUBSCRIBE

__all__ = ["Upstream", "control"]

#: Publishers that are remembered behind one switch.
_MAX_PUBLISHERS = 1024
#: Acknowledgements that are awaited, counted for each pattern and publisher. With more, each further pattern waits for
#: one publisher.
_MAX_AWAITED = 65536
#: Refusals that are remembered, counted for each pattern and publisher.
_MAX_REFUSALS = 16384
#: Unsubscribed patterns whose acknowledgements are still counted.
_MAX_UNSUBSCRIBED = 1024


def control(content: bytes, destination: bytes = b"") -> Message:
    """Return a control message: to all, or along a path."""
    return Message(CONTROL | (TO_DEST if destination else TO_ALL), destination=destination, content=content)


class Upstream:
    """The publishers behind one pipe of a Sub.

    Args:
        pipe: the pipe.
        outbox: of the Sub.
        ask: called as ``ask(pattern, pipe id)``: returns the 0x05 to send before a subscription, b"" for none.

    Attributes:
        pipe: the pipe.
        publishers: the sources of the known publishers. Until an acknowledgement has come, this is the peer itself.
        awaited: by pattern and publisher: the number of answers that are still to come.
        refusals: by pattern and publisher: why the publisher has refused or revoked it. It is not asked for it again.
        unsent: subscriptions that are sent later, because there are many; and whether a 0x05 goes before. (Not a dict:
            the more keys were removed from its front, the longer it takes to find its first key.)
        acknowledging: whether an answer of any of these publishers has come.
    """

    __slots__ = ("_ask", "_entries", "_outbox", "_overdue", "_refusals", "_unsubscribed", "acknowledging", "awaited",
                 "pipe", "publishers", "refusals", "unsent")  # fmt: skip

    def __init__(self, pipe: Pipe, outbox: Outbox, ask: Callable[[str, int], bytes]) -> None:
        self.pipe = pipe
        self._outbox = outbox
        self._ask = ask
        self.publishers = {pipe.path}
        self.awaited: dict[str, dict[bytes, int]] = {}
        #: The number of all publishers in all of ``awaited``.
        self._entries = 0
        self.refusals: dict[str, dict[bytes, str]] = {}
        self._refusals = 0
        #: Patterns in ``awaited`` whose answers did not come in time. They may never come.
        self._overdue: set[str] = set()
        self.unsent: OrderedDict[str, bool] = OrderedDict()
        self.acknowledging = False
        #: Patterns that were unsubscribed since they were sent: nobody waits for their acknowledgements.
        self._unsubscribed: dict[str, None] = {}

    @property
    def direct(self) -> bool:
        """Whether the peer is known to be a publisher, not a switch."""
        return self.acknowledging and self.pipe.path in self.publishers

    def awaits(self, pattern: str) -> bool:
        """Return whether an answer for a pattern is to come."""
        return pattern in self.awaited or pattern in self.unsent

    def has_sent(self, pattern: str) -> bool:
        """Return whether a subscription has left."""
        return pattern not in self.unsent and not self._is_pending(pattern)

    def refusal(self, pattern: str) -> str | None:
        """Return why a publisher refuses a pattern, None if none does."""
        return next(iter(self.refusals.get(pattern, {}).values()), None)

    def subscribe_all(self, patterns: Iterable[str], ask: bool) -> None:
        """Send subscriptions, each with a 0x05 if ``ask``, by calls of :meth:`subscribe_some`."""
        before = self.unsent
        self.unsent = OrderedDict((pattern, ask or before.get(pattern, False)) for pattern in patterns)

    def ask_for(self, patterns: Iterable[str]) -> None:
        """Send a 0x05 before those of the unsent subscriptions that have these patterns."""
        for pattern in patterns:
            if pattern in self.unsent:
                self.unsent[pattern] = True

    def subscribe_some(self, count: int) -> bool:
        """Send at most ``count`` of the unsent subscriptions. Return whether there are more."""
        for _ in range(min(count, len(self.unsent))):
            self.subscribe(*self.unsent.popitem(last=False))
        return bool(self.unsent)

    def subscribe(self, pattern: str, ask: bool = True) -> None:
        """Send a subscription, unless one is about to leave; before it the 0x05, if ``ask`` and there is one."""
        question = self._ask(pattern, self.pipe.id) if ask else b""
        if self._is_pending(pattern) and not question:
            return
        content = SUBSCRIBE + pattern.encode()
        if pattern in self.refusals:
            # To those that have not refused it. A new publisher asks for it, see Askers.
            for source in self.publishers - self.refusals[pattern].keys():
                self._post(pattern, source, question, content)
                self.expect(pattern, source)
            return
        again = pattern in self.awaited and pattern not in self._unsubscribed
        self._unsubscribed.pop(pattern, None)
        self._post(pattern, b"", question, content)
        self.awaited.setdefault(pattern, {})
        # A peer may make publishers up.
        many = self._entries + len(self.publishers) > _MAX_AWAITED
        for source in islice(self.publishers, 1) if many else self.publishers:
            self._expect(pattern, source, again)

    def _post(self, pattern: str, source: bytes, question: bytes, content: bytes) -> None:
        """Post a subscription, and before it a 0x05 if there is one; to all, or along a path."""
        key: Hashable = (source, pattern) if source else pattern
        if question:
            # Not in the place of an unsent message: it would come behind that.
            self._outbox.forget(self.pipe, key)
            self._outbox.forget(self.pipe, (ASK, key))
            self._outbox.post(self.pipe, (ASK, key), control(question, source))
        self._outbox.post(self.pipe, key, control(content, source))

    def subscribe_again(self, pattern: str) -> None:
        """Send a subscription again if a publisher has refused it, or has not answered in time."""
        overdue = self._end_overdue(pattern)
        if self._forget_refusals(pattern) or overdue:
            self.subscribe(pattern)

    def expect(self, pattern: str, source: bytes) -> None:
        """Expect an answer of one publisher: a subscription is sent to it alone."""
        if source in self.publishers and self._entries < _MAX_AWAITED:
            self._expect(pattern, source, again=True)

    def _expect(self, pattern: str, source: bytes, again: bool) -> None:
        """Expect one more answer. Repetitions may be answered together, so that one answer to them is enough."""
        awaited = self.awaited.setdefault(pattern, {})
        if source not in awaited:
            self._entries += 1
            awaited[source] = 1
        elif not again:
            awaited[source] += 1

    def promise_repeats(self) -> None:
        """Send, behind all subscriptions until now, that they are repeated. Needed again after the last one has ended.

        Without it a publisher behind a switch could not distinguish a Sub that died at once from one that never repeats
        itself.
        """
        self._outbox.forget(self.pipe, REPEATS)
        self._outbox.post(self.pipe, REPEATS, control(REPEATS))

    def unsubscribe(self, pattern: str) -> None:
        """Send the end of a subscription."""
        self.unsent.pop(pattern, None)
        if self._is_pending(pattern):
            # It is replaced, so no acknowledgement comes for it.
            for source in self.publishers:
                self._count_down(pattern, source)
        for source in self.publishers if self._forget_refusals(pattern) else ():
            self._outbox.forget(self.pipe, (source, pattern))
            self._outbox.forget(self.pipe, (ASK, (source, pattern)))
        self._outbox.forget(self.pipe, (ASK, pattern))
        self._outbox.forget(self.pipe, pattern)
        # With a key of its own: a subscription that follows at once is a new one, and a publisher must see that.
        self._outbox.post(self.pipe, (UNSUBSCRIBE, pattern), control(UNSUBSCRIBE + pattern.encode()))
        self._end_overdue(pattern)
        if pattern in self.awaited:
            # Still counted, so that a later subscription does not take these acknowledgements for its own. But at most
            # this number of patterns: the peer may be one that never answers.
            self._unsubscribed[pattern] = None
            if len(self._unsubscribed) > _MAX_UNSUBSCRIBED:
                self._end(next(iter(self._unsubscribed)))

    def _end_overdue(self, pattern: str) -> bool:
        """Stop waiting for the answers for a pattern if they are overdue. Return whether they are."""
        overdue = pattern in self._overdue
        self._overdue.discard(pattern)
        if overdue and pattern in self.awaited:
            self._end(pattern)
        return overdue

    def _is_pending(self, pattern: str) -> bool:
        return self._outbox.pending(self.pipe, pattern) is not None

    def acknowledge(self, pattern: str, source: bytes) -> None:
        """Count an acknowledgement that a publisher has sent."""
        self._answered(pattern, source)
        self._accepted(pattern, source)

    def replay_begins(self, pattern: str, source: bytes) -> bool:
        """Record that a publisher has answered the last 0x05. Return False if there are too many publishers."""
        self._meet(source)
        awaited = self.awaited.get(pattern)
        if awaited is not None and awaited.pop(source, 0):
            self._entries -= 1
            if not awaited:
                self._end(pattern)
        self._accepted(pattern, source)
        return source in self.publishers

    def _accepted(self, pattern: str, source: bytes) -> None:
        refused = self.refusals.get(pattern)
        if refused is not None and refused.pop(source, None) is not None:
            self._refusals -= 1
            if not refused:
                del self.refusals[pattern]

    def refuse(self, pattern: str, source: bytes, reason: str) -> bool:
        """Record that a publisher has refused or revoked a pattern that is subscribed to.

        Returns:
            False if this is the answer to an earlier subscription than the present one.
        """
        self._answered(pattern, source)
        if source in self.awaited.get(pattern, ()):
            return False
        if source in self.publishers:
            refused = self.refusals.setdefault(pattern, {})
            self._refusals += source not in refused
            refused[source] = reason
            while self._refusals > _MAX_REFUSALS and (oldest := next(iter(self.refusals))) != pattern:
                self._forget_refusals(oldest)
        return True

    def _forget_refusals(self, pattern: str) -> bool:
        """Forget who has refused a pattern. Return whether anyone had."""
        refused = self.refusals.pop(pattern, {})
        self._refusals -= len(refused)
        return bool(refused)

    def _answered(self, pattern: str, source: bytes) -> None:
        """Count an answer."""
        self._meet(source)
        self._count_down(pattern, source)

    def _meet(self, source: bytes) -> None:
        """Record that there is a publisher."""
        self.acknowledging = True
        if source not in self.publishers and len(self.publishers) < _MAX_PUBLISHERS:
            if self.pipe.path in self.publishers:
                self._is_switch(source)
            self.publishers.add(source)

    def _is_switch(self, first: bytes) -> None:
        """The peer is a switch: expect acknowledgements from the first publisher behind it, not from the peer."""
        self.publishers.discard(self.pipe.path)
        for awaited in self.awaited.values():
            if awaited.pop(self.pipe.path, 0):
                # One, however often the subscription was sent: the publisher got none that was sent before it came.
                self._entries -= first in awaited
                awaited[first] = 1

    def give_up(self, pattern: str) -> None:
        """Forget the publishers behind a switch that have not answered for a pattern: they may have gone."""
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
        # Also if nothing is awaited any more: the next subscribe() asks again.
        self._overdue.add(pattern)

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
        """Stop waiting for answers for a pattern."""
        self._entries -= len(self.awaited.pop(pattern))
        self._overdue.discard(pattern)
        self._unsubscribed.pop(pattern, None)
