"""Histories: what a Pub keeps of its publications, for subscribers that come late or come back.

A history numbers the publications of its topics: the first one has the offset 1. Each one also has the offset of the
publication before it in the same topic. With that a subscriber finds out that it has missed one.

Pure: no gevent, no sockets. A Pub uses a history in one thread.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Mapping, Reversible
from struct import Struct
from time import monotonic
from typing import Final, NamedTuple

from .pubsubwire import LIMIT
from .subscriptions import Subscriptions, check_pattern, is_literal, matches

__all__ = ["Entry", "History", "MemoryHistory", "Since", "publication"]

#: What an entry takes in memory besides its topic and its content, in bytes, about.
_OVERHEAD: Final = 200
#: Topics whose last offset is remembered.
_MAX_TOPICS: Final = 1 << 16
#: While there are no more topics than that, their order does not matter.
_FEW_TOPICS: Final = 1 << 10
#: So many publications more than the limit are kept at times.
_MORE: Final = 64
#: Topics of which it is remembered that they have lost something. With more of them, older positions of all topics
#: count as incomplete.
_MAX_LOST: Final = 1 << 13

_length = Struct(">H")
_new = tuple.__new__


class Entry(NamedTuple):
    """A publication in a history.

    Attributes:
        offset: its number, from 1.
        previous: the offset of the publication before it in the same topic, 0 if there was none.
        topic: its topic.
        content: its content.
    """

    offset: int
    previous: int
    topic: str
    content: bytes


class Since(NamedTuple):
    """What a history has behind an offset.

    Attributes:
        entries: the publications that it still has, oldest first.
        complete: whether no other one that matches the pattern has been there.
    """

    entries: list[Entry]
    complete: bool


class History(ABC):
    """The contract of a history. A Pub does not ask where its history lives.

    No method blocks or switches greenlets, so a history that lives elsewhere has here what its Pub may be asked for:
    it gets that when a pattern is first wanted (``Pub.on_interest``), and holds the acknowledgements back until then
    (``Pub.hold_acknowledgements``). If others add publications to it, each goes to ``Pub.publish_entry`` when it comes.

    Attributes:
        epoch: names the history. All publishers that serve the same history say the same epoch. At least 1, and below
            2^53. If it becomes another one, ``Pub.replay_again`` tells the subscribers.
        dropped: how many publications were forgotten, by reason. Each is one of ``counters.drops`` of the Pub.
    """

    epoch: int
    dropped: Mapping[str, int]

    @property
    @abstractmethod
    def last_offset(self) -> int:
        """The offset of the last publication, 0 if there was none. The Pub has been given all up to this one."""

    @abstractmethod
    def keeps(self, topic: str) -> bool:
        """Return whether publications of a topic get a position: it has history, or a retained value."""

    @abstractmethod
    def append(self, topic: str, content: bytes, retain: bool = False) -> Entry | None:
        """Add a publication.

        Args:
            topic: must be valid.
            content: its content.
            retain: keep it, instead of the one that was retained before, as the topic's present value.

        Returns:
            The entry, which the Pub sends; None if the topic has no history and no retained value: nothing is kept of
            it, and it is sent without a position.
        """

    @abstractmethod
    def unretain(self, topic: str) -> bool:
        """Forget the retained value of a topic. Return whether there was one."""

    @abstractmethod
    def since(self, pattern: str, offset: int) -> Since:
        """Return the publications behind an offset whose topics match a pattern.

        An offset from the future gets nothing, and is not complete.
        """

    def begins(self, pattern: str) -> int:
        """Return an offset: what was published up to it was published before a pattern was first wanted here.

        0 for a history that is here as a whole. A subscriber that comes for the first time gets none of that.
        """
        return 0

    @abstractmethod
    def retained_topics(self) -> list[str]:
        """Return the topics that have a retained value, the one that was set first first."""

    @abstractmethod
    def retained(self, pattern: str) -> list[Entry]:
        """Return the retained values of the topics that match a pattern, oldest first."""


class MemoryHistory(History):
    """A history in this process's memory. It has a new epoch.

    Args:
        patterns: of the topics whose publications are kept. Others are numbered and kept only while they are retained.
        max_entries: the most publications that are kept. The oldest go first.
        max_bytes: the most memory that they take, in bytes, about.
        max_age: seconds after which a publication is forgotten, 0 for never.
        max_retained: the most retained values. The one that was set first goes first.
        max_retained_bytes: the most memory that they take, in bytes, about.

    Attributes:
        dropped: how many publications were forgotten, by reason: ``"entries"``, ``"bytes"``, ``"age"``, and
            ``"retained"`` for retained values.

    Raises:
        BadTopic: a pattern is not one.
    """

    def __init__(
        self,
        *patterns: str,
        max_entries: int = 10_000,
        max_bytes: int = 16 << 20,
        max_age: float = 0.0,
        max_retained: int = 65_536,
        max_retained_bytes: int = 64 << 20,
    ) -> None:
        limits = {"max_entries": max_entries, "max_bytes": max_bytes, "max_retained": max_retained,
                  "max_retained_bytes": max_retained_bytes}  # fmt: skip
        for name, value in limits.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is a number from 1, not {value!r}")
        if not max_age >= 0:
            raise ValueError(f"max_age is a number of seconds, 0 for no limit, not {max_age!r}")
        self.epoch = random.SystemRandom().randrange(1, LIMIT)
        self.patterns = patterns
        self._wanted: Subscriptions[None] = Subscriptions()
        for pattern in patterns:
            check_pattern(pattern)
            self._wanted.add(pattern, None)
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._max_retained = max_retained
        self._max_retained_bytes = max_retained_bytes
        self.dropped: dict[str, int] = {}
        self._last_offset = 0
        #: The kept publications, oldest first; when each came, if that matters; and what they take.
        self._log: deque[Entry] = deque()
        self._times: deque[float] = deque()
        self._log_bytes = 0
        #: Whether the publications of a topic are kept, for topics that were published lately.
        self._logged: dict[str, bool] = {}
        #: The same publications by topic.
        self._by_topic: dict[str, deque[Entry]] = {}
        self._retained: OrderedDict[str, Entry] = OrderedDict()
        self._retained_bytes = 0
        #: By topic: its last offset; if there are many, the one that was published longest ago is first. And the last
        #: offset of those that have left this table.
        self._last: OrderedDict[str, int] = OrderedDict()
        self._forgotten = 0
        #: By topic, unless the log tells it: the last offset that is not kept any more; and the highest one of all.
        self._lost: dict[str, int] = {}
        self._lost_to = 0
        #: The highest lost offset of topics that have left ``_lost``.
        self._lost_forgotten = 0

    @property
    def last_offset(self) -> int:
        return self._last_offset

    def keeps(self, topic: str) -> bool:
        return topic in self._retained or self._is_logged(topic)

    def _is_logged(self, topic: str) -> bool:
        logged = self._logged.get(topic)
        if logged is None:
            if len(self._logged) >= _MAX_TOPICS:
                self._logged.clear()
            logged = self._logged[topic] = bool(self._wanted.match(topic))
        return logged

    def append(self, topic: str, content: bytes, retain: bool = False) -> Entry | None:
        logged = self._logged.get(topic)
        if logged is None:
            logged = self._is_logged(topic)
        if not logged and not retain and topic not in self._retained:
            return None
        offset = self._last_offset = self._last_offset + 1
        last = self._last
        entry = _new(Entry, (offset, last.get(topic, self._forgotten), topic, content))
        last[topic] = offset
        if len(last) > _FEW_TOPICS:
            self._make_last(topic)
        if logged:
            self._log.append(entry)
            self._log_bytes += _OVERHEAD + len(topic) + len(content)
            kept = self._by_topic.get(topic)
            if kept is None:
                kept = self._by_topic[topic] = deque()
            kept.append(entry)
            if self._max_age:
                self._times.append(monotonic())
        if retain:
            self._retain(entry)
        elif not logged:
            self._lose(entry)
        # Several at once take less time than one by one.
        if len(self._log) > self._max_entries + _MORE or self._log_bytes > self._max_bytes or self._max_age:
            self.trim()
        return entry

    def _make_last(self, topic: str) -> None:
        """Record that a topic was the last one that was published; forget the first one if there are too many."""
        self._last.move_to_end(topic)
        if len(self._last) > _MAX_TOPICS:
            self._forgotten = max(self._forgotten, self._last.popitem(last=False)[1])

    def _retain(self, entry: Entry) -> None:
        self.unretain(entry.topic)
        self._retained[entry.topic] = entry
        self._retained_bytes += _size(entry)
        while len(self._retained) > self._max_retained or (
            self._retained_bytes > self._max_retained_bytes and len(self._retained) > 1
        ):
            self.unretain(next(iter(self._retained)))
            self._count("retained")

    def unretain(self, topic: str) -> bool:
        entry = self._retained.pop(topic, None)
        if entry is None:
            return False
        self._retained_bytes -= _size(entry)
        kept = self._by_topic.get(topic)
        if not kept or kept[0].offset > entry.offset:
            self._lose(entry)
        return True

    def since(self, pattern: str, offset: int) -> Since:
        self.trim()
        if offset > self._last_offset:
            return Since([], False)
        entries: list[Entry] = []
        if is_literal(pattern):
            kept: Reversible[Entry] = self._by_topic.get(pattern, ())
            value = self._retained.get(pattern)
            values: Reversible[Entry] = () if value is None else (value,)
        else:
            # Both are in the order of their offsets.
            kept = self._log
            values = self._retained.values()
        for newest_first in (reversed(kept), reversed(values)):
            for entry in newest_first:
                if entry.offset <= offset:
                    break
                if matches(pattern, entry.topic):
                    entries.append(entry)
        entries.sort()
        # A retained value is in the log as well, unless that has forgotten it.
        entries = [entry for before, entry in zip([None, *entries], entries, strict=False) if entry is not before]
        return Since(entries, self._is_complete(pattern, offset))

    def _is_complete(self, pattern: str, offset: int) -> bool:
        """Return whether all publications behind an offset that match a pattern are still here."""
        if offset >= self._lost_to:
            return True
        if offset < self._lost_forgotten:
            return False
        if is_literal(pattern):
            return self._lost_of(pattern) <= offset
        topics = (topic for topic in (*self._by_topic, *self._lost) if self._lost_of(topic) > offset)
        return not any(matches(pattern, topic) for topic in topics)

    def _lost_of(self, topic: str) -> int:
        """Return the last offset of a topic that cannot be sent again, 0 if there is none."""
        lost = self._lost.get(topic, 0)
        kept = self._by_topic.get(topic)
        if kept:
            before = kept[0].previous
            value = self._retained.get(topic)
            lost = max(lost, value.previous if value is not None and value.offset == before else before)
        return lost

    def retained_topics(self) -> list[str]:
        return [*self._retained]

    def retained(self, pattern: str) -> list[Entry]:
        if is_literal(pattern):
            return [self._retained[pattern]] if pattern in self._retained else []
        return sorted(entry for topic, entry in self._retained.items() if matches(pattern, topic))

    def trim(self) -> None:
        """Forget publications that are too old or too many."""
        over = len(self._log) - self._max_entries
        if over > 0:
            self._forget(over, "entries")
        while self._log_bytes > self._max_bytes and len(self._log) > 1:
            self._forget(1, "bytes")
        if self._max_age:
            oldest = monotonic() - self._max_age
            while self._times and self._times[0] < oldest:
                self._forget(1, "age")

    def _forget(self, count: int, reason: str) -> None:
        """Forget the oldest publications."""
        log, by_topic, retained = self._log, self._by_topic, self._retained
        size = 0
        for _ in range(count):
            entry = log.popleft()
            offset, _, topic, content = entry
            size += _OVERHEAD + len(topic) + len(content)
            kept = by_topic[topic]
            kept.popleft()
            if not kept:
                del by_topic[topic]
            if retained and retained.get(topic) is entry:
                continue
            if not kept:
                self._lose(entry)
            elif offset > self._lost_to:
                # The next one of its topic tells which it was.
                self._lost_to = offset
        for _ in range(min(count, len(self._times))):
            self._times.popleft()
        self._log_bytes -= size
        self._count(reason, count)

    def _lose(self, entry: Entry) -> None:
        """Remember that a publication cannot be sent again."""
        self._lost[entry.topic] = max(self._lost.get(entry.topic, 0), entry.offset)
        self._lost_to = max(self._lost_to, entry.offset)
        if len(self._lost) > _MAX_LOST:
            # From now on it is not known which of these topics have lost something.
            self._lost.clear()
            self._lost_forgotten = self._lost_to

    def _count(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count


def publication(entry: Entry) -> bytes:
    """Return what a publication is on the wire: the topic's length, the topic, and the content."""
    topic = entry.topic.encode()
    return _length.pack(len(topic)) + topic + entry.content


def _size(entry: Entry) -> int:
    return _OVERHEAD + len(entry.topic) + len(entry.content)
