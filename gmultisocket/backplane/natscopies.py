"""Which copy of another program's message counts, when NATS sends one for each subscription that matches.

Such a message has no number. The copy that counts is that of the *owner*, the oldest subscription that matches the
topic. When the owner is left, the server ends it between two messages, and this side does not know which, until a PONG
tells that it has happened. Meanwhile what comes by the *heir*, the next subscription that matches, is held. Then those
held messages count that the owner has not brought.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..protocol.subscriptions import Subscriptions
from .brokertopics import remember

__all__ = ["Copies"]

#: The id of a subscription.
Sid = bytes
#: A topic and a content.
Message = tuple[str, bytes]


class Copies:
    """Finds the one copy of a message that counts. Its index is made when another program's first message comes."""

    __slots__ = ("_brought", "_held", "_index", "_late", "_leaving", "_owners", "_sids")

    def __init__(self) -> None:
        #: The patterns of all subscriptions, until it is confirmed that they have ended.
        self._sids: dict[Sid, str] = {}
        self._index: Subscriptions[int] | None = None
        self._leaving: set[int] = set()
        #: By topic: the owner, and its heir while it is left. b"" for none.
        self._owners: dict[str, tuple[Sid, Sid]] = {}
        #: What heirs have brought, and what the owners have meanwhile: how often.
        self._held: list[Message] = []
        self._brought: Counter[Message] = Counter()
        #: What was brought by an owner that is gone, and whose copy by the heir is still on its way.
        self._late: Counter[Message] = Counter()

    def add(self, pattern: str, sid: Sid) -> None:
        """A subscription begins."""
        self._sids[sid] = pattern
        if self._index is not None:
            self._index.add(pattern, int(sid))
        self._owners.clear()

    def leave(self, sids: Iterable[Sid]) -> None:
        """The server is told to end subscriptions."""
        self._leaving.update(map(int, sids))
        self._owners.clear()

    def end(self, sids: Sequence[Sid]) -> list[Message]:
        """The server has ended subscriptions. Return the held messages that count, in their order."""
        if not sids:
            return []
        for sid in sids:
            pattern = self._sids.pop(sid)
            if self._index is not None:
                self._index.remove(pattern, int(sid))
            self._leaving.discard(int(sid))
        self._owners.clear()
        if self._leaving:
            return []
        counting = []
        for message in self._held:
            if self._brought[message] > 0:
                self._brought[message] -= 1
            else:
                counting.append(message)
        self._held.clear()
        self._late = +self._brought
        self._brought.clear()
        return counting

    def settle(self) -> None:
        """Something was confirmed that began after the last end: no copy is on its way any more."""
        self._late.clear()

    def counts(self, sid: Sid, topic: str, content: bytes) -> bool:
        """Return whether a message counts now."""
        owner, heir = self._owners.get(topic) or self._find(topic)
        if sid == owner:
            if self._late and self._late[topic, content] > 0:
                self._late[topic, content] -= 1
                return False
            if heir:
                self._brought[topic, content] += 1
            return True
        if sid == heir:
            self._held.append((topic, content))
        return False

    def _find(self, topic: str) -> tuple[Sid, Sid]:
        """Return the owner of a topic and its heir, and remember them."""
        if self._index is None:
            self._index = Subscriptions()
            for sid, pattern in self._sids.items():
                self._index.add(pattern, int(sid))
        found = self._index.match(topic)
        owner = min(found, default=0)
        heir = min(found - self._leaving, default=0) if owner in self._leaving else 0
        pair = b"%d" % owner, b"%d" % heir if heir else b""
        remember(self._owners, topic, pair)
        return pair
