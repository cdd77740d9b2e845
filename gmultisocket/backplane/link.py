"""One process's link to the engine: everything about publications and patterns that does not depend on the engine.

A greenlet does the work that waits for something: it tells the engine about patterns, and hands it what is buffered.
All else happens in the greenlet of the caller, or in that of the engine.

After a connection was lost and made again, publications wait for ``plane.hold`` seconds more: other processes have lost
theirs too, and what the server gets before they have subscribed again would not reach them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Final, Literal

import gevent
from gevent import Greenlet, get_hub, getcurrent
from gevent.event import Event

from .. import options as opts
from ..errors import Closed, ConnectionFailed, EngineRefused, MultiSocketError, Timeout, TLSError
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL, Ended, survive
from ..loop.waiting import Deadline, WaitList
from ..loop.yielding import yield_to_loop
from ..options import Options
from ..protocol.history import Entry
from ..protocol.subscriptions import matches
from .engine import ORIGIN_SIZE, RESERVED, Engine
from .engines import find_engine
from .interest import Interest
from .ledger import Kept, Kind, Ledger
from .once import Once
from .positions import LocalHistory, PositionedPublications
from .values import Values

__all__ = ["EventKind", "Link", "shown"]

logger = get_logger("gmultisocket.backplane")
_log = ThrottledLog(logger, LOG_INTERVAL)

EventKind = Literal["up", "down", "gap", "refused"]

#: Seconds from the start within which it is no news that there is no server.
_PATIENCE: Final = 1.0
#: Publications that are handed to the engine before others run.
_PORTION: Final = 256


def shown(url: str) -> str:
    """Return a URL without user names, passwords and options, for people. What may be a part of a password is left out.

    Somebody may have written a password with a plain "," or "?".
    """
    scheme, mark, rest = url.partition("://")
    location, _, query = rest.partition("?")
    if location.startswith(("/", "@")):
        # A path or a name, which may contain "@".
        return scheme + mark + location
    if "@" in query and "@" not in location:
        return f"{scheme}{mark}***"
    logins, _, others = location.rpartition("@")
    with_logins = [each.rpartition("@")[2] for each in logins.split(",")[:-1] if "@" in each]
    return scheme + mark + ",".join([*with_logins, others])


class Synchronizer:
    """Finds out whether all that was published with a position has come. Asks once for all who wait.

    Args:
        ask: asks the engine.
        is_connected: whether it can be asked.
        changes: wakes those who wait, when something has come from the engine.
    """

    __slots__ = ("_answered", "_ask", "_asked", "_changes", "_is_connected")

    def __init__(self, ask: Callable[[], object], is_connected: Callable[[], bool], changes: WaitList) -> None:
        self._ask = ask
        self._is_connected = is_connected
        self._changes = changes
        #: Askings: all, and those that were answered. At most one has no answer.
        self._asked = 0
        self._answered = 0

    def wait(self, deadline: Deadline) -> bool:
        """Block until all that was published before has come here. Return whether that is so in time.

        So a subscriber that has been at another process finds here what it has had there.
        """
        # An asking that is on its way may have been sent too early.
        wanted = self._asked + 1
        while self._answered < wanted:
            if self._is_connected() and self._asked == self._answered:
                self._asked += 1
                self._ask()
            if not self._changes.wait(deadline.left()):
                return False
        return True

    def answered(self) -> None:
        """The engine has answered."""
        self._answered = self._asked

    def cut(self) -> None:
        """The connection is lost, and with it the answer."""
        self._asked = self._answered


class Link:
    """Publishes and subscribes at an engine. Opens nothing before :meth:`start`.

    Args:
        url: of the engine.
        options: of the plane.
        deliver: called as ``deliver(topic, content)`` for each publication of another plane, once. For the present
            value of a topic, as ``deliver(topic, content, True, send)``, see ``LocalSubscribers.deliver``.
        gather: called when several publications follow in this turn of the loop.
        forget: called as ``forget(topic)`` when the present value of a topic is not known any more.
        tell: called as ``tell(kind, reason)`` for each event. Must not block.
        history: patterns of the topics with history.
        local: takes what has a position, if there is history.

    Attributes:
        origin: names this link in all its publications.
        engine: the engine.
        ledger: what became of the publications.
        interest: the patterns.
        values: the present values of topics that match them.
        once: finds echoes and duplicates.
        delivered: the number of publications that came from other planes.
        gaps: how often publications of others may have been missed.
        is_connected: whether the engine has a connection.
        is_up: whether it also has confirmed all patterns that were wanted when it connected.
        last_error: why there is no connection.
        positions: what has a position, None without history.
        synchronizer: finds out what the last position is.
        on_control: called with what comes under a reserved topic, instead of ``deliver``.

    Raises:
        AddressError: it is no URL of an engine.
    """

    def __init__(
        self,
        url: str,
        options: Options,
        deliver: Callable[..., object],
        gather: Callable[[], None],
        forget: Callable[[str], object],
        tell: Callable[[EventKind, str], object],
        history: Sequence[str] = (),
        local: LocalHistory | None = None,
    ) -> None:
        self.url = shown(url)
        self.origin = os.urandom(ORIGIN_SIZE)
        self._options = options
        self._deliver = deliver
        self.gather = gather
        self._tell = tell
        self.ledger = Ledger(
            options.get(opts.plane.buffer_messages),
            options.get(opts.plane.buffer_bytes),
            options.get(opts.plane.buffer_overflow),
        )
        self.interest = Interest(options.get(opts.plane.linger))
        self.values = Values(forget)
        self.once = Once(self.origin)
        self._is_new = self.once.is_new
        self._sequence = 0
        self.delivered = self.gaps = 0
        self.is_connected = self.is_up = False
        self.last_error: MultiSocketError | None = None
        self.on_control: Callable[[bytes], object] = _ignore
        self.history = history
        self.positions = PositionedPublications(history, local) if history and local is not None else None
        #: The number of connections so far, and the last one over which everything is served.
        self._connections = self._returned_by = 0
        self._was_connected = self._told_down = False
        #: Why publications of others may have been missed, "" if none may.
        self._missed = ""
        #: Until when publications wait after a connection was made again.
        self._held_until = 0.0
        #: Whether a publication goes to the engine at once.
        self._direct = False
        #: When the server last confirmed something, or nothing was in flight.
        self._progress = 0.0
        self._closed = False
        self._started = 0.0
        self._wake = Event()
        self._changes = WaitList(get_hub(), lambda: True)
        self._greenlet: Greenlet[..., Any] | None = None
        self.engine: Engine = find_engine(url)(url, self, options)
        self._engine_publish = self.engine.publish
        self.synchronizer = Synchronizer(self.engine.synchronize, lambda: self.is_connected, self._changes)

    def start(self) -> None:
        """Begin to connect. Does not block."""
        self._started = monotonic()
        self._greenlet = gevent.spawn(self._work)
        self.engine.start()

    # Publications

    def publish(self, head: bytes, content: bytes, kind: Kind = "publish") -> None:
        """Publish, now or when the engine is there. Never blocks.

        Args:
            head: as the engine has made it of the topic.
            content: must not be longer than the engine's ``max_content``.
            kind: what the server does with it besides.
        """
        ledger = self.ledger
        ledger.sent += 1
        self._sequence = sequence = self._sequence + 1
        if not self._direct:
            ledger.keep(Kept(head, content, sequence, kind))
            return
        # Each publication comes through here, so this calls nothing that is not needed.
        if not ledger.bytes_in_flight:
            self._progress = monotonic()
        ledger.hand_over(len(head) + len(content))
        if kind == "publish":
            self._engine_publish(head, content, sequence)
        else:
            self._hand_over(head, content, sequence, kind)
        self._direct = ledger.is_open

    def _hand_over(self, head: bytes, content: bytes, sequence: int, kind: Kind) -> None:
        if kind == "publish":
            self._engine_publish(head, content, sequence)
        elif kind == "retain":
            self.engine.retain(head, content, sequence)
        else:
            self.engine.unretain(head, sequence)

    @property
    def lag(self) -> float:
        """The seconds since the server has last confirmed a publication, 0.0 if there is none to confirm."""
        return monotonic() - self._progress if self.ledger.in_flight else 0.0

    def flush(self, deadline: Deadline) -> bool:
        """Block until every publication is confirmed, dropped or given up. Return whether that is so in time.

        Returns False at once if the server does not want this client, and nothing can leave.
        """
        while self.ledger.buffered or self.ledger.in_flight:
            if self._closed or (not self.is_connected and _is_final(self.last_error)):
                return False
            if not self._changes.wait(deadline.left()):
                return False
        return True

    def _drain(self) -> None:
        """Hand buffered publications to the engine, as far as the window allows."""
        ledger = self.ledger
        number = 0
        while self.is_connected and ledger.buffered and ledger.is_open:
            kept = ledger.take()
            if (reason := _unfit(kept, self.engine)) is not None:
                ledger.drop(reason)
                self._changes.wake_all()
                continue
            if not ledger.in_flight:
                self._progress = monotonic()
            ledger.hand_over(kept.size)
            self._hand_over(*kept)
            number += 1
            if number % _PORTION == 0:
                yield_to_loop()
        self._direct = self.is_connected and not ledger.buffered and ledger.is_open

    # Patterns

    def want(self, pattern: str) -> None:
        """Ask the engine for a pattern, soon. Neither blocks nor switches greenlets."""
        self.interest.add(pattern)
        self._wake.set()

    def unwant(self, pattern: str) -> None:
        """Take back one call of :meth:`want`. Neither blocks nor switches greenlets."""
        self.interest.remove(pattern, monotonic())
        self._wake.set()

    def is_served(self, pattern: str) -> bool:
        """Return whether what others publish under a wanted pattern comes here."""
        if self.positions is not None and self.positions.is_catching_up:
            return False
        return self.is_connected and self.interest.is_served(pattern)

    def wait_served(self, pattern: str, deadline: Deadline) -> bool:
        """Block until what others publish under a wanted pattern comes here. Return whether that is so in time."""
        while not self.is_served(pattern):
            if self._closed or not self._changes.wait(deadline.left()):
                return False
        return True

    def _tell_interest(self) -> None:
        """Tell the engine what is wanted, and what is not."""
        if not self.is_connected:
            return
        if left := self.interest.take_unsubscribes():
            self.engine.unsubscribe(left)
            self.values.forget_others(self.interest.matches)
            if self.positions is not None:
                self.positions.history.left(left, self.interest.matches)
        if portion := self.interest.take_subscribes():
            self.engine.subscribe(portion)
        elif self.interest.settled and self._returned_by != self._connections:
            self._returned_by = self._connections
            self._back()

    def _back(self) -> None:
        """The engine serves everything again, or for the first time."""
        for _ in () if self.positions is None else self.positions.settled(self._told_down):
            yield_to_loop()
            if not self.is_connected or self._returned_by != self._connections:
                return
        self.is_up = True
        self._told_down = False
        if self._missed:
            reason, self._missed = self._missed, ""
            self.gap(reason)
        self._tell("up", "")
        self._changes.wake_all()

    def wait_up(self, timeout: float | None) -> None:
        """Block until the engine is there and serves all patterns.

        Raises:
            ConnectionFailed, TLSError: it is not, and this is why.
            Timeout: it does not answer.
            Closed: it was closed.
        """
        deadline = Deadline(timeout)
        while not (self.is_up and self.interest.settled):
            if self._closed:
                raise Closed("backplane")
            if not self.is_connected and _is_final(self.last_error):
                assert self.last_error is not None
                raise self.last_error
            if not self._changes.wait(deadline.left()):
                if self.last_error is None or self.is_connected:
                    raise Timeout("connect", timeout)
                raise ConnectionFailed(self.url, f"not connected after {timeout} s: {self.last_error}")

    # The greenlet

    def _work(self) -> None:
        while True:
            self._wake.clear()
            now = monotonic()
            try:
                self._work_once(now)
            except Exception as error:
                survive(_log, "work", error, "the work of a backplane has failed, and goes on")
            self._wake.wait(self._pause(now))

    def _work_once(self, now: float) -> None:
        self.interest.expire(now)
        self._tell_interest()
        if now >= self._held_until:
            self._drain()

    def _pause(self, now: float) -> float | None:
        """Return the seconds until there is something to do, None if that is not known."""
        times = [time for time in (self.interest.next_expiry, self._held_until) if time is not None and time > now]
        return max(0.001, min(times) - now) if times else None

    # What the engine says: see engine.Plane

    def connected(self) -> None:
        self.last_error = None
        self.is_connected = True
        self._connections += 1
        if self._was_connected:
            self._held_until = monotonic() + self._options.get(opts.plane.hold)
        self._was_connected = True
        self._tell_interest()
        self._wake.set()

    def disconnected(self, error: MultiSocketError) -> None:
        if self._closed:
            return
        self.last_error = error
        # The first attempts may come before a server that starts at the same time.
        early = not self._was_connected and not _is_final(error) and monotonic() - self._started < _PATIENCE
        if self.is_connected:
            self.is_connected = self.is_up = self._direct = False
            self.ledger.cut()
            if self.positions is not None:
                self.positions.cut()
                self.synchronizer.cut()
            if len(self.interest):
                self._missed = str(error)
            self.interest.cut()
            # The server, or another one in its place, says what they are now.
            self.values.clear()
        if not self._told_down and not early:
            self._told_down = True
            logger.warning("the backplane at %s is away: %s", self.url, error)
            self._tell("down", str(error))
        self._changes.wake_all()

    def subscribed(self) -> None:
        self.interest.confirm()
        self._changes.wake_all()
        self._wake.set()

    def interest_refused(self, pattern: str, reason: str) -> None:
        logger.error("the backplane at %s refuses %r: %s", self.url, pattern, reason)
        self._tell("refused", f"{pattern}: {reason}")

    def confirmed(self, count: int) -> None:
        self._progress = monotonic()
        self.ledger.confirm(count)
        self._landed()

    def refused(self, reason: str) -> None:
        self._progress = monotonic()
        self.ledger.refuse(reason)
        self._landed()

    def _landed(self) -> None:
        if self.ledger.buffered or not self._direct:
            self._wake.set()
        self._changes.wake_all()

    def received(self, topic: str, content: bytes, origin: bytes, sequence: int) -> None:
        if not self._is_new(origin, sequence):
            return
        if topic[0] == "$" and topic.startswith(RESERVED):
            self.on_control(content)
        else:
            self.delivered += 1
            self._deliver(topic, content)

    def retained(self, topic: str, content: bytes, origin: bytes, sequence: int, live: bool) -> None:
        # It may be this plane's own. What nobody wants any more would never be forgotten.
        if self.interest.matches(topic) and self.values.is_new(topic, origin, sequence):
            self.delivered += 1
            self.values.keep(topic, content, origin, sequence)
            # While the engine was away, subscriptions were acknowledged without it.
            self._deliver(topic, content, True, live or self._told_down)

    def known_values(self, pattern: str) -> list[tuple[str, bytes]]:
        """Return the topics that match a pattern and their present values, as far as they are known here."""
        found = [(topic, content) for topic, content in self.values if matches(pattern, topic)]
        if self.positions is not None:
            found += [(topic, content) for _, _, topic, content in self.positions.history.retained(pattern)]
        return found

    def unretained(self, topic: str) -> None:
        self.values.forget(topic)
        if self.positions is not None:
            self.positions.history.unretain(topic)

    def histories(self, patterns: Iterable[str]) -> None:
        assert self.positions is not None
        self.positions.history.topics.add(patterns)

    def began(self, epoch: int, last_offset: int) -> None:
        assert self.positions is not None
        self.positions.connected(epoch, last_offset)

    def positioned(self, entry: Entry, logged: bool, retained: bool, live: bool) -> None:
        if self.positions is not None and self.interest.matches(entry.topic):
            self.delivered += 1
            if retained:
                self.values.forget(entry.topic)
            self.positions.take(entry, logged, retained, live)

    def fetched(self, pattern: str, complete_from: int, last_offset: int) -> None:
        if self.positions is not None:
            self.positions.history.fetched(pattern, complete_from, last_offset)

    def synchronized(self, last_offset: int) -> None:
        self.synchronizer.answered()
        if self.positions is not None and not self.positions.is_catching_up:
            self.positions.history.advance(last_offset)
        self._changes.wake_all()

    def gap(self, reason: str) -> None:
        self.gaps += 1
        logger.warning("publications at %s may have been missed: %s", self.url, reason)
        self._tell("gap", reason)

    # The end

    def close(self, deadline: Deadline) -> int:
        """Wait until publications have left, then close the engine. Return how many are lost or may be."""
        try:
            self.flush(deadline)
        finally:
            self._closed = True
            self._direct = False
            try:
                self.engine.close(deadline)
            finally:
                lost = self.ledger.in_flight + self.ledger.drop_buffered("closed")
                self.ledger.cut()
                if self._greenlet is not None and self._greenlet is not getcurrent():
                    self._greenlet.kill(Ended)
                self._changes.wake_all()
        return lost

    def abandon(self) -> None:
        """Close descriptors in a forked child. Never switches greenlets."""
        self.engine.abandon()


def _unfit(kept: Kept, engine: Engine) -> str | None:
    """Return why a publication cannot be sent that was published before it was known what the server can do."""
    if engine.max_content and len(kept.content) > engine.max_content:
        return "too long"
    if kept.kind != "publish" and engine.no_values:
        _log.log("no values", logging.ERROR, "a present value was dropped: %s", engine.no_values)
        return "not supported"
    return None


def _ignore(content: bytes) -> None:
    """Do nothing with a control message."""


def _is_final(error: MultiSocketError | None) -> bool:
    """Return whether an error will hardly go away by itself."""
    return isinstance(error, (EngineRefused, TLSError))
