"""Publish and subscribe: a Sub gets what any Pub publishes under the topics that it has subscribed to.

* Who talks to whom: any number of Pubs with any number of Subs, directly or through switches. A Sub subscribes to
  patterns at all Pubs that it is or will be connected to.
* On the wire: a publication is the topic's length (2 bytes, big-endian), the topic (UTF-8) and the payload, sent to
  all, by the pipes that have a subscriber behind them. A Sub sends control messages (flag 0x20) to all: 0x01 and a
  pattern to subscribe, 0x00 and a pattern to unsubscribe. A Pub answers each 0x01, also a repeated one, by 0x02 and the
  pattern, sent to its source.
* What is lost, and when: a Sub that reads too slowly, so that its pipe's queue at the Pub is full, misses publications.
  They are counted on that pipe (``overflow``), the first is logged, and other Subs are not affected.
  ``socket.send_overflow`` is ``drop_newest`` by default. A Sub never gets what is published while it is not connected.
  It does get what is published after ``subscribe(pattern, timeout)`` has returned.

The rules for topics and patterns are in :mod:`~gmultisocket.protocol.subscriptions`. A message that several patterns of
a Sub match comes once.

Through switches: a switch passes a Sub's control messages to every Pub behind it, and a publication to every peer at
its other side, so a Sub filters again what comes. A Pub distinguishes the subscribers behind one pipe by the path back
to them, and sends by the pipe until the last one has left. Nobody tells a Pub that a Sub behind a switch has died, nor
a Sub that a Pub has come behind one. So a Sub repeats its subscriptions there, every
``protocol.pubsub.refresh_interval``: it may take that long until a new Pub has them. A Pub forgets a Sub behind a
switch that has repeated its subscriptions and then been silent for ``protocol.pubsub.expiry``. A Sub that closes
unsubscribes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gevent import get_hub

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..errors import BadTopic, Closed, Timeout
from ..loop.periodic import Periodic
from ..loop.waiting import Deadline, WaitList
from ..options import Option, OptionValues, follow
from ..wire import SEND_TYPE_MASK, Message
from .base import ProtocolBase
from .outbox import Outbox
from .subscriptions import Subscriptions, check_pattern, check_topic
from .upstream import SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE, Upstream, control, read_control

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Pub", "Sub"]

_length = Struct(">H")

#: Topics that a Pub or a Sub remembers with their subscribers, until a subscription changes.
_MAX_TOPICS = 1024
#: Pipes that a Pub remembers for its topics, all together.
_MAX_REMEMBERED = 1 << 20
#: Checks in one expiry. A subscriber that more checks than this have found silent is forgotten. One check would not do:
#: it may be the first thing that runs after the process was stopped, before the messages of that time are read.
_EXPIRY_CHECKS = 3


class _Subscriber:
    """One subscriber of a Pub: one path back through one pipe.

    Attributes:
        patterns: what it has subscribed to.
        repeats: how often it has repeated a subscription. One that repeats goes on to do so while it lives.
        silent_checks: checks since a subscription came.
    """

    __slots__ = ("patterns", "repeats", "silent_checks")

    def __init__(self) -> None:
        self.patterns: set[str] = set()
        self.repeats = 0
        self.silent_checks = 0


class _Peer:
    """A pipe of a Pub, and the subscribers behind it.

    Attributes:
        pipe: the pipe.
        subscribers: by their source.
        count: the number of their patterns, all together.
    """

    __slots__ = ("count", "pipe", "subscribers")

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.subscribers: dict[bytes, _Subscriber] = {}
        self.count = 0

    def behind_switch(self) -> list[bytes]:
        """Return the sources of the subscribers that are not the peer itself."""
        return [source for source in self.subscribers if source != self.pipe.path]


class Pub(ProtocolBase):
    """Publishes. What a peer sends that is not a subscription is dropped and counted (``garbage``).

    Args:
        options: of the socket underneath, and ``protocol.pubsub.*``.
    """

    defaults = {"socket.send_overflow": "drop_newest"}
    fixed = {"socket.no_recv": False, "socket.no_send": False}
    instead = {"send": "publish()"}

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._index: Subscriptions[Pipe] = Subscriptions()
        self._peers: dict[int, _Peer] = {}
        #: Topic -> the bytes in front of the payload, and the pipes that it goes to. Has no closed pipes.
        self._groups: dict[str, tuple[bytes, tuple[Pipe, ...]]] = {}
        self._remembered = 0
        self._outbox = Outbox(self._core, self._spawn)
        self._expiry = Periodic(self._expiry_pause, self._expire, self._spawn)
        follow(self.options, self, self._copied)
        self._core.on_pipe(self._on_pipe)
        self._core.on_message(self._on_message)

    def _set_max_patterns(self, value: int) -> None:
        self._max_patterns = value

    def _set_max_length(self, value: int) -> None:
        self._max_length = value

    _copied: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        opts.protocol.pubsub.max_patterns: _set_max_patterns,
        opts.protocol.pubsub.max_pattern_length: _set_max_length,
    }

    def publish(self, topic: str, content: Buffer, timeout: float | None = None) -> int:
        """Send to every pipe that has a subscriber to the topic behind it.

        Does not wait for any of them, unless ``socket.send_overflow`` is ``block``.

        Args:
            topic: e.g. ``"orders.eu.created"``.
            content: bytes-like.
            timeout: seconds, for ``block``.

        Returns:
            The number of pipes that it went to, without those whose queue is full.

        Raises:
            BadTopic: it is not a topic.
            Timeout, MessageTooLong, Closed: as ``Socket.send_all`` does.
        """
        head, pipes = self._groups.get(topic) or self._find(topic)
        if type(content) is not bytes:
            content = self._core.check_content(content)
        return self._core.send_group(pipes, head + content, timeout)

    def reach(self, topic: str) -> int:
        """Return the number of pipes that a publication under the topic would go to now. At 0, you need not make one.

        Raises:
            BadTopic: it is not a topic.
        """
        self._core.check()
        return len((self._groups.get(topic) or self._find(topic))[1])

    @property
    def subscriptions(self) -> int:
        """The number of subscriptions: patterns, counted for each subscriber."""
        return len(self._index)

    def _find(self, topic: str) -> tuple[bytes, tuple[Pipe, ...]]:
        encoded = check_topic(topic)
        if len(self._groups) >= _MAX_TOPICS or self._remembered > _MAX_REMEMBERED:
            self._forget_groups()
        pipes = tuple(self._index.match(topic))
        self._remembered += len(pipes)
        group = self._groups[topic] = (_length.pack(len(encoded)) + encoded, pipes)
        return group

    def _forget_groups(self) -> None:
        self._groups.clear()
        self._remembered = 0

    # Callbacks of the core

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "add":
            self._peers[pipe.id] = _Peer(pipe)
            return
        peer = self._peers.pop(pipe.id, None)
        if peer is not None:
            for source in list(peer.subscribers):
                self._remove_subscriber(peer, source)

    def _on_message(self, message: Message) -> bool:
        read = read_control(message)
        if read is None:
            self._drop(message, "garbage")
            return True
        peer = self._peers.get(message.pipe_id)
        if peer is None:
            # Its pipe has closed.
            return True
        kind, pattern = read
        if kind == SUBSCRIBE:
            self._subscribe(peer, pattern, message)
        elif kind == UNSUBSCRIBE:
            self._unsubscribe(peer, pattern, message.source)
        else:
            self._drop(message, "garbage")
        return True

    def _subscribe(self, peer: _Peer, pattern: str, message: Message) -> None:
        source = message.source
        subscriber = peer.subscribers.get(source)
        if subscriber is not None:
            subscriber.silent_checks = 0
        if subscriber is not None and pattern in subscriber.patterns:
            subscriber.repeats += 1
        elif len(message.content) > 1 + self._max_length or peer.count >= self._max_patterns:
            self._drop(message, "refused subscription")
            return
        else:
            if subscriber is None:
                subscriber = peer.subscribers[source] = _Subscriber()
                self._start_expiry(peer, source)
            subscriber.patterns.add(pattern)
            peer.count += 1
            self._index.add(pattern, peer.pipe)
            self._forget_groups()
        # At most one acknowledgement waits for each subscription, so the limit of subscriptions bounds them.
        self._outbox.post(peer.pipe, (source, pattern), control(SUBSCRIBED, message.content[1:], source))

    def _unsubscribe(self, peer: _Peer, pattern: str, source: bytes) -> None:
        subscriber = peer.subscribers.get(source)
        if subscriber is None or pattern not in subscriber.patterns:
            return
        self._remove(peer, source, subscriber, pattern)
        if not subscriber.patterns:
            del peer.subscribers[source]

    def _remove_subscriber(self, peer: _Peer, source: bytes) -> None:
        subscriber = peer.subscribers.pop(source)
        for pattern in list(subscriber.patterns):
            self._remove(peer, source, subscriber, pattern)

    def _remove(self, peer: _Peer, source: bytes, subscriber: _Subscriber, pattern: str) -> None:
        subscriber.patterns.remove(pattern)
        peer.count -= 1
        self._index.remove(pattern, peer.pipe)
        self._outbox.forget(peer.pipe, (source, pattern))
        self._forget_groups()

    # Subscribers that died behind a switch

    def _start_expiry(self, peer: _Peer, source: bytes) -> None:
        if source != peer.pipe.path and self.options.get(opts.protocol.pubsub.expiry):
            self._expiry.start()

    def _expiry_pause(self) -> float:
        """Return the seconds until the next check for silent subscribers, 0 if none is behind a switch."""
        expiry: float = self.options.get(opts.protocol.pubsub.expiry)
        return expiry / _EXPIRY_CHECKS if any(peer.behind_switch() for peer in self._peers.values()) else 0

    def _expire(self, elapsed: float, late: float) -> None:
        for peer in self._peers.values():
            self._expire_behind(peer)

    def _expire_behind(self, peer: _Peer) -> None:
        """Remove the subscribers behind a switch that have been silent for too long."""
        for source in peer.behind_switch():
            subscriber = peer.subscribers[source]
            subscriber.silent_checks += 1
            # One that never repeated a subscription may live: it is removed only if others need its place.
            expires = subscriber.repeats > 1 or peer.count >= self._max_patterns
            if subscriber.silent_checks > _EXPIRY_CHECKS and expires:
                self._remove_subscriber(peer, source)


class Sub(ProtocolBase):
    """Subscribes, and receives what is published. Iterable: ``for topic, content in sub``.

    A message of another protocol is dropped and counted (``garbage``), and so is a publication that this Sub has not
    subscribed to (``not subscribed``): another one behind the same switch has.

    Args:
        options: of the socket underneath, and ``protocol.pubsub.*``.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._patterns: dict[str, None] = {}
        self._index: Subscriptions[None] = Subscriptions()
        #: A topic's bytes -> the topic, or "" if it is not subscribed to.
        self._topics: dict[bytes, str] = {}
        #: By pipe id.
        self._upstreams: dict[int, Upstream] = {}
        self._outbox = Outbox(self._core, self._spawn)
        self._acknowledgements = WaitList(get_hub(), lambda: True)
        self._refresh = Periodic(self._refresh_pause, self._refresh_subscriptions, self._spawn)
        self._core.on_pipe(self._on_pipe)
        self._core.on_message(self._on_message)

    # Subscribing

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns that it has subscribed to, oldest first."""
        return tuple(self._patterns)

    def subscribe(self, pattern: str, timeout: float | None = None) -> None:
        """Subscribe to a pattern, at all publishers that are or will be connected.

        Without a timeout it does not block, and the subscription takes effect a little later. With one it blocks until
        the publishers that are connected now have acknowledged the subscription: what they publish from then on is
        received. Behind a switch, it waits for every publisher that has acknowledged one before, and at least one. To
        subscribe twice has no effect.

        Args:
            pattern: e.g. ``"orders.*.created"`` or ``"orders.>"``.
            timeout: seconds; None does not wait at all.

        Raises:
            BadTopic: it is not a pattern.
            Timeout: not all have acknowledged it in time. The subscription stays.
            Closed: it is closed.
        """
        self._check_open()
        check_pattern(pattern)
        if pattern not in self._patterns:
            self._patterns[pattern] = None
            self._index.add(pattern, None)
            self._topics.clear()
            for upstream in self._upstreams.values():
                upstream.subscribe(pattern)
            self._start_refresh()
        if timeout is not None:
            self._wait_acknowledged(pattern, timeout)

    def _wait_acknowledged(self, pattern: str, timeout: float) -> None:
        deadline = Deadline(timeout)
        asked = list(self._upstreams.values())
        while waiting := [one for one in asked if pattern in one.awaited and one.pipe.id in self._upstreams]:
            if pattern not in self._patterns:
                return
            if not self._acknowledgements.wait(deadline.left()):
                for upstream in waiting:
                    upstream.give_up(pattern)
                raise Timeout("subscribe", timeout)
            self._check_open()

    def unsubscribe(self, pattern: str) -> bool:
        """Unsubscribe from a pattern. Does not block; ``recv`` returns only what matches another pattern from now on.

        Returns:
            Whether it was subscribed to.
        """
        self._check_open()
        if pattern not in self._patterns:
            return False
        del self._patterns[pattern]
        self._index.remove(pattern, None)
        self._topics.clear()
        for upstream in self._upstreams.values():
            upstream.unsubscribe(pattern)
        self._acknowledgements.wake_all()
        return True

    def _check_open(self) -> None:
        self._core.check()
        if self._closing:
            raise Closed("Sub")

    # Receiving

    def recv(self, timeout: float | None = None) -> tuple[str, bytes]:
        """Return the topic and the content of the next publication. Blocks until there is one.

        Raises:
            Timeout: none came in time.
            Closed: it is closed, and everything that had arrived was received.
        """
        deadline: Deadline | None = None
        while True:
            message = self.socket.recv(timeout if deadline is None else deadline.left())
            end = 2 + _length.unpack_from(message)[0]
            topic = self._subscribed_topic(message[2:end])
            if topic:
                return topic, message[end:]
            # It was unsubscribed after the message came.
            deadline = deadline or Deadline(timeout)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Iterate over publications as they come; ends when it is closed and what had arrived was received."""
        while True:
            try:
                publication = self.recv()
            except Closed:
                return
            yield publication

    def _subscribed_topic(self, encoded: bytes) -> str | None:
        """Return the topic of its bytes, "" if it is not subscribed to, None if it is not a topic."""
        topic = self._topics.get(encoded)
        if topic is not None:
            return topic
        try:
            topic = encoded.decode()
            check_topic(topic)
        except (UnicodeDecodeError, BadTopic):
            return None
        if not self._index.match(topic):
            topic = ""
        if len(self._topics) >= _MAX_TOPICS:
            self._topics.clear()
        self._topics[encoded] = topic
        return topic

    # Callbacks of the core

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "add":
            upstream = self._upstreams[pipe.id] = Upstream(pipe, self._outbox)
            for pattern in self._patterns:
                upstream.subscribe(pattern)
            self._start_refresh()
        elif self._upstreams.pop(pipe.id, None) is not None:
            self._acknowledgements.wake_all()

    def _on_message(self, message: Message) -> bool:
        if message.flags & ~SEND_TYPE_MASK:
            self._on_control(message)
            return True
        content = message.content
        if len(content) > 2:
            end = 2 + _length.unpack_from(content)[0]
            topic = self._subscribed_topic(content[2:end]) if len(content) >= end else None
            if topic:
                return False
            if topic == "":
                self._core.count_drop("not subscribed", message.pipe_id)
                return True
        self._drop(message, "garbage")
        return True

    def _on_control(self, message: Message) -> None:
        read = read_control(message)
        if read is None or read[0] != SUBSCRIBED:
            self._drop(message, "garbage")
            return
        upstream = self._upstreams.get(message.pipe_id)
        if upstream is not None:
            upstream.acknowledge(read[1], message.source)
            self._acknowledgements.wake_all()

    # Publishers that come behind a switch

    def _behind_switch(self) -> list[Upstream]:
        """Return the upstreams whose peer may be a switch: publishers may come there at any time."""
        return [upstream for upstream in self._upstreams.values() if not upstream.direct]

    def _start_refresh(self) -> None:
        wanted = self._patterns and self._upstreams and not self._closing
        if wanted and self.options.get(opts.protocol.pubsub.refresh_interval):
            self._refresh.start()

    def _refresh_pause(self) -> float:
        """Return the seconds until subscriptions are repeated, 0 if that is not necessary."""
        interval: float = self.options.get(opts.protocol.pubsub.refresh_interval)
        return interval if self._behind_switch() else 0

    def _refresh_subscriptions(self, elapsed: float, late: float) -> None:
        for upstream in self._behind_switch():
            for pattern in self._patterns:
                upstream.subscribe(pattern)

    def _stop(self, deadline: Deadline) -> None:
        """Unsubscribe at publishers behind switches, which do not see this side's pipe close."""
        for upstream in self._behind_switch():
            for pattern in self._patterns:
                upstream.unsubscribe(pattern)
        self._outbox.flush(deadline.left())
