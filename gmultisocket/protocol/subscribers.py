"""The subscribers of a Pub: who wants which topics, within limits, and without keeping the loop from others.

* What peers can make a Pub remember is bounded, for each pipe and for all: the number of patterns, and the memory that
  they take. A subscription over a limit is refused.
* When a pipe closes, its patterns leave the index in portions. Until then they match nothing: the pipe is not a peer
  any more.
* A peer may subscribe to one topic in so many ways, by wildcards, that each search for the topic takes long. This peer
  gets all publications from then on, as if it had subscribed to ``>``, until it has unsubscribed from everything. A Sub
  drops those that it has not subscribed to, as it does behind a switch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from gevent import Greenlet

from ..core.pipes.pipe import Pipe
from ..errors import snippet
from ..log import get_logger
from ..loop.yielding import yield_to_loop
from .subscriptions import REST, SEPARATOR, Subscriptions, check_topic
from .topiccache import TopicCache

__all__ = ["Limits", "Peer", "Subscriber", "Subscribers"]

logger = get_logger("gmultisocket.protocol")

_length = Struct(">H")

#: Patterns that are removed from the index before others run.
_PORTION: Final = 64
#: Nodes of the index that a search may visit. For more, the peer to which most of them are due gets everything.
_MAX_VISITS: Final = 1024
#: What a token, a byte of a pattern, and a subscriber take in memory, in bytes, about. A byte is kept three times: in
#: the pattern, in its tokens, and in an acknowledgement that waits.
_TOKEN_COST: Final = 256
_BYTE_COST: Final = 3
_SUBSCRIBER_COST: Final = 512


class Limits:
    """The options that bound what a Pub remembers; see ``protocol.pubsub.*``. 0 is no limit for the totals."""

    __slots__ = ("max_length", "max_memory", "max_patterns", "max_total_memory", "max_total_patterns")

    def __init__(self) -> None:
        self.max_length = 0
        self.max_patterns = 0
        self.max_memory = 0
        self.max_total_patterns = 0
        self.max_total_memory = 0


class Subscriber:
    """One subscriber of a Pub: one path back through one pipe.

    Attributes:
        source: the path.
        patterns: what it has subscribed to.
        memory: what it and its patterns take, in bytes, about.
        repeats: whether it repeats its subscriptions while it lives: it has said so, or has repeated one twice.
        silent_checks: checks since a subscription came.
    """

    __slots__ = ("_repetitions", "memory", "patterns", "silent_checks", "source")

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.patterns: set[str] = set()
        self.memory = _SUBSCRIBER_COST + len(source)
        self._repetitions = 0
        self.silent_checks = 0

    @property
    def repeats(self) -> bool:
        return self._repetitions > 1

    def repeat(self, count: int = 1) -> None:
        """Count that it has repeated a subscription."""
        self._repetitions += count


class _Leaving:
    """Patterns that are in the index and must be removed.

    Attributes:
        pipe: the pipe that wanted them.
        source: the subscriber.
        patterns: the patterns.
        memory: what they take, in bytes, about; 0 if that is still counted elsewhere.
    """

    __slots__ = ("memory", "patterns", "pipe", "source")

    def __init__(self, pipe: Pipe, subscriber: Subscriber, memory: int) -> None:
        self.pipe = pipe
        self.source = subscriber.source
        self.patterns = list(subscriber.patterns)
        self.memory = memory


class Peer:
    """A pipe of a Pub, and the subscribers behind it.

    Attributes:
        pipe: the pipe.
        subscribers: by their source.
        count: the number of their patterns, all together.
        memory: what they take, in bytes, about.
        refused: whether a subscription was refused since the last look for silent subscribers.
        takes_all: whether it gets all publications. Its patterns are not in the index then.
    """

    __slots__ = ("count", "memory", "pipe", "refused", "subscribers", "takes_all")

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.subscribers: dict[bytes, Subscriber] = {}
        self.count = 0
        self.memory = 0
        self.refused = False
        self.takes_all = False

    def behind_switch(self) -> list[bytes]:
        """Return the sources of the subscribers that are not the peer itself."""
        return [source for source in self.subscribers if source != self.pipe.path]

    @property
    def is_switch(self) -> bool:
        """Whether there is such a subscriber."""
        return any(source != self.pipe.path for source in self.subscribers)


class Subscribers:
    """The subscribers of one Pub.

    Args:
        spawn: the protocol's ``_spawn``.
        forget_acknowledgement: called as ``forget_acknowledgement(pipe, source, pattern)`` for each subscription that
            ends. Must not block.

    Attributes:
        peers: by pipe id.
        limits: see :class:`Limits`.
        topics: the topics that were published, and who wants them. Has no closed pipes.
        count: the number of subscriptions.
        memory: what all patterns take that are remembered or not removed yet, in bytes, about.
        relieved: how often a peer was given everything.
    """

    def __init__(
        self,
        spawn: Callable[..., Greenlet[..., Any]],
        forget_acknowledgement: Callable[[Pipe, bytes, str], object],
    ) -> None:
        self._spawn = spawn
        self._forget_acknowledgement = forget_acknowledgement
        self._index: Subscriptions[Pipe] = Subscriptions()
        self.peers: dict[int, Peer] = {}
        self.limits = Limits()
        self.topics: TopicCache[Pipe] = TopicCache()
        self.count = 0
        self.memory = 0
        self.relieved = 0
        self._leaving: deque[_Leaving] = deque()
        self._remover: Greenlet[..., Any] | None = None

    # Searching

    def find(self, topic: str) -> tuple[bytes, set[Pipe]]:
        """Return what a publication begins with, and the pipes that it goes to; both are remembered.

        Raises:
            BadTopic: it is not a topic.
        """
        encoded = check_topic(topic)
        pipes = self._index.match(topic)
        if self._index.visits > _MAX_VISITS and (relieved := self._relieve(topic)) is not None:
            pipes.add(relieved)
        if self._leaving:
            pipes = {pipe for pipe in pipes if pipe.id in self.peers}
        return self.topics.add(topic, _length.pack(len(encoded)) + encoded, pipes)

    def _relieve(self, topic: str) -> Pipe | None:
        """Send everything to the peer that makes the search for a topic longest. Return its pipe, if there is one."""
        pipe = self._index.crowd(topic)
        peer = self.peers.get(pipe.id) if pipe is not None else None
        if peer is None or peer.takes_all:
            return None
        logger.log(
            logging.DEBUG if self.relieved else logging.WARNING,
            "pipe %d to %s subscribes to one topic in too many ways: it gets all publications",
            peer.pipe.id,
            snippet(peer.pipe.peer_address),
        )
        self.relieved += 1
        peer.takes_all = True
        self._index.add(REST, peer.pipe)
        self.topics.changed(REST, peer.pipe, True)
        self._leave([_Leaving(peer.pipe, subscriber, 0) for subscriber in peer.subscribers.values()])
        return peer.pipe

    # Subscribing

    def subscribe(self, peer: Peer, pattern: str, source: bytes, size: int) -> Subscriber | None:
        """Add or repeat a subscription.

        Args:
            peer: the pipe that it came by.
            pattern: must be valid.
            source: the path back.
            size: of the pattern, in bytes.

        Returns:
            The subscriber; None if the subscription is refused.
        """
        subscriber = peer.subscribers.get(source)
        if subscriber is not None:
            subscriber.silent_checks = 0
            if pattern in subscriber.patterns:
                subscriber.repeat()
                return subscriber
        new = Subscriber(source) if subscriber is None else subscriber
        cost = _cost(pattern)
        if size > self.limits.max_length:
            return None
        if self._is_full(peer, cost if subscriber is not None else cost + new.memory):
            peer.refused = True
            return None
        if subscriber is None:
            peer.subscribers[source] = new
            self._charge(peer, 0, new.memory)
        new.patterns.add(pattern)
        new.memory += cost
        self._charge(peer, 1, cost)
        if not peer.takes_all:
            self._index.add(pattern, peer.pipe)
            self.topics.changed(pattern, peer.pipe, True)
        return new

    def promise_repeats(self, peer: Peer, source: bytes) -> None:
        """Record that a subscriber, if there is one, repeats its subscriptions while it lives."""
        subscriber = peer.subscribers.get(source)
        if subscriber is not None:
            subscriber.silent_checks = 0
            subscriber.repeat(2)

    def _is_full(self, peer: Peer, cost: int) -> bool:
        """Return whether one more pattern is too much."""
        limits = self.limits
        return (
            peer.count >= limits.max_patterns
            or peer.memory + cost > limits.max_memory
            or 0 < limits.max_total_patterns <= self.count
            or 0 < limits.max_total_memory < self.memory + cost
        )

    def unsubscribe(self, peer: Peer, pattern: str, source: bytes) -> None:
        """Remove a subscription, if there is one."""
        subscriber = peer.subscribers.get(source)
        if subscriber is None or pattern not in subscriber.patterns:
            return
        subscriber.patterns.remove(pattern)
        cost = _cost(pattern)
        subscriber.memory -= cost
        self._charge(peer, -1, -cost)
        self._forget_acknowledgement(peer.pipe, source, pattern)
        if not peer.takes_all:
            self._index.remove(pattern, peer.pipe)
            self.topics.changed(pattern, peer.pipe, False)
        if not subscriber.patterns:
            del peer.subscribers[source]
            self._charge(peer, 0, -subscriber.memory)
            self._take_all_no_more(peer)

    def _charge(self, peer: Peer, count: int, memory: int) -> None:
        peer.count += count
        peer.memory += memory
        self.count += count
        self.memory += memory

    def _take_all_no_more(self, peer: Peer) -> None:
        """Send a peer only what it subscribes to from now on, if it had everything and has no subscription left."""
        if peer.takes_all and not peer.subscribers:
            peer.takes_all = False
            self._index.remove(REST, peer.pipe)
            self.topics.changed(REST, peer.pipe, False)

    # Subscribers that go

    def add_pipe(self, pipe: Pipe) -> None:
        """Add a peer."""
        self.peers[pipe.id] = Peer(pipe)

    def remove_pipe(self, pipe: Pipe) -> None:
        """Remove a peer. Nothing goes to it from now on."""
        peer = self.peers.pop(pipe.id, None)
        if peer is None or not peer.count:
            return
        self.topics.forget_key(pipe)
        self.count -= peer.count
        if peer.takes_all:
            self._index.remove(REST, pipe)
            self.memory -= peer.memory
        else:
            self._leave([_Leaving(pipe, subscriber, subscriber.memory) for subscriber in peer.subscribers.values()])

    def remove_subscriber(self, peer: Peer, source: bytes) -> None:
        """Remove one subscriber behind a switch. Its pipe may get a few more publications for it."""
        subscriber = peer.subscribers.pop(source)
        count = len(subscriber.patterns)
        peer.count -= count
        peer.memory -= subscriber.memory
        self.count -= count
        if peer.takes_all:
            self.memory -= subscriber.memory
            for pattern in subscriber.patterns:
                self._forget_acknowledgement(peer.pipe, source, pattern)
            self._take_all_no_more(peer)
        else:
            self._leave([_Leaving(peer.pipe, subscriber, subscriber.memory)])

    def _leave(self, leaving: list[_Leaving]) -> None:
        """Remove patterns from the index, all at once or, if there are many, in portions."""
        self._leaving.extend(leaving)
        if self._remover is None:
            self._remove_some()
            if self._leaving:
                self._remover = self._spawn(self._remove_rest)

    def _remove_rest(self) -> None:
        """Remove patterns from the index until none of those that have gone is left (a greenlet while there are)."""
        try:
            while self._leaving:
                yield_to_loop()
                self._remove_some()
        finally:
            self._remover = None

    def _remove_some(self) -> None:
        """Remove a portion of patterns from the index."""
        for _ in range(_PORTION):
            if not self._leaving:
                return
            leaving = self._leaving[0]
            pipe, source = leaving.pipe, leaving.source
            pattern = leaving.patterns.pop()
            self._index.remove(pattern, pipe)
            peer = self.peers.get(pipe.id)
            if peer is not None:
                self.topics.changed(pattern, pipe, False)
                again = peer.subscribers.get(source)
                if again is None or pattern not in again.patterns:
                    self._forget_acknowledgement(pipe, source, pattern)
            if not leaving.patterns:
                self.memory -= leaving.memory
                self._leaving.popleft()


def _cost(pattern: str) -> int:
    """Return the memory that a pattern takes, in bytes, about."""
    return _TOKEN_COST * (1 + pattern.count(SEPARATOR)) + _BYTE_COST * len(pattern)
