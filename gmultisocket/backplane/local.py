"""The subscribers of a plane in this process: its Pubs, and the subscriptions of the program itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from gevent import get_hub

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..errors import BadOptionValue, Closed, MessageTooLong
from ..errors import Timeout as TimeoutOfCall
from ..loop.waiting import Deadline, WaitList
from ..options import OptionValues
from ..protocol.history import Entry, History
from ..protocol.pubsub import Pub
from ..protocol.rights import Authorize, RemoteSub
from ..protocol.subscriptions import Subscriptions
from .ledger import Overflow

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["LocalSubscribers", "PlanePub", "Subscription"]

#: Topics whose subscriptions are remembered, until one changes.
_MAX_TOPICS: Final = 1024


class _PubOwner(Protocol):
    """What a Pub needs of its plane."""

    def publish(self, topic: str, content: Buffer, *, retain: bool = False) -> object: ...
    def unretain(self, topic: str) -> object: ...
    def _pub_wants(self, pub: PlanePub, pattern: str, wanted: bool) -> None: ...
    def _pub_closed(self, pub: PlanePub) -> None: ...
    def _is_served(self, pattern: str) -> bool: ...
    def _wait_served(self, pattern: str) -> None: ...


class PlanePub(Pub):
    """A Pub whose publications come from a backplane. Made by :meth:`.plane.Backplane.pub`.

    Attributes:
        patterns: those that its subscribers want, and the plane knows of. Read-only.
    """

    def __init__(
        self,
        plane: _PubOwner,
        options: OptionValues | None = None,
        *,
        authorize: Authorize | None = None,
        authorize_through_switches: bool = False,
        presence_names: Callable[[RemoteSub], str] | None = None,
        history: History | None = None,
    ) -> None:
        for name, value in (options or {}).items():
            # Before the socket is made: it would have to be closed.
            if opts.lookup(name) is opts.socket.send_overflow:
                _check_overflow(value)
        super().__init__(
            options,
            authorize=authorize,
            authorize_through_switches=authorize_through_switches,
            presence_names=presence_names,
            history=history,
        )
        self._has_history = history is not None
        self._plane: _PubOwner | None = plane
        self.patterns: set[str] = set()
        self.options.on_change(opts.socket.send_overflow, lambda old, new: None, _check_overflow)
        self.on_interest(self._interest)
        self.hold_acknowledgements(self._hold)

    def publish(self, topic: str, content: Buffer, timeout: float | None = None, *, retain: bool = False) -> int:
        """Publish to the subscribers of all processes, those of this Pub included. Never blocks.

        Args:
            topic: e.g. ``"orders.eu.created"``.
            content: bytes-like.
            timeout: has no effect.
            retain: as for :meth:`.plane.Backplane.publish`.

        Returns:
            The number of pipes of this Pub that it went to.

        Raises:
            BadTopic, MessageTooLong, NotSupported, Closed: as :meth:`.plane.Backplane.publish`.
        """
        if self._plane is None:
            raise Closed("Pub")
        reached = self.reach(topic)
        self._plane.publish(topic, content, retain=retain)
        return reached

    def unretain(self, topic: str) -> bool:
        """Forget the present value of a topic at all processes, as :meth:`.plane.Backplane.unretain` does.

        Returns:
            Whether this process knows a value now. It does only while somebody here wants it.
        """
        if self._plane is None:
            raise Closed("Pub")
        self._plane.unretain(topic)
        history = self._keeper.history
        return history is not None and bool(history.retained(topic))

    def _forget(self, topic: str) -> None:
        """Remove the present value of a topic, which new subscribers would get."""
        if not self._closing:
            super().unretain(topic)

    def _deliver(self, topic: str, content: bytes, retain: bool, send: bool) -> None:
        """Send to the subscribers of this Pub; or only keep it for those that are not acknowledged yet."""
        if self._closing:
            return
        try:
            if send:
                super().publish(topic, content, retain=retain)
            else:
                self._keeper.keep(topic, content)
        except MessageTooLong:
            self._core.count_drop("too long")

    def _gather(self) -> None:
        self._core.gather()

    def _deliver_entry(self, entry: Entry) -> None:
        """Send a publication with its position to the subscribers of this Pub."""
        if self._closing:
            return
        try:
            self.publish_entry(entry)
        except MessageTooLong:
            self._core.count_drop("too long")

    def _interest(self, pattern: str, wanted: bool) -> None:
        if self._plane is not None:
            self._plane._pub_wants(self, pattern, wanted)

    def _hold(self, subscriber: RemoteSub, pattern: str, release: Callable[[], None]) -> bool:
        """Delay an acknowledgement until publications of other processes come. Return whether it is delayed."""
        if self._plane is None or (not self._has_history and self._plane._is_served(pattern)):
            return False
        self._spawn(self._release, pattern, release)
        return True

    def _release(self, pattern: str, release: Callable[[], None]) -> None:
        """Send a delayed acknowledgement when its time has come (a greenlet for each)."""
        if self._plane is not None:
            self._plane._wait_served(pattern)
        release()

    def _ended(self) -> None:
        super()._ended()
        plane, self._plane = self._plane, None
        if plane is not None:
            plane._pub_closed(self)


def _check_overflow(value: object) -> None:
    if value == "block":
        why = "drop_newest, drop_oldest or disconnect: one peer of a plane must not block the others"
        raise BadOptionValue(opts.socket.send_overflow.name, value, why)


class Subscription:
    """A program's subscription to a plane. Iterable: ``for topic, content in subscription``.

    Publications wait in a queue until they are received. Any number of greenlets may receive; each publication goes to
    one of them.

    Attributes:
        pattern: what it subscribes to.
        dropped: publications that were dropped because the queue was full.
    """

    def __init__(
        self,
        pattern: str,
        queue_size: int,
        overflow: Overflow,
        check: Callable[[], object],
        close: Callable[[Subscription], object],
    ) -> None:
        self.pattern = pattern
        self._check = check
        self.dropped = 0
        self._size = queue_size
        self._drops_oldest = overflow == "drop_oldest"
        self._queue: deque[tuple[str, bytes]] = deque()
        self._arrived = WaitList(get_hub(), lambda: self._queue)
        self._on_close = close
        self._closed = False

    def __repr__(self) -> str:
        return f"<Subscription {self.pattern!r} {'closed' if self._closed else 'open'} waiting={len(self._queue)}>"

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """The number of publications that wait to be received."""
        return len(self._queue)

    def recv(self, timeout: float | None = None) -> tuple[str, bytes]:
        """Return the topic and the content of the next publication. Blocks until there is one.

        Raises:
            Timeout: none came in time.
            Closed: it is closed, and everything that had come was received.
            WrongThread, ForkedSocketError: it was made in another thread or process.
        """
        self._check()
        if self._queue:
            return self._queue.popleft()
        deadline = Deadline(timeout)
        while not self._queue:
            if self._closed:
                raise Closed("subscription")
            if not self._arrived.wait(deadline.left()) and not self._queue:
                raise TimeoutOfCall("recv", timeout)
        return self._queue.popleft()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Iterate over publications as they come; ends when it is closed and what had come was received."""
        while True:
            try:
                publication = self.recv()
            except Closed:
                return
            yield publication

    def close(self) -> None:
        """End the subscription. What has come can still be received. Does not block; may be repeated."""
        self._check()
        if not self._closed:
            self._closed = True
            self._arrived.wake_all()
            self._on_close(self)

    def put(self, topic: str, content: bytes) -> None:
        """Add a publication, or drop one. Neither blocks nor switches greenlets."""
        if len(self._queue) >= self._size:
            self.dropped += 1
            if not self._drops_oldest:
                return
            self._queue.popleft()
        self._queue.append((topic, content))
        if self._arrived.waiters:
            self._arrived.wake()


class LocalSubscribers:
    """The subscribers in one process.

    Attributes:
        pubs: the open Pubs.
        subscriptions: the open subscriptions. Read-only.
    """

    __slots__ = ("_index", "_topics", "pubs", "subscriptions")

    def __init__(self) -> None:
        self.pubs: tuple[PlanePub, ...] = ()
        self.subscriptions: list[Subscription] = []
        self._index: Subscriptions[Subscription] = Subscriptions()
        #: By topic: the subscriptions that match.
        self._topics: dict[str, tuple[Subscription, ...]] = {}

    def add(self, subscription: Subscription) -> None:
        """Add a subscription."""
        self.subscriptions.append(subscription)
        self._index.add(subscription.pattern, subscription)
        self._topics.clear()

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription."""
        self.subscriptions.remove(subscription)
        self._index.remove(subscription.pattern, subscription)
        self._topics.clear()

    def forget(self, topic: str) -> None:
        """Remove the present value of a topic from all Pubs."""
        for pub in self.pubs:
            pub._forget(topic)

    def deliver_entry(self, entry: Entry) -> None:
        """Hand a publication with its position to all who want it. As :meth:`deliver`."""
        for pub in self.pubs:
            pub._deliver_entry(entry)
        self.deliver_value(entry)

    def deliver_value(self, entry: Entry) -> None:
        """Hand a publication to the program's subscriptions."""
        for subscription in self._wanting(entry.topic):
            subscription.put(entry.topic, entry.content)

    def replay_behind(self, offset: int, topics: Collection[str]) -> None:
        """Replay what was missed to all subscribers of Pubs that ask for history."""
        for pub in self.pubs:
            pub.replay_behind(offset, topics)

    def history_began(self) -> None:
        """Replay to all subscribers again: the engine has another history than before."""
        for pub in self.pubs:
            pub.replay_again()

    def deliver(self, topic: str, content: bytes, retain: bool = False, send: bool = True) -> None:
        """Hand a publication to all who want it. Does not block for any of them, but may let others run.

        Args:
            topic: must be valid.
            content: its content.
            retain: whether Pubs keep it for subscribers that come later.
            send: False if those that are there get it with their acknowledgement.
        """
        for pub in self.pubs:
            pub._deliver(topic, content, retain, send)
        for subscription in self._wanting(topic):
            subscription.put(topic, content)

    def gather(self) -> None:
        """Several publications follow in this turn of the loop: each subscriber gets them in one system call."""
        for pub in self.pubs:
            pub._gather()

    def _wanting(self, topic: str) -> tuple[Subscription, ...]:
        """Return the program's subscriptions that match a topic."""
        if not self.subscriptions:
            return ()
        found = self._topics.get(topic)
        if found is None:
            if len(self._topics) >= _MAX_TOPICS:
                self._topics.clear()
            found = self._topics[topic] = tuple(self._index.match(topic))
        return found

    def pipes(self) -> Iterator[tuple[PlanePub, Pipe]]:
        """Iterate over the pipes of all Pubs."""
        for pub in self.pubs:
            for pipe in [*pub.pipes.values()]:
                yield pub, pipe
