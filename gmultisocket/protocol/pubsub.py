"""Publish and subscribe: a Sub gets what any Pub publishes under the topics that it has subscribed to.

* Who talks to whom: any number of Pubs with any number of Subs, directly or through switches. A Sub subscribes to
  patterns at all Pubs that it is or will be connected to.
* On the wire: a publication is the topic's length (2 bytes, big-endian), the topic (UTF-8) and the payload, sent to
  all, by the pipes that have a subscriber behind them. A Sub sends control messages (flag 0x20) to all: 0x01 and a
  pattern to subscribe, 0x00 and a pattern to unsubscribe. A Pub answers each 0x01, also a repeated one, by 0x02 and the
  pattern, sent to its source, or by 0x03, which says why it refuses. By each new pipe it asks who is there (0x04). 0x08
  alone, after a Sub's first 0x01: it repeats its subscriptions while it lives.
* What is lost, and when: a Sub that reads too slowly, so that its pipe's queue at the Pub is full, misses publications.
  They are counted on that pipe (``overflow``), the first is logged, and other Subs are not affected.
  ``socket.send_overflow`` is ``drop_newest`` by default. A Sub never gets what is published while it is not connected.
  It does get what is published after ``subscribe(pattern, timeout)`` has returned, and the retained values of topics.
  With ``Pub(history=...)`` and ``subscribe(pattern, recover=True)`` it gets what was published in between as well, and
  is told what it does not get (:mod:`~gmultisocket.protocol.recovery`). These subscriptions go out as 0x05, with
  positions, are answered by 0x06, and get publications with positions (0x07).

The rules for topics and patterns are in :mod:`~gmultisocket.protocol.subscriptions`. A message that several patterns of
a Sub match comes once. What a Pub remembers, and within which limits, is in :mod:`~gmultisocket.protocol.subscribers`.

Through switches: a switch passes a Sub's control messages to every Pub behind it, and a publication to every peer at
its other side, so a Sub filters again what comes. A Pub distinguishes the subscribers behind one pipe by the path back
to them, and sends by the pipe until the last one has left. Nobody tells a Pub that a Sub behind a switch has died, nor
a Sub that a Pub has come behind one. So a new Pub asks for subscriptions, and a Sub sends them to it within 2 s, mostly
within 0.2 s. In case that was lost, and for Pubs that do not ask, a Sub repeats its subscriptions through a switch,
every ``protocol.pubsub.refresh_interval``. A Pub forgets a Sub behind a switch that has said that it repeats them and
was then silent for ``protocol.pubsub.expiry``. A Sub that closes unsubscribes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..loop.periodic import Periodic
from ..loop.yielding import yield_to_loop
from ..options import Option, OptionValues, follow
from ..wire import CONTROL, Message
from .base import ProtocolBase
from .gatekeeper import Gatekeeper
from .history import History, Kept
from .holding import Hold
from .outbox import Outbox
from .pubsubwire import (
    ASK,
    POSITION_SIZE,
    POSITIONED,
    REPEATS,
    SUBSCRIBE,
    UNSUBSCRIBE,
    WHO,
    Malformed,
    is_control,
    is_missed,
    pack_positioned,
    read_ask,
    read_pattern,
)
from .rights import Authorize, RemoteSub
from .subscribers import Limits, Peer
from .subscriptions import check_pattern, check_topic
from .upstream import control

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Presence", "Pub"]

#: After this number of subscriptions others run.
_PORTION = 256
#: Checks in one expiry. A subscriber that more checks than this have found silent is forgotten. One check would not do:
#: it may be the first thing that runs after the process was stopped, before the messages of that time are read.
_EXPIRY_CHECKS = 3


def _set_limit(attribute: str, limits: Limits, value: int) -> None:
    setattr(limits, attribute, value)


class Presence(NamedTuple):
    """The subscribers of a topic or a pattern.

    Attributes:
        subscribers: their number.
        names: their names, sorted, each once; None without ``presence_names``.
    """

    subscribers: int
    names: tuple[str, ...] | None


class Pub(ProtocolBase):
    """Publishes. What a peer sends that is not a subscription is dropped and counted (``garbage``).

    Args:
        options: of the socket underneath, and ``protocol.pubsub.*``.
        authorize: called as ``authorize(subscriber, pattern)`` for each new subscription. It returns True, or False, or
            why not (a str). ``subscriber`` has the ``pipe``, the ``source`` (its path), ``direct`` (it is the peer of
            the pipe, with no switch between) and its ``identity`` (None if it is not direct). It runs in its own
            greenlet, and may block for ``protocol.pubsub.authorize_timeout``. If it fails or takes longer, the
            subscription is refused. Without it, everybody may subscribe to everything.
        authorize_through_switches: with ``authorize``, subscribers behind a switch are refused, because a switch passes
            a publication on to all of its peers. True: they may ask. Then every subscriber gets its own copy of each
            publication, along its path.
        presence_names: called as ``presence_names(subscriber)``; returns a name for :meth:`presence`. Identities are
            personal data: without it, presence has only numbers.
        history: keeps publications for subscribers that come back, e.g. ``MemoryHistory("orders.>", max_age=3600)``.
            Its patterns say of which topics. A Sub gets what it has missed by ``subscribe(pattern, recover=True)``.
    """

    defaults = {"socket.send_overflow": "drop_newest"}
    fixed = {"socket.no_recv": False, "socket.no_send": False}
    instead = {"send": "publish()"}
    families = ("protocol.pubsub",)

    def __init__(
        self,
        options: OptionValues | None = None,
        *,
        authorize: Authorize | None = None,
        authorize_through_switches: bool = False,
        presence_names: Callable[[RemoteSub], str] | None = None,
        history: History | None = None,
    ) -> None:
        super().__init__(options)
        gate = Gatekeeper(self._core, self.options, self._spawn, authorize, authorize_through_switches, history)
        self._gate = gate
        self._keeper = gate.keeper
        self._presence_names = presence_names
        self._put_to = gate.keeper.put_to
        self._silenced = gate.silenced
        self._outbox: Outbox = gate.outbox
        self._subscribers = gate.subscribers
        self._peers = self._subscribers.peers
        #: By topic: the bytes in front of the payload, and the pipes that it goes to.
        self._groups = self._subscribers.topics.groups
        self._find = self._subscribers.find
        self._expiry = Periodic(self._expiry_pause, self._expire, self._spawn)
        gate.on_new_behind_switch = self._start_expiry
        #: New pipes, by which nobody was asked who is there.
        self._new_pipes: deque[Pipe] = deque()
        follow(self.options, self._subscribers.limits, self._copied)
        self._core.on_pipe(self._on_pipe)
        self._core.on_message(self._on_message)
        self._core.on_lost(is_missed)

    #: The limits that matter for every subscription are copied.
    _copied: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        option: partial(_set_limit, attribute)
        for option, attribute in (
            (opts.protocol.pubsub.max_pattern_length, "max_length"),
            (opts.protocol.pubsub.max_patterns, "max_patterns"),
            (opts.protocol.pubsub.max_switch_patterns, "max_switch_patterns"),
            (opts.protocol.pubsub.max_pattern_memory, "max_memory"),
            (opts.protocol.pubsub.max_total_patterns, "max_total_patterns"),
            (opts.protocol.pubsub.max_total_pattern_memory, "max_total_memory"),
        )
    }

    def publish(self, topic: str, content: Buffer, timeout: float | None = None, *, retain: bool = False) -> int:
        """Send to every pipe that has a subscriber to the topic behind it.

        Does not wait for any of them, unless ``socket.send_overflow`` is ``block``.

        Args:
            topic: e.g. ``"orders.eu.created"``.
            content: bytes-like.
            timeout: seconds, for ``block``.
            retain: keep it, instead of the one that was retained before, as the topic's present value: each new
                subscription that matches gets it. At most 65,536 values and 64 MiB are kept; the one that was set
                longest ago goes first, and is counted (``retained``). With a ``history``, its limits hold instead. If
                it is kept, its position takes 29 of the bytes that a message may have.

        Returns:
            The number of pipes that it went to, without those whose queue is full.

        Raises:
            BadTopic: it is not a topic.
            Timeout, MessageTooLong, Closed: as ``Socket.send_all`` does.
        """
        core = self._core
        # Others may run here, and not between finding out who wants it and sending it to them.
        longest = core.begin()
        head, pipes = self._groups.get(topic) or self._find(topic)
        if type(content) is not bytes:
            content = core.check_content(content)
        publication = head + content
        keeper = self._keeper
        history = keeper.history
        if history is None and not retain:
            if len(publication) > longest:
                core.check_content(publication)
            return self._put_to(pipes, publication, timeout)
        if self._closing:
            self._check_open()
        replays = keeper.replays
        if (
            history is None or replays is None or replays.all_positioned.get(topic) is not pipes or replays.queues
            or retain or len(publication) > longest - POSITION_SIZE
        ):  # fmt: skip
            return keeper.publish(topic, content, publication, pipes, timeout, retain, longest)
        # Nearly all, so without a further call: each that wants it gets it with its position.
        entry = history.append(topic, content)
        if entry is None:
            return self._put_to(pipes, publication, timeout)
        position = pack_positioned(POSITIONED, 0, history.epoch, entry[0], entry[1])
        return self._put_to(pipes, position + publication, timeout, CONTROL)

    def publish_entry(self, entry: Kept, timeout: float | None = None) -> int:
        """Send a publication that the history has got from somewhere else: it has its number already.

        For a history that several publishers share. Call it for one entry after the other, in the order of their
        offsets, in the same turn in which the history gets it. ``entry`` is an ``Entry``, or a plain tuple of the same.

        Returns:
            The number of pipes that it went to.

        Raises:
            BadTopic, Timeout, MessageTooLong, Closed: as :meth:`publish`.
        """
        self._check_open()
        self._core.begin()
        _, _, topic, content = entry
        head, pipes = self._groups.get(topic) or self._find(topic)
        return self._keeper.send(entry, head + content, topic, pipes, timeout)

    def replay_again(self) -> None:
        """Answer all subscribers that ask for history again: ``history.epoch`` is another one now. Does not block."""
        self._core.check()
        self._keeper.replay_again()

    def replay_behind(self, offset: int, topics: Collection[str]) -> None:
        """Send what the history has got at once to the subscribers that ask for history, as fast as each reads it.

        Call it before the first :meth:`publish_entry` for what is behind the offset. That is for the other subscribers,
        which may lose some of it at a full queue. Does not block.

        Args:
            offset: the subscribers have been given all up to this one.
            topics: those of the publications behind it.
        """
        self._core.check()
        self._keeper.replay_behind(offset, topics)

    def hold_acknowledgements(self, hook: Hold | None) -> None:
        """Set a hook that may delay the acknowledgement of a new subscription until its publications come.

        ``hook(subscriber, pattern, release)`` is called when a subscription is in effect at this Pub, before it is
        acknowledged. It returns True to hold the acknowledgement back. Then it, or what it has started, calls
        ``release()`` later, once, in this thread; after the subscription has ended, that does nothing. Until then the
        subscriber gets live publications, but no retained values and no replay. The hook must not block or switch
        greenlets. If it raises, the error is logged, and nothing is held back.

        Args:
            hook: instead of the one before; None for none.
        """
        self._core.check()
        self._gate.holding.hook = hook

    def unretain(self, topic: str) -> bool:
        """Forget the retained value of a topic. Nobody is told. Return whether there was one.

        Raises:
            BadTopic: it is not a topic.
        """
        self._core.check()
        check_topic(topic)
        history = self._keeper.history
        return history is not None and history.unretain(topic)

    def reach(self, topic: str) -> int:
        """Return the number of pipes that a publication under the topic would go to now. At 0, you need not make one.

        Raises:
            BadTopic: it is not a topic.
        """
        self._core.check()
        wanted = (self._groups.get(topic) or self._find(topic))[1]
        return len({remote.pipe for remote in wanted} if self._gate.own_copies else wanted)

    @property
    def subscriptions(self) -> int:
        """The number of subscriptions: patterns, counted for each subscriber."""
        return self._subscribers.count

    def _own_stats(self) -> dict[str, int]:
        return {"subscriptions": self.subscriptions}

    # Who is there

    def on_interest(self, callback: Callable[[str, bool], object]) -> Callable[[], None]:
        """Call ``callback(pattern, wanted)`` when a pattern gets its first subscriber, and when it loses its last one.

        It is also called for the patterns that have subscribers already. Patterns are compared as text: ``a.*`` and
        ``a.b`` are two. The callback runs in a greenlet of this Pub, may block, and gets only the last change of a
        pattern that changes meanwhile.

        Returns:
            A callable that ends it.
        """
        self._check_open()
        return self._subscribers.interest.watch(callback, self._subscribers.patterns())

    def wait_subscribers(self, topic: str, count: int = 1, timeout: float | None = None) -> None:
        """Block until a topic has at least ``count`` subscribers, also such as are behind switches.

        Raises:
            BadTopic: it is not a topic.
            Timeout: there are not so many in time.
            Closed: it is closed.
        """
        self._check_open()
        check_topic(topic)
        self._subscribers.arrivals.wait(
            topic, count, timeout, lambda: self._subscribers.wanting(topic), self._subscribers.wants, self._check_open
        )

    def presence(self, pattern: str) -> Presence:
        """Return who has subscribed to anything that a pattern, or a topic, matches.

        It looks at all subscriptions, and lets others run meanwhile.

        Returns:
            The number of the ``subscribers``, and their ``names``, sorted, each once; None without ``presence_names``.

        Raises:
            BadTopic: it is not a pattern.
        """
        self._core.check()
        check_pattern(pattern)
        found = [*self._subscribers.wanting(pattern)]
        name = self._presence_names
        return Presence(len(found), None if name is None else tuple(sorted({name(each) for each in found})))

    def slowest(self, count: int) -> list[Pipe]:
        """Return the pipes that are most behind, the worst one first, and none that has nothing to send.

        They are compared by ``pipe.queued``, then by ``pipe.unacknowledged``: a peer that does not read shows in the
        kernel's buffers long before the queue grows. Takes some microseconds for each pipe, and lets others run.
        """
        from ..core.stats import slowest_pipes

        self._core.check()
        return slowest_pipes(self.pipes, count)

    def _ended(self) -> None:
        self._subscribers.arrivals.end()

    # Rights

    def revoke(self, subscriber: RemoteSub, pattern: str, reason: str = "revoked") -> bool:
        """End a subscription, and tell the subscriber why. A Sub does not ask again until it connects again.

        But others may, and a repetition may be on its way: then ``authorize`` decides again. What is in the queue of
        its pipe already still reaches it. Does not block.

        Args:
            subscriber: as ``authorize`` got it.
            pattern: exactly as it was subscribed to.
            reason: for ``SubscriptionRefused.reason``; at most 256 bytes are sent.

        Returns:
            Whether there was such a subscription, or ``authorize`` was about to decide about it.
        """
        self._core.check()
        return self._gate.revoke(subscriber, pattern, reason)

    def recheck(self, predicate: Callable[[RemoteSub, str], object] | None = None) -> int:
        """Call ``authorize`` again for subscriptions, and revoke those that it refuses now.

        Blocks until all are decided; a few calls run at once. Publications go on meanwhile. Where a call for a new
        subscription runs already, its permission does not count: ``authorize`` is called once more.

        Args:
            predicate: called as ``predicate(subscriber, pattern)``: whether to decide again about this subscription.
                None: about all.

        Returns:
            The number of subscriptions that were revoked.

        Raises:
            NotSupported: this Pub has no ``authorize``.
        """
        self._core.check()
        return self._gate.recheck(predicate)

    def subscribe_peer(self, subscriber: RemoteSub, pattern: str) -> bool:
        """Subscribe a subscriber to a pattern, without a call of ``authorize``. Does not block.

        A Sub hands out only what it has subscribed to itself. So this is for a pattern that was refused, or one that a
        pattern of the Sub covers.

        Returns:
            False if the subscriber has gone.

        Raises:
            BadTopic: it is not a pattern.
            SubscriptionRefused: it is over a limit.
            NotSupported: with ``authorize``, the subscriber is behind a switch.
        """
        self._core.check()
        check_pattern(pattern)
        return self._gate.grant(subscriber, pattern)

    def unsubscribe_peer(self, subscriber: RemoteSub, pattern: str) -> bool:
        """End a subscription without telling the subscriber. Return whether there was one. Does not block.

        One that is not answered yet is revoked: its subscriber waits for that.
        """
        self._core.check()
        return self._gate.remove(subscriber, pattern)

    # Callbacks of the core

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "remove":
            self._gate.remove_pipe(pipe)
            return
        self._subscribers.add_pipe(pipe)
        if not pipe.raw:
            self._new_pipes.append(pipe)
            if len(self._new_pipes) == 1:
                self._spawn(self._ask_new_pipes)

    def _ask_new_pipes(self) -> None:
        """Ask by new pipes who is there (a greenlet while there are any). Nothing leaves by them before."""
        who = control(WHO)
        while self._new_pipes:
            pipe = self._new_pipes.popleft()
            if pipe.id in self._peers:
                self._core.put(pipe, who)

    def _on_message(self, message: Message) -> bool:
        content = message.content
        kind = content[:1]
        try:
            if not is_control(message) or (kind not in (SUBSCRIBE, UNSUBSCRIBE, ASK) and content != REPEATS):
                raise Malformed("nothing that a Pub understands")
            ask = read_ask(content) if kind == ASK else None
            pattern = "" if content == REPEATS or ask is not None else read_pattern(content)
        except Malformed:
            self._drop(message, "garbage")
            return True
        peer = self._peers.get(message.pipe_id)
        if peer is None:
            # Its pipe has closed.
            return True
        if self._silenced and self._gate.is_silenced(message):
            self._core.count_drop("silenced", message.pipe_id)
        elif kind == SUBSCRIBE:
            self._subscribe(peer, pattern, message)
        elif ask is not None:
            self._gate.ask(peer, message.source, ask)
        elif kind == REPEATS:
            self._gate.promise_repeats(peer, message.source)
        else:
            self._gate.unsubscribe(peer, pattern, message.source)
        return True

    def _subscribe(self, peer: Peer, pattern: str, message: Message) -> None:
        if self._gate.subscribe(peer, pattern, message.source, len(message.content) - 1):
            self._drop(message, "refused subscription")

    # Subscribers that died behind a switch

    def _start_expiry(self) -> None:
        if self.options.get(opts.protocol.pubsub.expiry):
            self._expiry.start()

    def _expiry_pause(self) -> float:
        """Return the seconds until the next check for silent subscribers, 0 if none is behind a switch."""
        expiry: float = self.options.get(opts.protocol.pubsub.expiry)
        return expiry / _EXPIRY_CHECKS if any(peer.is_switch for peer in self._peers.values()) else 0

    def _expire(self, elapsed: float, late: float) -> None:
        for peer in list(self._peers.values()):
            # A subscriber that never repeated a subscription may live: it is removed only if others need its place.
            full = peer.refused or peer.count >= self._subscribers.limits.max_switch_patterns
            peer.refused = False
            for number, source in enumerate(peer.behind_switch(), 1):
                if number % _PORTION == 0:
                    yield_to_loop()
                if peer.pipe.id in self._peers and source in peer.subscribers:
                    self._check_silence(peer, source, full)

    def _check_silence(self, peer: Peer, source: bytes, full: bool) -> None:
        """Remove a subscriber behind a switch that has been silent for too long."""
        subscriber = peer.subscribers[source]
        subscriber.silent_checks += 1
        if subscriber.silent_checks > _EXPIRY_CHECKS and (subscriber.repeats or full):
            self._subscribers.remove_subscriber(peer, source)
