"""The Sub of publish and subscribe. What it is for is in :mod:`~gmultisocket.protocol.pubsub`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import TYPE_CHECKING, Literal

from gevent import get_hub

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..errors import BadTopic, Closed, SubscriptionRefused, Timeout
from ..loop.callbacks import Callbacks
from ..loop.periodic import Periodic
from ..loop.waiting import Deadline, WaitList
from ..loop.yielding import yield_to_loop
from ..options import OptionValues
from ..wire import SEND_TYPE_MASK, Message
from .askers import Askers
from .base import ProtocolBase
from .outbox import Outbox
from .pubsubwire import (
    POSITIONED,
    REFUSED,
    REPLAY,
    SUBSCRIBED,
    WHO,
    Malformed,
    Refused,
    is_control,
    is_missed,
    read_pattern,
    read_positioned,
    read_refused,
    read_replay,
)
from .subscriptions import Subscriptions, check_pattern, check_topic
from .upstream import Upstream

if TYPE_CHECKING:
    from .positions import Gap
    from .recovery import Recovery

__all__ = ["Sub"]

_length = Struct(">H")

#: Topics that a Sub remembers, until a subscription changes.
_MAX_TOPICS = 1024
#: After this number of subscriptions others run.
_PORTION = 256


class Sub(ProtocolBase):
    """Subscribes, and receives what is published. Iterable: ``for topic, content in sub``.

    A message of another protocol is dropped and counted (``garbage``), and so is a publication that this Sub has not
    subscribed to (``not subscribed``): another one behind the same switch has.

    Args:
        options: of the socket underneath, and ``protocol.pubsub.*``.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}
    families = ("protocol.pubsub",)

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._patterns: dict[str, None] = {}
        self._index: Subscriptions[None] = Subscriptions()
        #: A topic's bytes -> the topic, or "" if it is not subscribed to.
        self._topics: dict[bytes, str] = {}
        self._upstreams: dict[int, Upstream] = {}  # by pipe id
        self._outbox: Outbox = Outbox(self._core, self._spawn)
        self._askers = Askers(self._core, self._spawn, self._patterns, lambda: self._repeats, self._question)
        self._recovery: Recovery | None = None
        self._acknowledgements = WaitList(get_hub())
        self._waiters: Counter[str] = Counter()  # by pattern: greenlets that wait until it is acknowledged
        self._refusals = Callbacks(self._spawn, "gmultisocket.protocol", "refusal")
        self._refresh = Periodic(self._refresh_pause, self._refresh_subscriptions, self._spawn)
        self._core.on_pipe(self._on_pipe)
        self._core.on_message(self._on_message)
        self._core.on_lost(is_missed)

    # Subscribing

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns that it has subscribed to, oldest first."""
        return tuple(self._patterns)

    def subscribe(
        self, pattern: str, timeout: float | None = None, *, recover: bool = False, retained: bool = True
    ) -> None:
        """Subscribe to a pattern, at all publishers that are or will be connected.

        Without a timeout it does not block, and the subscription takes effect a little later. With one it blocks until
        the publishers that are connected now have acknowledged the subscription: what they publish from then on is
        received. Behind a switch, it waits for every publisher that has acknowledged one before, and at least one. To
        subscribe twice has no effect, but publishers that have refused the pattern are asked again, and ``recover`` and
        ``retained`` may be added to a pattern.

        Args:
            pattern: e.g. ``"orders.*.created"`` or ``"orders.>"``.
            timeout: seconds; None does not wait at all.
            recover: after a reconnect, get what was published meanwhile, as far as the publisher's history still has
                it. What is missing all the same is told to :meth:`on_gap`.
            retained: get the retained values of the topics, now and, where ``recover`` does not bring more, after a
                reconnect.

        Raises:
            BadTopic: it is not a pattern.
            Timeout: not all have acknowledged it in time. The subscription stays.
            SubscriptionRefused: a publisher has refused it. The subscription stays, for the other publishers.
            Closed: it is closed.
        """
        self._check_open()
        check_pattern(pattern)
        if recover or not retained:
            self._recover()
        if self._recovery is not None:
            self._recovery.add(pattern, retained, recover)
        if pattern not in self._patterns:
            self._patterns[pattern] = None
            self._index.add(pattern, None)
            self._topics.clear()
            for upstream in self._upstreams.values():
                upstream.subscribe(pattern)
                if len(self._patterns) == 1 and self._repeats:
                    upstream.promise_repeats()
            self._start_refresh()
        else:
            for upstream in self._upstreams.values():
                upstream.subscribe_again(pattern)
        if timeout is not None:
            self._wait_acknowledged(pattern, timeout)

    def _own_stats(self) -> dict[str, int]:
        return {"subscriptions": len(self._patterns)}

    def _wait_acknowledged(self, pattern: str, timeout: float) -> None:
        deadline = Deadline(timeout)
        asked = list(self._upstreams.values())
        self._waiters[pattern] += 1
        try:
            while pattern in self._patterns:
                asked = [one for one in asked if one.pipe.id in self._upstreams]
                for upstream in asked:
                    if (reason := upstream.refusal(pattern)) is not None:
                        raise SubscriptionRefused(pattern, reason)
                waiting = [one for one in asked if one.awaits(pattern)]
                if not waiting:
                    return
                if not self._acknowledgements.wait(deadline.left()):
                    for upstream in waiting:
                        upstream.give_up(pattern)
                    raise Timeout("subscribe", timeout)
                self._check_open()
        finally:
            self._waiters[pattern] -= 1
            if not self._waiters[pattern]:
                del self._waiters[pattern]

    def on_gap(self, callback: Callable[[Gap], object]) -> Callable[[], None]:
        """Call ``callback(gap)`` when publications are missing that will not come.

        ``gap`` has the ``pattern``, the ``topic`` (None if it may be any that the pattern matches) and the ``reason``:
        ``"overflow"``: they were dropped at a full queue on the way. ``"history"``: the publisher does not have them
        any more, or they were not asked for. ``"gone"``: nobody has their history any more: their publisher was started
        again, or the server has lost it.

        The callback runs in the greenlet that receives, just before this greenlet gets the publication after the gap.
        So a loop over publications sees the effect of the callback at the right place. While nobody receives, it is
        not called. Only topics with history or retained values have gaps. An error of the callback is logged.

        Returns:
            A callable that ends it.
        """
        self._check_open()
        return self._recover().on_gap(callback)

    def _recover(self) -> Recovery:
        """Begin to keep positions, for all patterns."""
        if self._recovery is None:
            from .recovery import Recovery

            self._recovery = Recovery(self._core, self.options, self._spawn)
            self._core.on_message(self._on_message_in_order, in_order=True)
            for pattern in self._patterns:
                self._recovery.add(pattern, True, False)
            for upstream in self._upstreams.values():
                self._recovery.had(upstream.pipe.id, {each for each in self._patterns if upstream.has_sent(each)})
                upstream.subscribe_all(self._patterns, ask=True)
                if upstream.subscribe_some(_PORTION):
                    self._spawn(self._subscribe_rest, upstream)
        return self._recovery

    def _question(self, pattern: str, pipe_id: int) -> bytes | None:
        """Return the 0x05 for a publisher that has come; b"" for none, None if it will be sent to all."""
        return b"" if self._recovery is None else self._recovery.ask_another(pattern, pipe_id)

    def _ask(self, pattern: str, pipe_id: int) -> bytes:
        """Return the 0x05 for all publishers behind a pipe; b"" for none."""
        return b"" if self._recovery is None else self._recovery.ask(pattern, pipe_id)

    def on_refused(self, callback: Callable[[SubscriptionRefused], object]) -> Callable[[], None]:
        """Call ``callback(refusal)`` when a publisher refuses or revokes a subscription.

        If a ``subscribe`` waits for it, that raises the refusal instead. ``refusal`` has the ``pattern`` and the
        ``reason``. The publisher is not asked for this pattern again, until ``subscribe`` is called for it or the
        connection is lost. The callback runs in a greenlet of this Sub, and may block.

        Returns:
            A callable that ends it.
        """
        return self._refusals.add(callback)

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
        if self._recovery is not None:
            self._recovery.remove(pattern)
        for upstream in self._upstreams.values():
            upstream.unsubscribe(pattern)
        self._acknowledgements.wake_all()
        return True

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
            # It was unsubscribed after the message came, or this is the marker of a gap.
            if self._recovery is not None:
                self._recovery.tell(message)
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
            upstream = self._upstreams[pipe.id] = Upstream(pipe, self._outbox, self._ask)
            upstream.subscribe_all(self._patterns, ask=True)
            if upstream.subscribe_some(_PORTION):
                self._spawn(self._subscribe_rest, upstream)
            if self._patterns and self._repeats:
                upstream.promise_repeats()
            self._start_refresh()
            if self._recovery is not None:
                self._recovery.pipe_added()
        elif self._upstreams.pop(pipe.id, None) is not None:
            if self._recovery is not None:
                self._ask_again(self._recovery.pipe_removed(pipe.id))
            self._acknowledgements.wake_all()

    def _ask_again(self, patterns: Iterable[str]) -> None:
        """Ask all publishers for patterns again."""
        for pattern in patterns:
            for upstream in self._upstreams.values():
                upstream.subscribe(pattern)

    def _on_message(self, message: Message) -> bool:
        if message.flags & ~SEND_TYPE_MASK:
            self._on_control(message)
            return True
        content = message.content
        end = 2 + _length.unpack_from(content)[0] if len(content) > 2 else 0
        # Nearly all are of a topic that is known.
        if end <= len(content) and self._topics.get(content[2:end]):
            return False
        return not self._subscribed_to(message, content)

    def _on_message_in_order(self, message: Message) -> bool:
        """As :meth:`_on_message`, while it keeps positions."""
        assert self._recovery is not None
        if message.flags & ~SEND_TYPE_MASK:
            # Each of these may put something into the queue, and counts once.
            waits = message.content[:1] in (REPLAY, POSITIONED) and not self._core.has_room
            return not waits and self._on_message(message)
        topic = self._subscribed_to(message, message.content)
        return not topic or self._recovery.is_early(message, topic)

    def _subscribed_to(self, message: Message, publication: bytes) -> str | None:
        """Return the topic of a publication if it is subscribed to. If not, it is counted."""
        if len(publication) > 2:
            end = 2 + _length.unpack_from(publication)[0]
            topic = self._subscribed_topic(publication[2:end]) if len(publication) >= end else None
            if topic:
                return topic
            if topic == "":
                self._core.count_drop("not subscribed", message.pipe_id)
                return None
        self._drop(message, "garbage")
        return None

    def _on_positioned(self, message: Message) -> None:
        """Take a 0x07."""
        positioned = read_positioned(message.content)
        topic = self._subscribed_to(message, positioned.publication)
        if topic and self._recovery is not None:
            self._recovery.take(message, positioned, topic)
        elif topic:
            # Another Sub behind the same switch has asked for positions.
            self._core.count_drop("not subscribed", message.pipe_id)

    def _on_replay(self, upstream: Upstream | None, message: Message) -> None:
        """Take a 0x06."""
        replay = read_replay(message.content)
        if self._recovery is None:
            raise Malformed("an answer to no question")
        pattern = self._recovery.asked(replay.id)
        # No pattern: it answers an earlier question.
        if upstream is not None and pattern is not None and upstream.replay_begins(pattern, message.source):
            self._recovery.answer(message.source, replay)
            self._acknowledgements.wake_all()

    def _on_control(self, message: Message) -> None:
        content = message.content
        kind = content[:1] if is_control(message) else b""
        upstream = self._upstreams.get(message.pipe_id)
        try:
            if kind == POSITIONED:
                self._on_positioned(message)
            elif kind == REPLAY:
                self._on_replay(upstream, message)
            elif kind == SUBSCRIBED:
                pattern = read_pattern(content)
                if upstream is not None:
                    upstream.acknowledge(pattern, message.source)
                    if self._recovery is not None:
                        self._recovery.acknowledged(pattern, message.source, message.pipe_id)
                    self._acknowledgements.wake_all()
            elif kind == REFUSED:
                refused = read_refused(content)
                if upstream is not None:
                    self._on_refusal(upstream, message.source, refused)
            elif content == WHO and kind:
                if upstream is not None:
                    self._askers.ask(upstream, message.source)
            else:
                raise Malformed("nothing that a Sub understands")
        except Malformed:
            self._drop(message, "garbage")

    def _on_refusal(self, upstream: Upstream, source: bytes, refused: Refused) -> None:
        pattern, reason = refused
        if pattern not in self._patterns:
            upstream.acknowledge(pattern, source)
            return
        if not upstream.refuse(pattern, source, reason):
            return
        if self._recovery is not None and self._recovery.refused(pattern, source):
            self._ask_again((pattern,))
        if pattern in self._waiters:
            self._acknowledgements.wake_all()
        else:
            self._refusals.post(pattern, SubscriptionRefused(pattern, reason), pipe=upstream.pipe)

    # Publishers that come behind a switch

    def _behind_switch(self) -> list[Upstream]:
        """Return the upstreams whose peer may be a switch: publishers may come there at any time."""
        return [upstream for upstream in self._upstreams.values() if not upstream.direct]

    @property
    def _repeats(self) -> bool:
        """Whether subscriptions are repeated through a switch."""
        return self.options.get(opts.protocol.pubsub.refresh_interval) > 0

    def _start_refresh(self) -> None:
        if self._patterns and self._upstreams and not self._closing and self._repeats:
            self._refresh.start()

    def _refresh_pause(self) -> float:
        """Return the seconds until subscriptions are repeated, 0 if that is not necessary."""
        interval: float = self.options.get(opts.protocol.pubsub.refresh_interval)
        return interval if self._behind_switch() else 0

    def _refresh_subscriptions(self, elapsed: float, late: float) -> None:
        if self._recovery is not None:
            self._ask_again(self._recovery.overdue())
        for upstream in self._behind_switch():
            upstream.subscribe_all(self._patterns, ask=False)
            if self._recovery is not None:
                upstream.ask_for(self._recovery.unanswered(upstream.pipe.id))
            self._subscribe_rest(upstream)

    def _subscribe_rest(self, upstream: Upstream) -> None:
        """Send the subscriptions that a pipe has not got yet, in portions."""
        while upstream.pipe.id in self._upstreams and upstream.subscribe_some(_PORTION):
            yield_to_loop()

    def _stop(self, deadline: Deadline) -> None:
        """Unsubscribe at publishers behind switches, which do not see this side's pipe close."""
        for upstream in self._behind_switch():
            for number, pattern in enumerate(list(self._patterns), 1):
                if number % _PORTION == 0:
                    yield_to_loop()
                upstream.unsubscribe(pattern)
        self._outbox.flush(deadline.left())
