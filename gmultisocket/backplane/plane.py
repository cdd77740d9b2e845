"""The Backplane: what is published anywhere reaches every subscriber in every process, once.

    plane = Backplane("ipc:///run/app/hub")
    application = mount(plane.pub, "/ws", application)      # browsers
    plane.publish("orders.eu.created", b"...")              # anywhere
    for topic, content in plane.subscribe("orders.>"):      # a program
        ...

What is promised: publications of one publisher come to one subscriber in the order in which they were published, each
at most once. Subscribers in the same process get them at once, also while the engine is away. What is lost is counted
where it is lost, see :class:`PlaneCounters`, and a process that may have missed something gets one ``gap`` event for
each time.

Everybody who can publish at the engine can say anything to all processes, under any topic. So the engine must not be
reachable for anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple

import gevent
from gevent import get_hub
from gevent.hub import Hub

from .. import options as opts
from ..core.closing import Closable
from ..core.sending.content import as_content
from ..core.threadsafe import ThreadsafeHandle
from ..errors import BadTopic, Closed, ForkedSocketError, NotSupported, PublicationTooLong, Timeout
from ..loop import owner
from ..loop.callbacks import Callbacks
from ..loop.waiting import Deadline
from ..loop.yielding import yield_to_loop
from ..options import OptionValues, PlaneOptions
from ..protocol.rights import Authorize, RemoteSub
from ..protocol.subscriptions import check_pattern, check_topic
from . import totals
from .allprocesses import AllProcesses
from .brokertopics import remember
from .control import Control
from .engine import RESERVED, SILENCE
from .engines import find_engine
from .ledger import Overflow
from .link import EventKind, Link, shown
from .local import LocalSubscribers, PlanePub, Subscription
from .planehistory import HistoryTopics

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Backplane", "PlaneCounters", "PlaneEvent", "ThreadsafePublisher"]

_current_thread = owner.current_thread

#: Publications after which others run.
_PORTION: Final = 1000
#: Events that may wait for a callback.
_MAX_EVENTS: Final = 1024


class PlaneEvent(NamedTuple):
    """Something that happened to a plane.

    Attributes:
        kind: ``"up"``: the engine serves everything that is wanted here. ``"down"``: it does not. ``"gap"``:
            publications of other processes may have been missed. ``"refused"``: the server does not allow a pattern.
        reason: why, for people.
    """

    kind: EventKind
    reason: str


class PlaneCounters(NamedTuple):
    """The counters of a plane in this process. Always ``sent = confirmed + sum(dropped) + unconfirmed + buffered``.

    Attributes:
        sent: publications of this process.
        confirmed: those that the server has got.
        dropped: those that were given up, by reason: ``"overflow"``: the buffer was full.
        unconfirmed: those that the server has not confirmed yet, or had not when a connection was lost. Some of these
            may have arrived.
        buffered: those that wait while the engine is away or slow.
        received: publications of other processes.
        echoes: publications of this process that came back, and were ignored.
        duplicates: publications that came again, and were ignored.
        gaps: how often publications of other processes may have been missed.
        lag: seconds since the server has last confirmed something, 0.0 if there is nothing to confirm.
    """

    sent: int
    confirmed: int
    dropped: Mapping[str, int]
    unconfirmed: int
    buffered: int
    received: int
    echoes: int
    duplicates: int
    gaps: int
    lag: float


class _Events:
    """The callbacks for events."""

    __slots__ = ("_callbacks", "_number", "add")

    def __init__(self) -> None:
        self._callbacks = Callbacks(gevent.spawn, "gmultisocket.backplane", "backplane event")
        self.add = self._callbacks.add
        self._number = 0

    def tell(self, kind: EventKind, reason: str) -> None:
        """Call the callbacks with an event, later."""
        self._number += 1
        self._callbacks.post(self._number % _MAX_EVENTS, PlaneEvent(kind, reason))


class Backplane(AllProcesses, Closable):
    """Publishes to, and subscribes to, all processes that have a Backplane with the same URL.

    It opens nothing before it is first used, and connects in the background. It may be made before a fork: each process
    that uses it has its own connection. In a process it belongs to the thread that uses it first; in another one its
    methods raise :class:`~gmultisocket.errors.WrongThread`. Other threads publish with :meth:`threadsafe`.

    Args:
        url: of the engine. ``memory://NAME`` joins the planes of this thread. ``ipc:///PATH`` is a hub on this host,
            which is started if there is none. ``tcp://HOST:PORT`` and ``tls+tcp://HOST:PORT`` are a hub that
            ``gmultisocket hub`` runs somewhere. ``nats://`` and ``redis://`` are servers of NATS and Redis.
        options: ``plane.*``, and ``transport.tcp.*`` and ``transport.tls.*`` for the connection.
        history: patterns of the topics whose publications the engine keeps, e.g. ``["orders.>"]``: the last 10,000, and
            at most 16 MiB. A Sub that comes back to any process, with ``recover=True``, gets those that it has missed.
            All planes of a hub that say this have to say the same. Needs ``memory://``, a hub, Redis, or NATS with
            JetStream. Of these topics, subscribers in this process get the engine's copy; while it is away, they get
            nothing.

    Raises:
        UnknownTransport: no engine has the scheme.
        OptionError: an option is wrong.
        BadTopic: a pattern of the history is not one.
    """

    def __init__(self, url: str, options: OptionValues | None = None, *, history: Sequence[str] = ()) -> None:
        # A wrong URL or pattern is an error here, and not only at the first use.
        find_engine(url)
        for pattern in history:
            check_pattern(pattern)
        self._url = url
        self._history = tuple(history)
        self.options = PlaneOptions(options)
        self._reset()

    def _reset(self) -> None:
        """Begin as if it was never used."""
        self._link: Link | None = None
        self._control: Control | None = None
        self._thread = 0
        self._hub: Hub | None = None
        self._heads: dict[str, bytes] = {}
        #: The topics of which subscribers in this process get the engine's copy.
        self._history_topics: HistoryTopics | tuple[()] = ()
        self._local = LocalSubscribers()
        self._events = _Events()

    def __repr__(self) -> str:
        link = self._link
        state = "closed" if self._closing else "unused" if link is None else "up" if link.is_up else "down"
        return f"<Backplane {shown(self._url)} {state}>"

    def __enter__(self) -> Backplane:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Use

    def _use(self) -> Link:
        """Return the link of this process. The first call makes it.

        Raises:
            WrongThread: another thread has used the plane before.
            Closed: it is closed.
        """
        if self._closing:
            raise Closed("backplane")
        if self._link is None:
            self._thread, self._hub = _current_thread(), get_hub()
            local = self._local
            told = self._events.tell
            link = Link(self._url, self.options, local.deliver, local.gather, local.forget, told, self._history, local)
            self._control = Control(link, local)
            self._link = link
            if link.positions is not None:
                self._history_topics = link.positions.history.topics
            owner.register(self)
            totals.add(self, self._url)
            link.start()
        self._check()
        return self._link

    def _use_control(self) -> Control:
        """Return what the processes tell each other by; otherwise as :meth:`_use`."""
        self._use()
        assert self._control is not None
        return self._control

    def _check(self) -> None:
        if self._link is not None and _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)

    def connect(self, timeout: float | None = None) -> None:
        """Block until the engine is there, and serves everything that is wanted here. Nobody has to call it.

        Raises:
            EngineRefused: the server does not want this client, because the password is wrong for example.
            ConnectionFailed, TLSError: there is no connection; the error says why.
            Timeout: there is a server, and it does not answer in time.
            Closed: the plane is closed.
        """
        self._use().wait_up(timeout)

    def publish(self, topic: str, content: Buffer, *, retain: bool = False) -> None:
        """Publish to the subscribers of all processes.

        Never blocks, and never fails because the engine is away: then the publication waits, see ``plane.buffer_*``.
        Now and then it lets other greenlets run.

        Args:
            topic: e.g. ``"orders.eu.created"``. Those that begin with ``$plane.`` are reserved.
            content: bytes-like.
            retain: the engine keeps it, instead of the one before, as the topic's present value. Each new subscription
                that matches gets it, at every process. Subscribers in this process get it from the engine, too. The
                value of a hub is gone when the hub dies.

        Raises:
            BadTopic: it is not a topic, or the server cannot have it.
            NotSupported: ``retain``, and the server keeps no values. If that is not known yet, because it was not
                connected so far, the publication is dropped later, and counted (``"not supported"``).
            PublicationTooLong: the content is longer than the server takes.
            Closed: the plane is closed.
        """
        link = self._link
        if link is None or self._closing or _current_thread() != self._thread:
            link = self._use()
        head = self._heads.get(topic)
        if head is None:
            head = self._head(link, topic)
        if type(content) is not bytes:
            content = as_content(content)
        limit = link.engine.max_content
        if limit and len(content) > limit:
            raise PublicationTooLong(len(content), limit)
        local = self._local
        if retain:
            _check_values(link)
            # Local subscribers get the server's copy, too, so that all processes have the same value in the end.
            link.publish(head, content, "retain")
            return
        link.publish(head, content)
        if (local.pubs or local.subscriptions) and topic not in self._history_topics:
            local.deliver(topic, content)
        if not link.ledger.sent % _PORTION:
            yield_to_loop()

    def unretain(self, topic: str) -> None:
        """Forget the present value of a topic at all processes. Their subscribers are not told.

        It is in order with the publications of this plane, waits as they do while the engine is away, and counts as one
        in the counters.

        Raises:
            BadTopic, NotSupported, Closed: as :meth:`publish`.
        """
        link = self._use()
        head = self._heads.get(topic) or self._head(link, topic)
        _check_values(link)
        link.publish(head, b"", "unretain")

    def _head(self, link: Link, topic: str) -> bytes:
        check_topic(topic)
        if topic.startswith(RESERVED):
            raise BadTopic(topic, f"topics that begin with {RESERVED} are reserved")
        head = link.engine.head(topic)
        remember(self._heads, topic, head)
        return head

    def pub(
        self,
        options: OptionValues | None = None,
        *,
        authorize: Authorize | None = None,
        authorize_through_switches: bool = False,
        presence_names: Callable[[RemoteSub], str] | None = None,
    ) -> PlanePub:
        """Return a Pub for peers of this process, such as browsers. Does not block.

        Its subscribers get what is published anywhere, and its ``publish`` publishes everywhere. ``close()`` of the
        plane closes it.

        Args:
            options: as for a :class:`~gmultisocket.Pub`, but ``socket.send_overflow`` must not be ``block``.
            authorize, authorize_through_switches, presence_names: as for a Pub.
        """
        link, control = self._use(), self._use_control()
        pub = PlanePub(
            self,
            options,
            authorize=authorize,
            authorize_through_switches=authorize_through_switches,
            presence_names=presence_names,
            history=None if link.positions is None else link.positions.history,
        )
        self._local.pubs += (pub,)
        for topic, content in link.values:
            pub._deliver(topic, content, True, True)
        control.listen()
        return pub

    def subscribe(
        self,
        pattern: str,
        timeout: float | None = None,
        *,
        queue_size: int = 1024,
        overflow: Overflow = "drop_oldest",
    ) -> Subscription:
        """Subscribe this program to a pattern: ``for topic, content in plane.subscribe("orders.>")``.

        Without a timeout it does not block, and what other processes publish comes a little later. With one it blocks
        until the engine has confirmed it.

        Args:
            pattern: e.g. ``"orders.>"``.
            timeout: seconds.
            queue_size: publications that wait until they are received.
            overflow: which are dropped when there are more: ``"drop_oldest"`` or ``"drop_newest"``.

        Raises:
            BadTopic: it is not a pattern.
            Timeout: the engine has not confirmed it in time. Nothing is subscribed.
        """
        link = self._use()
        check_pattern(pattern)
        if type(queue_size) is not int or queue_size < 1:
            raise ValueError(f"queue_size is a number from 1, not {queue_size!r}")
        if overflow not in ("drop_oldest", "drop_newest"):
            raise ValueError(f"overflow is 'drop_oldest' or 'drop_newest', not {overflow!r}")
        subscription = Subscription(pattern, queue_size, overflow, lambda: self._check_same(link), self._unsubscribe)
        self._local.add(subscription)
        link.want(pattern)
        for topic, content in link.known_values(pattern):
            subscription.put(topic, content)
        if timeout is not None:
            try:
                if not link.wait_served(pattern, Deadline(timeout)):
                    raise Timeout("subscribe", timeout)
            except BaseException:
                subscription.close()
                raise
        return subscription

    def _check_same(self, link: Link) -> None:
        """Check that the caller is in the thread and the process of a link.

        Raises:
            WrongThread, ForkedSocketError: it is not.
        """
        if self._link is not link:
            raise ForkedSocketError
        self._check()

    def _unsubscribe(self, subscription: Subscription) -> None:
        self._local.remove(subscription)
        if self._link is not None:
            self._link.unwant(subscription.pattern)

    def _pub_wants(self, pub: PlanePub, pattern: str, wanted: bool) -> None:
        """A pattern has its first subscriber at a Pub, or has lost its last one."""
        assert self._link is not None
        if wanted and pattern not in pub.patterns:
            pub.patterns.add(pattern)
            self._link.want(pattern)
        elif not wanted and pattern in pub.patterns:
            pub.patterns.remove(pattern)
            self._link.unwant(pattern)

    def _is_served(self, pattern: str) -> bool:
        link = self._link
        return link is not None and link.is_served(pattern)

    def _wait_served(self, pattern: str) -> None:
        """Block until the engine serves a pattern, or brings nothing for ``plane.acknowledge_timeout``."""
        link = self._link
        if link is None:
            return
        positions = link.positions
        fetched = -1
        while not self._closing and fetched != (before := 0 if positions is None else positions.fetched):
            # A long history takes its time. It counts whether more of it comes.
            fetched = before
            deadline = Deadline(self.options.get(opts.plane.acknowledge_timeout))
            while link.wait_served(pattern, deadline):
                # Meanwhile a pattern that nobody has wanted any more may have been left, and asked for again.
                if positions is None:
                    return
                if not link.synchronizer.wait(deadline):
                    break
                if link.is_served(pattern):
                    return

    def _pub_closed(self, pub: PlanePub) -> None:
        self._local.pubs = tuple(each for each in self._local.pubs if each is not pub)
        for pattern in [*pub.patterns]:
            self._pub_wants(pub, pattern, False)

    # What is known

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns that this process has asked the engine for, and that are confirmed."""
        return () if self._link is None else self._link.interest.held

    @property
    def healthy(self) -> bool:
        """Whether the engine serves all that is wanted here, and confirms what is published. True before it is used."""
        link = self._link
        return link is None or (link.is_up and link.interest.settled and link.lag < SILENCE)

    @property
    def counters(self) -> PlaneCounters:
        """The counters of this process."""
        link = self._link
        if link is None:
            return PlaneCounters(0, 0, MappingProxyType({}), 0, 0, 0, 0, 0, 0, 0.0)
        ledger, once = link.ledger, link.once
        return PlaneCounters(
            ledger.sent, ledger.confirmed, MappingProxyType(dict(ledger.dropped)), ledger.unconfirmed, ledger.buffered,
            link.delivered, once.echoes, once.duplicates, link.gaps, link.lag,
        )  # fmt: skip

    def on_event(self, callback: Callable[[PlaneEvent], object]) -> Callable[[], None]:
        """Call ``callback(event)`` when the engine comes and goes, and for each gap.

        The callback runs in a greenlet of its own, and may block. In a forked process no callback is left.

        Returns:
            A callable that ends it.
        """
        self._check()
        return self._events.add(callback)

    # Threads

    def threadsafe(self) -> ThreadsafePublisher:
        """Return a handle by which any thread publishes. Close it when the threads have ended.

        Raises:
            WrongThread: this thread is not the one that uses the plane.
        """
        self._use()
        return ThreadsafePublisher(self)

    # Flushing and closing

    def _flush(self, deadline: Deadline) -> bool:
        return self._link is None or self._link.flush(deadline)

    def _unsent(self) -> int:
        link = self._link
        return 0 if link is None else link.ledger.buffered + link.ledger.in_flight

    def _unclosed(self) -> bool:
        return self._link is not None and not self._closing

    def _push_now(self) -> None:
        """Do nothing: a publication can only leave where the event loop runs."""

    @property
    def _home(self) -> tuple[int, Hub]:
        return self._thread, self._hub or get_hub()

    def _forked(self) -> bool:
        return False

    def _is_mine(self, greenlet: object) -> bool:
        return False

    def _close(self, deadline: Deadline) -> int:
        link, control = self._link, self._control
        if link is None:
            return 0
        try:
            if control is not None:
                control.close()
            try:
                self._local.close(deadline)
            finally:
                lost = link.close(deadline)
            if control is not None:
                control.join()
            return lost
        finally:
            totals.remove(self)
            owner.unregister(self)

    def _abandon(self) -> None:
        """Forget the parent's link in a forked child."""
        if self._link is not None:
            self._link.abandon()
        self._reset()


def _check_values(link: Link) -> None:
    if link.engine.no_values:
        raise NotSupported("retain", link.engine.no_values)


class ThreadsafePublisher(ThreadsafeHandle):
    """Publishes at a plane from any thread. The methods return at once; the plane's thread publishes later.

    Attributes:
        failed: how many publications were accepted here and then not published, e.g. because they were too long.
    """

    def __init__(self, plane: Backplane) -> None:
        super().__init__(plane)
        self._plane = plane

    def publish(self, topic: str, content: Buffer) -> None:
        """Publish, later.

        Raises:
            BadTopic: it is not a topic.
            MessageDropped: 10,000 publications wait already.
            Closed: the handle or the plane is closed.
        """
        check_topic(topic)
        self._post(self._plane.publish, topic, as_content(content))
