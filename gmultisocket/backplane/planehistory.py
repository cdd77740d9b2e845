"""What a process has of the history of a plane: the publications of the patterns that are wanted here.

The engine numbers and keeps the publications. When a pattern is first wanted, the process fetches what the engine has
of it, and keeps it as long as the pattern is wanted: so a subscriber that comes to this process gets what it has missed
at another one. While the engine is away, nothing is kept here, and a subscriber that recovers gets a gap.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ..protocol.history import Entry, History, Since
from ..protocol.pubsubwire import LIMIT
from ..protocol.subscriptions import Subscriptions, matching
from .brokertopics import remember
from .engine import MAX_HISTORY, MAX_HISTORY_SIZE, RESERVED
from .interest import PatternTree

__all__ = ["HistoryTopics", "PlaneHistory"]

#: So many publications more than the limit are kept at times.
_MORE: Final = 64


class HistoryTopics:
    """Which topics have history: those that match some patterns, but not those by which planes talk to each other.

    Args:
        patterns: of these topics.
    """

    __slots__ = ("_index", "_known", "patterns")

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns: frozenset[str] = frozenset()
        self._index: Subscriptions[None] = Subscriptions()
        self._known: dict[str, bool] = {}
        self.add(patterns)

    def add(self, patterns: Iterable[str]) -> None:
        """Give more topics a history."""
        new = frozenset(patterns) - self.patterns
        for pattern in new:
            self._index.add(pattern, None)
        self.patterns |= new
        self._known.clear()

    def __contains__(self, topic: str) -> bool:
        known = self._known.get(topic)
        if known is None:
            known = bool(self._index.match(topic)) and not topic.startswith(RESERVED)
            remember(self._known, topic, known)
        return known


class PlaneHistory(History):
    """The part of the engine's history that is here.

    Args:
        topics: which topics have history.

    Attributes:
        topics: the same.
    """

    def __init__(self, topics: HistoryTopics) -> None:
        self.topics = topics
        # Until the engine has said its own.
        self.epoch = random.SystemRandom().randrange(1, LIMIT)
        self.dropped: Mapping[str, int] = {}
        self._last_offset = 0
        #: The publications of topics with history, by their offsets; the same by topic; and their bytes.
        self._log: list[Entry] = []
        self._by_topic: dict[str, list[Entry]] = {}
        self._size = 0
        self._retained: dict[str, Entry] = {}
        #: Present values without a position, by topic.
        self._unnumbered: dict[str, bytes] = {}
        #: By topic: the last offset that was forgotten here: there were too many, or it was a value.
        self._lost: dict[str, int] = {}
        #: By pattern that was fetched: what is behind the first offset is here; what was published up to the second
        #: one was published before it was wanted.
        self._fetched: dict[str, tuple[int, int]] = {}
        self._tree = PatternTree()

    # What the engine says

    def begin(self, epoch: int, last_offset: int) -> None:
        """The engine has another history than before."""
        self.cut()
        self.epoch = epoch
        self._last_offset = last_offset

    def advance(self, last_offset: int) -> None:
        """All wanted publications up to an offset have been given to the Pubs."""
        self._last_offset = max(self._last_offset, last_offset)

    def add(self, entry: Entry, logged: bool, retained: bool) -> bool:
        """Add a publication. Return False if it is here already.

        Args:
            entry: the publication.
            logged: its topic has history.
            retained: it is the present value of its topic.
        """
        topic = entry.topic
        is_new = False
        if retained:
            value = self._retained.get(topic)
            if value is None or value.offset < entry.offset:
                self.unretain(topic)
                self._retained[topic] = entry
                is_new = True
        if logged:
            kept = self._by_topic.setdefault(topic, [])
            place = bisect_right(kept, entry)
            if not place or kept[place - 1].offset != entry.offset:
                kept.insert(place, entry)
                insort(self._log, entry)
                self._size += len(entry.content)
                is_new = True
                if len(self._log) > MAX_HISTORY + _MORE or self._size > MAX_HISTORY_SIZE:
                    self._trim()
        return is_new

    def _trim(self) -> None:
        """Forget the oldest publications, as the engine has done."""
        count, size = max(0, len(self._log) - MAX_HISTORY), self._size
        for entry in self._log[:count]:
            size -= len(entry.content)
        while size > MAX_HISTORY_SIZE and count < len(self._log) - 1:
            size -= len(self._log[count].content)
            count += 1
        for entry in self._log[:count]:
            kept = self._by_topic[entry.topic]
            del kept[0]
            if not kept:
                del self._by_topic[entry.topic]
            if self._retained.get(entry.topic) != entry:
                self._lost[entry.topic] = entry.offset
        del self._log[:count]
        self._size = size

    def fetched(self, pattern: str, complete_from: int, last_offset: int) -> None:
        """All that the engine has of a pattern is here.

        Args:
            pattern: as the engine was asked for it.
            complete_from: the engine has all publications behind this offset.
            last_offset: of the engine, when the pattern was first wanted.
        """
        self._fetched[pattern] = complete_from, last_offset
        self._tree.add(pattern)

    def left(self, patterns: Sequence[str], wanted: Callable[[str], bool]) -> None:
        """The engine was told to leave patterns: forget what nobody wants."""
        for pattern in patterns:
            if self._fetched.pop(pattern, None) is not None:
                self._tree.remove(pattern)
        gone = {topic for topic in (*self._by_topic, *self._retained, *self._lost) if not wanted(topic)}
        for topic in gone:
            self._by_topic.pop(topic, None)
            self._retained.pop(topic, None)
            self._lost.pop(topic, None)
        if gone:
            self._log = [entry for entry in self._log if entry.topic not in gone]
            self._size = sum(len(entry.content) for entry in self._log)

    def cut(self) -> None:
        """The engine is away: what was here may not be the newest."""
        self._log.clear()
        self._by_topic.clear()
        self._size = 0
        self._retained.clear()
        self._lost.clear()
        self._fetched.clear()
        self._tree = PatternTree()

    # What a Pub asks

    @property
    def last_offset(self) -> int:
        return self._last_offset

    def keeps(self, topic: str) -> bool:
        return topic in self._retained or topic in self.topics

    def append(self, topic: str, content: bytes, retain: bool = False) -> Entry | None:
        """Return None: only what has no position is published here. The engine numbers all else."""
        if retain:
            self._unnumbered[topic] = content
        return None

    def unnumbered(self, pattern: str) -> Sequence[tuple[str, bytes]]:
        return matching(pattern, self._unnumbered)

    def unretain(self, topic: str) -> bool:
        if self._unnumbered.pop(topic, None) is not None:
            return True
        value = self._retained.pop(topic, None)
        if value is None:
            return False
        kept = self._by_topic.get(topic)
        if not kept or kept[0].offset > value.offset:
            self._lost[topic] = max(self._lost.get(topic, 0), value.offset)
        return True

    def begins(self, pattern: str) -> int:
        return max((self._fetched[each][1] for each in self._serving(pattern)), default=0)

    def _serving(self, pattern: str) -> list[str]:
        """Return the patterns that were fetched, and with them a pattern."""
        return [each for each in (pattern, *self._tree.covering(pattern)) if each in self._fetched]

    def since(self, pattern: str, offset: int) -> Iterator[Since]:
        if offset > self._last_offset:
            yield Since((), False)
            return
        found: dict[int, Entry] = {}
        for _, kept in matching(pattern, self._by_topic):
            for entry in reversed(kept):
                if entry.offset <= offset:
                    break
                found[entry.offset] = entry
        for entry in self.retained(pattern):
            if entry.offset > offset:
                found[entry.offset] = entry
        floor = min((self._fetched[each][0] for each in self._serving(pattern)), default=offset + 1)
        lost = max((at for _, at in matching(pattern, self._lost)), default=0)
        yield Since([found[each] for each in sorted(found)], offset >= max(floor, lost))

    def retained_topics(self) -> list[str]:
        return [*self._retained, *self._unnumbered]

    def retained(self, pattern: str) -> list[Entry]:
        return sorted(entry for _, entry in matching(pattern, self._retained))
