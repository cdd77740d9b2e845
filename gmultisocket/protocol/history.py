"""Histories: what a Pub keeps of its publications, for subscribers that come late or come back.

A history numbers the publications of its topics: the first one has the offset 1. Each one also has the offset of the
publication before it in the same topic. With that a subscriber finds out that it has missed one.

Pure: no gevent, no sockets. A Pub uses a history in one thread.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Mapping, Reversible, Sequence
from struct import Struct
from time import monotonic
from typing import Final, NamedTuple

from .pubsubwire import LIMIT
from .subscriptions import Subscriptions, check_pattern, is_literal, matches, matching

__all__ = ["Entry", "History", "Kept", "MemoryHistory", "Since", "publication"]

#: What an entry takes in memory besides its topic and its content, in bytes, about.
_OVERHEAD: Final = 200
#: Topics that are remembered, besides those of which something is kept.
_MAX_TOPICS: Final = 1 << 16
#: So many topics are looked at, to forget them, when one more comes.
_FORGOTTEN_TOPICS: Final = 2
#: So many publications more than the limit are kept at times.
_MORE: Final = 64

_length = Struct(">H")


#: A publication in a history: an :class:`Entry`, or a plain tuple of the same, which takes a third of the time to make.
Kept = tuple[int, int, str, bytes]


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

    entries: Sequence[Kept]
    complete: bool


class History(ABC):
    """The contract of a history, wherever its publications are stored.

    No method may block or switch greenlets. So a history that is stored elsewhere keeps a copy here of what its Pub may
    be asked for. It fetches the copy when a pattern is first wanted (``Pub.on_interest``), and holds acknowledgements
    back until the copy is there (``Pub.hold_acknowledgements``). If others add publications, it passes each of them to
    ``Pub.publish_entry``.

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
    def append(self, topic: str, content: bytes, retain: bool = False) -> Kept | None:
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
        """Return the offset of the last publication from before a pattern was first wanted here.

        0 for a history that is here as a whole. A subscriber that comes for the first time gets nothing up to there.
        """
        return 0

    @abstractmethod
    def retained_topics(self) -> list[str]:
        """Return the topics that have a retained value, the one that was set first first."""

    @abstractmethod
    def retained(self, pattern: str) -> Sequence[Kept]:
        """Return the retained values of the topics that match a pattern, oldest first."""

    def unnumbered(self, pattern: str) -> Sequence[tuple[str, bytes]]:
        """Return the topics that match a pattern and have a retained value without a position, and these values.

        Every new subscription gets them, also one that asks with positions.
        """
        return ()


class _Topic:
    """What a history knows of a topic.

    Attributes:
        logged: whether its publications are kept.
        last: the offset of its last publication.
        lost: the last offset that cannot be sent again.
        kept: its publications that are kept, oldest first; None if there is none.
        size: what each of them takes in memory besides its content, in bytes, about.
    """

    __slots__ = ("kept", "last", "logged", "lost", "size")

    def __init__(self, logged: bool, last: int, size: int) -> None:
        self.size = size
        self.logged = logged
        self.last = last
        self.lost = 0
        self.kept: deque[Kept] | None = None


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
        self._log: deque[Kept] = deque()
        self._times: deque[float] = deque()
        self._log_bytes = 0
        #: A publication with this offset, or a higher one, may be too many.
        self._trim_at = 1
        self._topics: OrderedDict[str, _Topic] = OrderedDict()
        self._retained: OrderedDict[str, Kept] = OrderedDict()
        self._retained_bytes = 0
        #: The highest offset that is lost; and of topics that are forgotten: the last offset, and the last lost one.
        self._lost_to = 0
        self._forgotten = 0
        self._lost_forgotten = 0

    @property
    def last_offset(self) -> int:
        return self._last_offset

    def keeps(self, topic: str) -> bool:
        return topic in self._retained or self._topic(topic).logged

    def _topic(self, topic: str) -> _Topic:
        """Return what is known of a topic."""
        found = self._topics.get(topic)
        if found is None:
            if len(self._topics) >= _MAX_TOPICS:
                self._forget_topics()
            logged = bool(self._wanted.match(topic))
            found = self._topics[topic] = _Topic(logged, self._forgotten, _OVERHEAD + len(topic))
        return found

    def _forget_topics(self) -> None:
        """Forget topics of which nothing is kept: more than will come, and few at once."""
        for _ in range(_FORGOTTEN_TOPICS):
            topic, known = self._topics.popitem(last=False)
            if known.kept or topic in self._retained:
                self._topics[topic] = known
            else:
                self._forgotten = max(self._forgotten, known.last)
                self._lost_forgotten = max(self._lost_forgotten, known.lost)

    def append(self, topic: str, content: bytes, retain: bool = False) -> Kept | None:
        # Each publication comes through here, so this calls nothing that is not needed.
        known = self._topics.get(topic) or self._topic(topic)
        logged = known.logged
        if not logged and not retain and topic not in self._retained:
            return None
        offset = self._last_offset = self._last_offset + 1
        entry = (offset, known.last, topic, content)
        known.last = offset
        size = self._log_bytes
        if logged:
            self._log.append(entry)
            if known.kept:
                known.kept.append(entry)
            else:
                known.kept = deque((entry,))
            size = self._log_bytes = size + known.size + len(content)
            if self._max_age:
                self._times.append(monotonic())
        if retain:
            self._retain(entry)
        elif not logged:
            self._lose(offset, known)
        if offset >= self._trim_at or size > self._max_bytes:
            self.trim()
        return entry

    def _retain(self, entry: Kept) -> None:
        topic = entry[2]
        self.unretain(topic)
        self._retained[topic] = entry
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
        if not self._in_log(entry):
            self._lose(entry[0], self._topics[topic])
        return True

    def _in_log(self, value: Kept) -> bool:
        """Return whether a retained value is kept as a publication as well."""
        offset, _, topic, _ = value
        kept = self._topics[topic].kept
        return kept is not None and kept[0][0] <= offset

    def since(self, pattern: str, offset: int) -> Since:
        self.trim()
        if offset > self._last_offset:
            return Since([], False)
        if is_literal(pattern):
            known = self._topics.get(pattern)
            kept: Reversible[Kept] = () if known is None else known.kept or ()
            value = self._retained.get(pattern)
            values: Reversible[Kept] = () if value is None else (value,)
        else:
            # Both are in the order of their offsets.
            kept = self._log
            values = self._retained.values()
        topics: dict[str, bool] = {}
        entries = _behind(offset, pattern, kept, topics)
        others = [entry for entry in _behind(offset, pattern, values, topics) if not self._in_log(entry)]
        if others:
            entries = sorted(others + entries)
        return Since(entries, self._is_complete(pattern, offset))

    def _is_complete(self, pattern: str, offset: int) -> bool:
        """Return whether all publications behind an offset that match a pattern are still here."""
        if offset >= self._lost_to:
            return True
        if offset < self._lost_forgotten:
            return False
        if is_literal(pattern):
            known = self._topics.get(pattern)
            return known is None or known.lost <= offset
        return not any(known.lost > offset and matches(pattern, topic) for topic, known in self._topics.items())

    def retained_topics(self) -> list[str]:
        return [*self._retained]

    def retained(self, pattern: str) -> Sequence[Kept]:
        return sorted(entry for _, entry in matching(pattern, self._retained))

    def trim(self) -> None:
        """Forget publications that are too old or too many."""
        log = self._log
        if len(log) > self._max_entries:
            self._forget(len(log) - self._max_entries, "entries")
        while self._log_bytes > self._max_bytes and len(log) > 1:
            self._forget(1, "bytes")
        # Several at once take less time than one by one.
        more = self._max_entries - len(log) + _MORE
        if self._max_age:
            oldest = monotonic() - self._max_age
            while self._times and self._times[0] < oldest:
                self._forget(1, "age")
            more = min(more, _MORE)
        self._trim_at = self._last_offset + 1 + more

    def _forget(self, count: int, reason: str) -> None:
        """Forget the oldest publications."""
        next_one, topics, retained = self._log.popleft, self._topics, self._retained
        size = lost = 0
        for _ in range(count):
            entry = next_one()
            offset, _, topic, content = entry
            known = topics[topic]
            size += known.size + len(content)
            kept = known.kept
            assert kept
            if len(kept) > 1:
                kept.popleft()
            else:
                known.kept = None
            if not retained or retained.get(topic) is not entry:
                known.lost = lost = offset
        for _ in range(min(count, len(self._times))):
            self._times.popleft()
        self._log_bytes -= size
        self._lost_to = max(self._lost_to, lost)
        self._count(reason, count)

    def _lose(self, offset: int, known: _Topic) -> None:
        """Remember that a publication cannot be sent again."""
        known.lost = max(known.lost, offset)
        self._lost_to = max(self._lost_to, offset)

    def _count(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count


def _behind(offset: int, pattern: str, entries: Reversible[Kept], topics: dict[str, bool]) -> list[Kept]:
    """Return those of some entries, oldest first, that are behind an offset and whose topics match a pattern.

    Args:
        offset: the offset.
        pattern: the pattern.
        entries: the entries, oldest first.
        topics: whether it matches a topic, as far as that is known.
    """
    found = []
    for entry in reversed(entries):
        number, _, topic, _ = entry
        if number <= offset:
            break
        wanted = topics.get(topic)
        if wanted is None:
            wanted = topics[topic] = matches(pattern, topic)
        if wanted:
            found.append(entry)
    found.reverse()
    return found


def publication(topic: str, content: bytes) -> bytes:
    """Return what a publication is on the wire: the topic's length, the topic, and the content."""
    encoded = topic.encode()
    return _length.pack(len(encoded)) + encoded + content


def _size(entry: Kept) -> int:
    _, _, topic, content = entry
    return _OVERHEAD + len(topic) + len(content)
