"""Publish and subscribe: what a Pub publishes under a topic, every Sub gets that has subscribed to it.

* Who talks to whom: any number of Pubs with any number of Subs, directly or through switches. A Sub subscribes to
  patterns at all the Pubs that it is or will be connected to.
* On the wire: a publication is the topic's length (2 bytes, big-endian), the topic (UTF-8) and the payload, sent to
  all, by the pipes behind which somebody asked for it. What a Sub says are control messages (flag 0x20), sent to all:
  0x01 and a pattern to subscribe, 0x00 and a pattern to end that. A Pub answers a 0x01, also a repeated one, by 0x02
  and the pattern, sent to its source.
* What is lost, and when: a Sub that does not keep up, so that its pipe's queue at the Pub is full, misses publications.
  They are counted on that pipe (``overflow``), the first is logged, and nobody else notices; ``socket.send_overflow``
  says what is done instead of ``drop_newest``. What is published while a Sub is not connected it never gets. What is
  published after ``subscribe(pattern, timeout)`` has returned it does.

Topics and patterns are those of :mod:`~gmultisocket.protocol.subscriptions`. A message that several patterns of a Sub
match comes once.

Through switches. A switch hands what a Sub says to every Pub behind it, and a publication to every peer at its other
side: so a Sub sorts out again what comes. A Pub knows those behind one pipe apart by the way back to them, and sends by
the pipe until the last one has left. Nobody tells a Pub of a Sub that died behind a switch, nor a Sub of a Pub that
came behind one. So a Sub repeats its subscriptions there, every ``protocol.pubsub.refresh_interval``, which is how long
a new Pub may be without them; and a Pub forgets a Sub there that did so and has gone silent for
``protocol.pubsub.expiry``. A Sub that leaves in order says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import Any, ClassVar, Literal

import gevent
from gevent import Greenlet, get_hub

from .. import options as opts
from ..core.pipe import Pipe
from ..core.sender import as_content
from ..errors import BadTopic, Closed, Timeout
from ..loop.waiting import Deadline, WaitList
from ..options import Option, OptionValues, follow
from ..wire import SEND_TYPE_MASK, Message
from .base import Protocol
from .feed import SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE, Feed, control, read_control
from .outbox import Outbox
from .subscriptions import Subscriptions, check_pattern, check_topic

__all__ = ["Pub", "Sub"]

_length = Struct(">H")

#: How many topics are remembered with what was found out about them, until something changes.
_MAX_TOPICS = 1024
#: How many pipes those may go to, all together.
_MAX_REMEMBERED = 1 << 20
#: A subscriber that was silent for so many looks, an expiry apart all together, is forgotten. A process that was
#: stopped for long has one look behind it when it goes on, and hears then what has come meanwhile.
_LOOKS = 3

class _Subscriber:
    """One subscriber of a Pub: one way back through one pipe.

    Attributes:
        patterns: what it has subscribed to.
        repeats: whether it has repeated a subscription, and so would go on to do so while it lives.
        silence: looks since it was heard.
    """

    __slots__ = ("patterns", "repeats", "silence")

    def __init__(self) -> None:
        self.patterns: set[str] = set()
        self.repeats = 0
        self.silence = 0


class _Peer:
    """What a Pub knows about one pipe.

    Attributes:
        subscribers: by their source.
        count: how many patterns they have all together.
    """

    __slots__ = ("count", "pipe", "subscribers")

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.subscribers: dict[bytes, _Subscriber] = {}
        self.count = 0

    def behind_switch(self) -> list[bytes]:
        """Return the sources of the subscribers that are not the peer itself."""
        return [source for source in self.subscribers if source != self.pipe.path]


class Pub(Protocol):
    """Publishes. What a peer sends that is no subscription is dropped and counted (``garbage``).

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
        #: Topic -> what goes in front of the payload, and the pipes that it goes to.
        self._groups: dict[str, tuple[bytes, tuple[Pipe, ...]]] = {}
        self._remembered = 0
        self._outbox = Outbox(self._seam, self._spawn)
        self._expirer: Greenlet[..., Any] | None = None
        follow(self.options, self, self._copied)
        self._seam.on_pipe(self._on_pipe)
        self._seam.on_message(self._on_message)

    def _set_max_patterns(self, value: int) -> None:
        self._max_patterns = value

    def _set_max_length(self, value: int) -> None:
        self._max_length = value

    _copied: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        opts.protocol.pubsub.max_patterns: _set_max_patterns,
        opts.protocol.pubsub.max_pattern_length: _set_max_length,
    }

    def publish(self, topic: str, content: bytes, timeout: float | None = None) -> int:
        """Send to every pipe behind which somebody has subscribed to the topic.

        Does not wait for any of them, unless ``socket.send_overflow`` is ``block``.

        Args:
            topic: e.g. ``"orders.eu.created"``.
            content: bytes-like.
            timeout: seconds, for ``block``.

        Returns:
            The number of pipes that it went to. Those whose queue is full are not among them.

        Raises:
            BadTopic: the topic is none.
            Timeout, MessageTooLong, Closed: as ``Socket.send_all`` does.
        """
        head, pipes = self._groups.get(topic) or self._find(topic)
        return self._seam.send_group(pipes, head + as_content(content), timeout)

    def reach(self, topic: str) -> int:
        """Return to how many pipes something published under the topic would go now: 0 saves making it.

        Raises:
            BadTopic: the topic is none.
        """
        self._seam.check()
        return len((self._groups.get(topic) or self._find(topic))[1])

    @property
    def subscriptions(self) -> int:
        """How many subscriptions there are: patterns, counted for each subscriber."""
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

    # What peers say; callbacks of the seam

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "add":
            self._peers[pipe.id] = _Peer(pipe)
            return
        peer = self._peers.pop(pipe.id, None)
        if peer is not None:
            for source in list(peer.subscribers):
                self._remove_subscriber(peer, source)

    def _on_message(self, message: Message) -> bool:
        said = read_control(message)
        if said is None:
            self._drop(message, "garbage")
            return True
        peer = self._peers.get(message.pipe_id)
        if peer is None:
            # Its pipe has closed.
            return True
        kind, pattern = said
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
            subscriber.silence = 0
        if subscriber is not None and pattern in subscriber.patterns:
            subscriber.repeats += 1
        elif len(message.content) > 1 + self._max_length or peer.count >= self._max_patterns:
            self._drop(message, "refused subscription")
            return
        else:
            if subscriber is None:
                subscriber = peer.subscribers[source] = _Subscriber()
                self._look_after(peer, source)
            subscriber.patterns.add(pattern)
            peer.count += 1
            self._index.add(pattern, peer.pipe)
            self._forget_groups()
        # One acknowledgement for each pattern that is subscribed to may wait, so the limit of those bounds these.
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

    def _look_after(self, peer: _Peer, source: bytes) -> None:
        if source != peer.pipe.path and self._expirer is None and self.options.get(opts.protocol.pubsub.expiry):
            self._expirer = self._spawn(self._expire)

    def _expire(self) -> None:
        """Forget who behind a switch has gone silent (a greenlet, while there is anybody behind a switch)."""
        try:
            while any(peer.behind_switch() for peer in self._peers.values()):
                expiry = self.options.get(opts.protocol.pubsub.expiry)
                if not expiry:
                    return
                gevent.sleep(expiry / _LOOKS)
                for peer in self._peers.values():
                    self._expire_behind(peer)
        finally:
            self._expirer = None

    def _expire_behind(self, peer: _Peer) -> None:
        for source in peer.behind_switch():
            subscriber = peer.subscribers[source]
            subscriber.silence += 1
            # One that never repeated anything may be alive, and goes only where others need the room.
            expires = subscriber.repeats > 1 or peer.count >= self._max_patterns
            if subscriber.silence > _LOOKS and expires:
                self._remove_subscriber(peer, source)


class Sub(Protocol):
    """Subscribes, and receives what is published. Iterable: ``for topic, content in sub``.

    A message that is none of this protocol's is dropped and counted (``garbage``), and so is a publication that nobody
    here has subscribed to (``not subscribed``): others behind the same switch have.

    Args:
        options: of the socket underneath, and ``protocol.pubsub.*``.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._patterns: dict[str, None] = {}
        self._index: Subscriptions[None] = Subscriptions()
        #: A topic's bytes -> the topic, or "" if it is not wanted.
        self._topics: dict[bytes, str] = {}
        self._feeds: dict[int, Feed] = {}
        self._outbox = Outbox(self._seam, self._spawn)
        self._acknowledgements = WaitList(get_hub(), lambda: True)
        self._refresher: Greenlet[..., Any] | None = None
        self._seam.on_pipe(self._on_pipe)
        self._seam.on_message(self._on_message)

    # Subscribing

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is subscribed to, oldest first."""
        return tuple(self._patterns)

    def subscribe(self, pattern: str, timeout: float | None = None) -> None:
        """Subscribe to a pattern, at the publishers that are connected and those that will be.

        Without a timeout it does not block, and the publishers learn of it a little later. With one it blocks until
        those connected now have acknowledged it: what they publish from then on is received. Behind a switch that is
        every publisher that was heard of before, and at least one. Subscribing twice is subscribing once.

        Args:
            pattern: e.g. ``"orders.*.created"`` or ``"orders.>"``.
            timeout: seconds; None does not wait at all.

        Raises:
            BadTopic: the pattern is none.
            Timeout: not all have acknowledged it in time. The subscription stays.
            Closed: it is closed.
        """
        self._check_open()
        check_pattern(pattern)
        if pattern not in self._patterns:
            self._patterns[pattern] = None
            self._index.add(pattern, None)
            self._topics.clear()
            for feed in self._feeds.values():
                feed.want(pattern)
            self._look_after()
        if timeout is not None:
            self._wait_acknowledged(pattern, timeout)

    def _wait_acknowledged(self, pattern: str, timeout: float) -> None:
        deadline = Deadline(timeout)
        asked = list(self._feeds.values())
        while waiting := [feed for feed in asked if pattern in feed.awaited and feed.pipe.id in self._feeds]:
            if pattern not in self._patterns:
                return
            if not self._acknowledgements.wait(deadline.left()):
                for feed in waiting:
                    feed.give_up(pattern)
                raise Timeout("subscribe", timeout)
            self._check_open()

    def unsubscribe(self, pattern: str) -> bool:
        """Unsubscribe from a pattern. Does not block; what matches no other pattern is not received any more.

        Returns:
            Whether it was subscribed to.
        """
        self._check_open()
        if pattern not in self._patterns:
            return False
        del self._patterns[pattern]
        self._index.remove(pattern, None)
        self._topics.clear()
        for feed in self._feeds.values():
            feed.unwant(pattern)
        self._acknowledgements.wake_all()
        return True

    def _check_open(self) -> None:
        self._seam.check()
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
            topic = self._wanted(message[2:end])
            if topic:
                return topic, message[end:]
            # Unsubscribed from since it came.
            deadline = deadline or Deadline(timeout)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Iterate over publications as they come; ends when it is closed and what had arrived was received."""
        while True:
            try:
                publication = self.recv()
            except Closed:
                return
            yield publication

    def _wanted(self, encoded: bytes) -> str | None:
        """Return the topic that some bytes are, "" if it is not subscribed to, None if they are none."""
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

    # What peers say; callbacks of the seam

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "add":
            feed = self._feeds[pipe.id] = Feed(pipe, self._outbox)
            for pattern in self._patterns:
                feed.want(pattern)
            self._look_after()
        elif self._feeds.pop(pipe.id, None) is not None:
            self._acknowledgements.wake_all()

    def _on_message(self, message: Message) -> bool:
        if message.flags & ~SEND_TYPE_MASK:
            self._take_control(message)
            return True
        content = message.content
        if len(content) > 2:
            end = 2 + _length.unpack_from(content)[0]
            topic = self._wanted(content[2:end]) if len(content) >= end else None
            if topic:
                return False
            if topic == "":
                self._seam.count_drop("not subscribed", message.pipe_id)
                return True
        self._drop(message, "garbage")
        return True

    def _take_control(self, message: Message) -> None:
        said = read_control(message)
        if said is None or said[0] != SUBSCRIBED:
            self._drop(message, "garbage")
            return
        feed = self._feeds.get(message.pipe_id)
        if feed is not None:
            feed.acknowledged(said[1], message.source)
            self._acknowledgements.wake_all()

    # Publishers that come behind a switch

    def _look_after(self) -> None:
        interval = self.options.get(opts.protocol.pubsub.refresh_interval)
        if self._refresher is None and self._patterns and self._feeds and interval and not self._closing:
            self._refresher = self._spawn(self._refresh)

    def _refresh(self) -> None:
        """Repeat all subscriptions where publishers may have come unseen (a greenlet, while there is such a place)."""
        try:
            while interval := self.options.get(opts.protocol.pubsub.refresh_interval):
                gevent.sleep(interval)
                feeds = [feed for feed in self._feeds.values() if not feed.direct]
                if not feeds:
                    return
                for feed in feeds:
                    for pattern in self._patterns:
                        feed.want(pattern)
        finally:
            self._refresher = None

    def _stop(self, deadline: Deadline) -> None:
        """Say goodbye to publishers that do not see this side's pipe close."""
        for feed in self._feeds.values():
            if not feed.direct:
                for pattern in self._patterns:
                    feed.unwant(pattern)
        self._outbox.flush(deadline.left())
