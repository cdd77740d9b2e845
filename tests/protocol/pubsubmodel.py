"""Publish and subscribe with histories, without any I/O: publishers, links that lose messages, and one subscriber.

A model of what Pub and Sub do with the messages of :mod:`gmultisocket.protocol.pubsubwire`. :class:`Judge` holds the
promise: what a Sub hands out is in order and without duplicates for each history and topic, and whatever is missing
between two publications is told before the second one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from gmultisocket.protocol.history import Entry, Kept
from gmultisocket.protocol.memoryhistory import MemoryHistory
from gmultisocket.protocol.positions import Gap, Positions
from gmultisocket.protocol.pubsubwire import Ask, Positioned, Replay
from gmultisocket.protocol.replays import Beginning, Pins
from gmultisocket.protocol.subscriptions import matches

#: Live publications that wait on a link; more are dropped.
QUEUE = 4
#: Publications that wait in a replay.
REPLAY = 3


class ModelHistory(MemoryHistory):
    """A history, and everything that was ever in it."""

    def __init__(self, *patterns: str, **limits: Any) -> None:
        super().__init__(*patterns, **limits)
        self.truth: list[Entry] = []

    def append(self, topic: str, content: bytes, retain: bool = False) -> Kept | None:
        entry = super().append(topic, content, retain)
        if entry is not None:
            self.truth.append(Entry(*entry))
        return entry


class Link:
    """A connection between the Sub and a publisher. Messages wait on it in order."""

    def __init__(self, number: int) -> None:
        self.source = number.to_bytes(4, "big")
        self.number = number
        self.up: deque[Ask | str] = deque()
        self.down: deque[Replay | Positioned] = deque()


@contextmanager
def portions_of(size: int) -> Iterator[None]:
    """Set the size of the portions of histories and replays. Make the histories inside the block."""
    package = "gmultisocket.protocol"
    with (
        patch(f"{package}.entrylog.PORTION", size),
        patch(f"{package}.memoryhistory.PORTION", size),
        patch(f"{package}.memoryhistory.CHUNK", size + 1),
        patch(f"{package}.memoryhistory._MORE", 1),
        patch(f"{package}.history._PORTION", size),
        patch(f"{package}.replays._PORTION", size),
    ):
        yield


class ModelReplay:
    """A replay: what is still to be found and to be sent for one asking, and what was published meanwhile."""

    def __init__(self, ask: Ask, history: ModelHistory, pins: Pins) -> None:
        self.ask = ask
        self.beginning = Beginning(history, ask, history.last_offset, pins)
        self.steps: Iterator[None] | None = self.beginning.steps()
        self.answered = False
        self.added: deque[Kept] = deque()
        self.behind = 0

    @property
    def is_over(self) -> bool:
        return self.answered and not (self.beginning.entries or self.added or self.behind or self.steps)


class ModelPub:
    """A publisher. Several may share one history, as the workers behind a backplane do."""

    def __init__(self, history: ModelHistory, replay_bytes: int = 1 << 20) -> None:
        self.history = history
        self.link: Link | None = None
        self.live: set[str] = set()
        self.pins = Pins(lambda: replay_bytes)
        #: By pattern: the askings, and the replays that run.
        self.askings: dict[str, Ask] = {}
        self.replays: dict[str, ModelReplay] = {}

    def connect(self, link: Link) -> None:
        self.link = link

    def change(self, history: ModelHistory) -> None:
        """Serve another history from now on."""
        self.history = history
        for asking in self.askings.values():
            self._answer(asking)

    def cut(self) -> None:
        self.link = None
        self.live.clear()
        self.askings.clear()
        for pattern in [*self.replays]:
            self.drop(pattern)

    def drop(self, pattern: str) -> None:
        """Send nothing more by a pattern."""
        self.live.discard(pattern)
        replay = self.replays.pop(pattern, None)
        if replay is not None:
            for entry in (*replay.beginning.entries, *replay.added):
                self.pins.remove(entry)

    def published(self, entry: Kept) -> None:
        link = self.link
        if link is None:
            return
        topic = entry[2]
        if any(matches(pattern, topic) for pattern in self.live) and len(link.down) < QUEUE:
            link.down.append(self._message(0, entry))
        for pattern, replay in self.replays.items():
            if matches(pattern, topic) and not replay.behind:
                if len(replay.added) < REPLAY and self.pins.add((entry,)):
                    replay.added.append(entry)
                else:
                    replay.behind = entry[0] - 1

    def receive(self) -> None:
        """Take the next message of the Sub. What is found at once of a replay begins it."""
        assert self.link is not None
        message = self.link.up.popleft()
        pattern = message if isinstance(message, str) else message.pattern
        self.askings.pop(pattern, None)
        self.drop(pattern)
        if isinstance(message, Ask):
            self.askings[pattern] = message
            self._answer(message)

    def _answer(self, asking: Ask) -> None:
        self.drop(asking.pattern)
        self.replays[asking.pattern] = ModelReplay(asking, self.history, self.pins)
        self.pump(asking.pattern)

    def pump(self, pattern: str) -> None:
        """Find a portion of a replay, or send one publication of it; behind the last one, the end, and go live."""
        assert self.link is not None
        replay = self.replays[pattern]
        head = None
        waiting = replay.beginning.entries or replay.added
        if replay.steps is not None:
            try:
                next(replay.steps)
                return
            except StopIteration as end:
                replay.steps = None
                head = None if replay.answered else end.value
                replay.answered = True
        elif waiting:
            entry = waiting.popleft()
            self.pins.remove(entry)
            self.link.down.append(self._message(replay.ask.id, entry))
        if replay.behind and not (replay.beginning.entries or replay.added):
            replay.steps = replay.beginning.more(replay.behind)
            replay.behind = 0
        if replay.is_over:
            head = (head or Replay(replay.ask.id, self.history.epoch, self.history.last_offset))._replace(end=True)
        if head is not None:
            self.link.down.append(head)
        if replay.is_over:
            del self.replays[pattern]
            self.live.add(pattern)

    def _message(self, number: int, entry: Kept) -> Positioned:
        offset, previous, topic, _ = entry
        return Positioned(number, self.history.epoch, offset, previous, topic.encode())


class Judge:
    """Hears what the Sub hands out, and raises AssertionError when that breaks the promise."""

    def __init__(self) -> None:
        #: By epoch and topic: the last offset.
        self.last: dict[tuple[int, str], int] = {}
        #: By epoch and topic: whether a gap was told since then.
        self.excused: set[tuple[int, str]] = set()
        #: By epoch and topic: whether a new subscription asks for the present value. Then the last one may come again.
        self.new: set[tuple[int, str]] = set()
        self.delivered: list[tuple[int, int, str]] = []
        self.gaps: list[Gap] = []

    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)
        for key in self.last:
            if gap.topic in (None, key[1]) and matches(gap.pattern, key[1]):
                self.excused.add(key)

    def unsubscribed(self, key: tuple[int, str]) -> None:
        """No subscription to a topic is in effect at the publishers with a history."""
        self.excused.add(key)

    def subscribed(self, key: tuple[int, str]) -> None:
        """There is a new subscription to a topic."""
        self.new.add(key)

    def message(self, history: ModelHistory, offset: int, topic: str, told: bool) -> None:
        """The Sub hands out a publication. Of one that came before a first meeting or a gap ended, others may follow
        that were told already, or came before the subscription."""
        key = (history.epoch, topic)
        last = self.last.get(key)
        self.delivered.append((history.epoch, offset, topic))
        if last is not None:
            assert offset > last - (key in self.new), f"{topic}: {offset} comes after {last}"
            missing = [each.offset for each in history.truth if each.topic == topic and last < each.offset < offset]
            assert not missing or key in self.excused, f"{topic}: {missing} are missing before {offset}, silently"
        self.last[key] = offset
        self.excused.discard(key)
        self.new.discard(key)
        if told:
            self.excused.add(key)


class ModelSub:
    """The subscriber."""

    def __init__(self) -> None:
        self.patterns: dict[str, tuple[bool, bool]] = {}
        self.positions = Positions()
        self.judge = Judge()
        self.links: dict[int, tuple[Link, ModelPub]] = {}
        self.histories: dict[int, ModelHistory] = {}
        #: By link and asking: the first answer.
        self.heads: dict[tuple[int, int], Replay] = {}

    def connect(self, link: Link, pub: ModelPub) -> None:
        self.links[link.number] = (link, pub)
        self.histories[pub.history.epoch] = pub.history
        pub.connect(link)
        for pattern in self.patterns:
            self.ask(pattern, link)

    def cut(self, link: Link) -> None:
        _, pub = self.links.pop(link.number)
        pub.cut()
        for pattern in self.positions.remove_pipe(link.number):
            for other, _ in self.links.values():
                self.ask(pattern, other)

    def ask(self, pattern: str, link: Link) -> None:
        retained, recover = self.patterns[pattern]
        link.up.append(self.positions.ask(pattern, link.number, retained=retained, recover=recover))

    def subscribe(self, pattern: str, retained: bool, recover: bool) -> None:
        for epoch, topic in self.judge.last:
            if matches(pattern, topic):
                self.judge.subscribed((epoch, topic))
        self.patterns[pattern] = (retained, recover)
        self.positions.add(pattern)
        for link, _ in self.links.values():
            self.ask(pattern, link)

    def unsubscribe(self, pattern: str) -> None:
        del self.patterns[pattern]
        self.positions.remove(pattern)
        for link, _ in self.links.values():
            link.up.append(pattern)
        for epoch, topic in self.judge.last:
            if not any(matches(other, topic) and self.positions.knows(other, epoch) for other in self.patterns):
                self.judge.unsubscribed((epoch, topic))

    def receive(self, link: Link) -> None:
        message = link.down.popleft()
        if isinstance(message, Replay):
            self.heads.setdefault((link.number, message.id), message)
            for gap in self.positions.answer(link.source, message):
                self.judge.gap(gap)
            return
        topic = message.publication.decode()
        wanted, missing = self.positions.take(link.source, message, topic)
        if missing is not None:
            self.judge.gap(missing)
        if wanted:
            head = self.heads.get((link.number, message.id))
            told = head is not None and (head.gap or head.first_meeting) and message.offset <= head.offset
            self.judge.message(self.histories[message.epoch], message.offset, topic, told)

    def expire(self, pattern: str) -> None:
        for gap in self.positions.expire(pattern):
            self.judge.gap(gap)
