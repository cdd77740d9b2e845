"""The subscribers of a Pub: who wants which topics, within limits, and without keeping the loop from others.

* What peers can make a Pub remember is bounded, for each pipe and for all: the number of patterns, and the memory that
  they take. A subscription over a limit is refused.
* When a pipe closes, its patterns leave the index in portions. Until then they match nothing: the pipe is not a peer
  any more.
* A peer may subscribe to one topic in so many ways, by wildcards, that each search for the topic takes long. This peer
  gets all publications from then on, as if it had subscribed to ``>``, until it has unsubscribed from everything. A Sub
  drops those that it has not subscribed to, as it does behind a switch. If subscribers have rights, it is removed
  instead.
* In the index, a subscriber is the pipe that it came by. If each subscriber gets its own copy, it is a
  :class:`~gmultisocket.protocol.rights.RemoteSub`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, Final

from gevent import Greenlet

from ..core.pipes.pipe import Pipe
from ..errors import snippet
from ..log import get_logger
from ..loop.yielding import yield_to_loop
from .interest import Arrivals, Interest
from .rights import RemoteSub
from .subscriptions import REST, SEPARATOR, Subscriptions, check_topic, matches, overlap
from .topiccache import TopicCache

__all__ = ["Limits", "Peer", "Subscriber", "Subscribers"]

logger = get_logger("gmultisocket.protocol")

_length = Struct(">H")

#: Patterns that are removed from the index before others run.
_PORTION: Final = 64
#: Patterns that are looked at, to find subscribers, before others run.
_CHECKED: Final = 1024
#: Nodes of the index that a search may visit. For more, the peer to which most of them are due gets everything.
_MAX_VISITS: Final = 1024
#: What a token, a byte of a pattern, and a subscriber take in memory, in bytes, about. A byte is kept three times: in
#: the pattern, in its tokens, and in an acknowledgement that waits.
_TOKEN_COST: Final = 256
_BYTE_COST: Final = 3
_SUBSCRIBER_COST: Final = 512


class Limits:
    """The options that bound what a Pub remembers; see ``protocol.pubsub.*``. 0 is no limit for the totals."""

    __slots__ = ("max_length", "max_memory", "max_patterns", "max_switch_patterns", "max_total_memory",
                 "max_total_patterns")  # fmt: skip

    def __init__(self) -> None:
        self.max_length = 0
        self.max_patterns = 0
        self.max_switch_patterns = 0
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
        key: of the subscriber in the index.
        source: the subscriber.
        patterns: the patterns.
        memory: what they take, in bytes, about; 0 if that is still counted elsewhere.
    """

    __slots__ = ("key", "memory", "patterns", "pipe", "source")

    def __init__(self, pipe: Pipe, key: Pipe | RemoteSub, subscriber: Subscriber, memory: int) -> None:
        self.pipe = pipe
        self.key = key
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
        removed: called with a subscriber that makes searches too long, and was removed for that. None if there are no
            rights, and it may have everything. Must not block.
        own_copies: each subscriber gets its own copy.

    Attributes:
        peers: by pipe id.
        limits: see :class:`Limits`.
        topics: the topics that were published, and who wants them. Has no closed pipes.
        count: the number of subscriptions.
        memory: what all patterns take that are remembered or not removed yet, in bytes, about.
        interest: is told of each subscription that begins or ends.
        arrivals: is told of each subscription that begins.
        relieved: how often a peer was given everything.
        own_copies: whether each subscriber gets its own copy.
    """

    def __init__(
        self,
        spawn: Callable[..., Greenlet[..., Any]],
        forget_acknowledgement: Callable[[Pipe, bytes, str], object],
        removed: Callable[[RemoteSub], object] | None = None,
        own_copies: bool = False,
    ) -> None:
        self._removed = removed
        self.own_copies = own_copies
        self._spawn = spawn
        self._forget_acknowledgement = forget_acknowledgement
        self._index: Subscriptions[Any] = Subscriptions()
        self.peers: dict[int, Peer] = {}
        self.limits = Limits()
        self.topics: TopicCache[Any] = TopicCache()
        self.interest = Interest(spawn)
        self.arrivals = Arrivals()
        self.count = 0
        self.memory = 0
        self.relieved = 0
        self._leaving: deque[_Leaving] = deque()
        self._remover: Greenlet[..., Any] | None = None

    # Searching

    def wanting(self, pattern: str) -> Iterator[RemoteSub]:
        """Find the subscribers that want a topic which a pattern matches. May block a little.

        Those that come meanwhile may be missing.
        """
        seen = 0
        for peer in [*self.peers.values()]:
            for subscriber in [*peer.subscribers.values()]:
                seen += len(subscriber.patterns)
                if any(overlap(pattern, each) for each in subscriber.patterns):
                    yield RemoteSub(peer.pipe, subscriber.source)
                if seen >= _CHECKED:
                    seen = 0
                    yield_to_loop()

    def patterns(self) -> Iterator[str]:
        """Return the pattern of each subscription whose end ``interest`` will be told."""
        for peer in self.peers.values():
            for subscriber in peer.subscribers.values():
                yield from subscriber.patterns
        for leaving in self._leaving:
            if leaving.memory:
                yield from leaving.patterns

    def wants(self, pipe: Pipe, source: bytes, topic: str) -> bool:
        """Return whether a subscriber is there, and wants a topic."""
        peer = self.peers.get(pipe.id)
        subscriber = None if peer is None else peer.subscribers.get(source)
        return subscriber is not None and any(matches(pattern, topic) for pattern in subscriber.patterns)

    def _key(self, pipe: Pipe, source: bytes) -> Pipe | RemoteSub:
        """Return what stands for a subscriber in the index."""
        return RemoteSub(pipe, source) if self.own_copies else pipe

    def find(self, topic: str) -> tuple[bytes, set[Any]]:
        """Return what a publication begins with, and whom it goes to (pipes, or subscribers); both are remembered.

        Raises:
            BadTopic: it is not a topic.
        """
        encoded = check_topic(topic)
        keys = self._index.match(topic)
        if self._index.visits > _MAX_VISITS:
            if self._removed is not None:
                self._remove_crowd(topic, self._removed)
            elif (relieved := self._relieve(topic)) is not None:
                keys.add(relieved)
        if self._leaving:
            keys = self._without_gone(keys, topic)
        return self.topics.add(topic, _length.pack(len(encoded)) + encoded, keys)

    def _without_gone(self, keys: set[Any], topic: str) -> set[Any]:
        """Return those of the keys found in the index that want a topic, and have not gone."""
        if not self.own_copies:
            return {key for key in keys if key.id in self.peers}
        # A subscriber that has gone may have come again, with other rights than those of its patterns that are still
        # in the index.
        leaving = {each.key for each in self._leaving}
        return {key for key in keys if key not in leaving or self.wants(key.pipe, key.source, topic)}

    def _remove_crowd(self, topic: str, removed: Callable[[RemoteSub], object]) -> None:
        """Remove the subscriber that makes the search for a topic longest, if there is one."""
        key = self._index.crowd(topic)
        if key is None:
            return
        pipe = key.pipe if isinstance(key, RemoteSub) else key
        source = key.source if isinstance(key, RemoteSub) else pipe.path
        peer = self.peers.get(pipe.id)
        # One that was removed already may still have patterns in the index, and its pipe may still be open.
        if peer is not None and source in peer.subscribers:
            self.remove_subscriber(peer, source)
            removed(RemoteSub(pipe, source))

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
        self._leave([_Leaving(peer.pipe, peer.pipe, subscriber, 0) for subscriber in peer.subscribers.values()])
        return peer.pipe

    # Subscribing

    def subscribe(self, peer: Peer, pattern: str, source: bytes, size: int) -> Subscriber | str:
        """Add or repeat a subscription.

        Args:
            peer: the pipe that it came by.
            pattern: must be valid.
            source: the path back.
            size: of the pattern, in bytes.

        Returns:
            The subscriber; the reason if the subscription is refused.
        """
        subscriber = peer.subscribers.get(source)
        if subscriber is not None:
            subscriber.silent_checks = 0
            if pattern in subscriber.patterns:
                subscriber.repeat()
                return subscriber
        if reason := self.refusal(peer, pattern, source, size):
            return reason
        new = Subscriber(source) if subscriber is None else subscriber
        cost = _cost(pattern)
        if subscriber is None:
            peer.subscribers[source] = new
            self._charge(peer, 0, new.memory)
        new.patterns.add(pattern)
        new.memory += cost
        self._charge(peer, 1, cost)
        if not peer.takes_all:
            self._index.add(pattern, key := self._key(peer.pipe, source))
            self.topics.changed(pattern, key, True)
        self.interest.add(pattern)
        if self.arrivals.waiting:
            self.arrivals.add(peer.pipe, source, pattern)
        return new

    def promise_repeats(self, peer: Peer, source: bytes) -> None:
        """Record that a subscriber, if there is one, repeats its subscriptions while it lives."""
        subscriber = peer.subscribers.get(source)
        if subscriber is not None:
            subscriber.silent_checks = 0
            subscriber.repeat(2)

    def has(self, peer: Peer, pattern: str, source: bytes) -> bool:
        """Return whether there is a subscription."""
        subscriber = peer.subscribers.get(source)
        return subscriber is not None and pattern in subscriber.patterns

    def refusal(self, peer: Peer, pattern: str, source: bytes, size: int, undecided: int = 0) -> str:
        """Return why a new subscription is too much, "" if it is not.

        Args:
            peer: the pipe that it came by.
            pattern: must be valid.
            source: the path back.
            size: of the pattern, in bytes.
            undecided: the number of this pipe's other subscriptions that may be accepted later.
        """
        limits = self.limits
        if size > limits.max_length:
            return f"a pattern has at most {limits.max_length} bytes, and this one has {size}"
        direct = source == peer.pipe.path
        subscriber = peer.subscribers.get(source)
        own = 0 if subscriber is None else len(subscriber.patterns)
        if own + undecided * direct >= limits.max_patterns:
            return f"a subscriber has at most {limits.max_patterns} patterns"
        cost = _cost(pattern)
        if subscriber is None:
            cost += _SUBSCRIBER_COST + len(source)
        reason = self._is_full(peer, cost, limits.max_patterns if direct else limits.max_switch_patterns, undecided)
        if reason:
            peer.refused = True
        return reason

    def _is_full(self, peer: Peer, cost: int, most: int, undecided: int) -> str:
        limits = self.limits
        if peer.count + undecided >= most:
            return f"a pipe has at most {most} patterns"
        if peer.memory + cost > limits.max_memory:
            return "the patterns of this pipe take too much memory"
        if 0 < limits.max_total_patterns <= self.count:
            return "the publisher has too many subscriptions"
        if 0 < limits.max_total_memory < self.memory + cost:
            return "the publisher's subscriptions take too much memory"
        return ""

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
        self.interest.remove(pattern)
        if not peer.takes_all:
            self._index.remove(pattern, key := self._key(peer.pipe, source))
            self.topics.changed(pattern, key, False)
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
        if self.own_copies:
            self.topics.clear()
        else:
            self.topics.forget_key(pipe)
        self.count -= peer.count
        if peer.takes_all:
            self._index.remove(REST, pipe)
            self.memory -= peer.memory
            for subscriber in peer.subscribers.values():
                self._lose_interest(subscriber)
        else:
            self._leave(
                [
                    _Leaving(pipe, self._key(pipe, subscriber.source), subscriber, subscriber.memory)
                    for subscriber in peer.subscribers.values()
                ]
            )

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
            self._lose_interest(subscriber)
            self._take_all_no_more(peer)
        else:
            key = self._key(peer.pipe, source)
            if self.own_copies:
                self.topics.forget_key(key)
            self._leave([_Leaving(peer.pipe, key, subscriber, subscriber.memory)])

    def _lose_interest(self, subscriber: Subscriber) -> None:
        """Record the end of all subscriptions of one subscriber."""
        if self.interest:
            for pattern in subscriber.patterns:
                self.interest.remove(pattern)

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
            self._index.remove(pattern, leaving.key)
            if leaving.memory:
                self.interest.remove(pattern)
            peer = self.peers.get(pipe.id)
            if peer is not None:
                self.topics.changed(pattern, leaving.key, False)
                again = peer.subscribers.get(source)
                if again is None or pattern not in again.patterns:
                    self._forget_acknowledgement(pipe, source, pattern)
            if not leaving.patterns:
                self.memory -= leaving.memory
                self._leaving.popleft()


def _cost(pattern: str) -> int:
    """Return the memory that a pattern takes, in bytes, about."""
    return _TOKEN_COST * (1 + pattern.count(SEPARATOR)) + _BYTE_COST * len(pattern)
