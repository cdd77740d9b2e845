"""A history in the memory of this process.

The publications of topics with history lie in one log (:mod:`.entrylog`), and the retained values beside it. Each
publication says which one was before it in its topic, and of a topic the last one is remembered. So the publications of
a topic are found from the last one backwards; and if the one before is not there, it is lost.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import takewhile
from time import monotonic
from typing import Final

from .entrylog import CHUNK, OVERHEAD, PORTION, EntryLog, View, size_of
from .history import History, Kept, Since
from .pubsubwire import LIMIT
from .subscriptions import Subscriptions, check_pattern, is_literal, matches, matching

__all__ = ["MemoryHistory"]

#: Topics that are remembered, besides those of which something is kept.
_MAX_TOPICS: Final = 1 << 16
#: So many topics are looked at, to forget them, when one more comes.
_FORGOTTEN_TOPICS: Final = 2
#: At times so many publications more are kept than the limit says: this part of it, or this number if that is more; but
#: at most what a chunk has.
_MORE_SHARE: Final = 16
_MORE: Final = 64
#: A chunk of the log is full when it has this part of the bytes that the log may have: it is in memory until all of its
#: publications are forgotten.
_CHUNK_SHARE: Final = 16
#: A pattern does not match a topic.
_OTHER: Final = -1


class _Topic:
    """What a history knows of a topic.

    Attributes:
        logged: whether its publications are kept.
        last: the offset of its last publication.
        size: what each of them takes in memory besides its content, in bytes, about.
    """

    __slots__ = ("last", "logged", "size")

    def __init__(self, logged: bool, last: int, size: int) -> None:
        self.size = size
        self.logged = logged
        self.last = last


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
        self._more = min(max(_MORE, max_entries // _MORE_SHARE), CHUNK)
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._max_retained = max_retained
        self._max_retained_bytes = max_retained_bytes
        self.dropped: dict[str, int] = {}
        self._last_offset = 0
        #: The kept publications, and when each came, if that matters.
        self._log = EntryLog()
        self._times: deque[float] = deque()
        #: The ``bytes_in`` of the log when its last chunk began.
        self._chunk_from = 0
        #: With a publication that has this offset, or when ``bytes_in`` is higher, there is something to do.
        self._trim_at = 1
        self._trim_bytes = 0
        self._topics: OrderedDict[str, _Topic] = OrderedDict()
        self._retained: OrderedDict[str, Kept] = OrderedDict()
        self._retained_bytes = 0
        #: Behind this offset nothing is lost; and the last offset of the topics that are forgotten.
        self._lost_to = 0
        self._forgotten = 0

    @property
    def last_offset(self) -> int:
        return self._last_offset

    def keeps(self, topic: str) -> bool:
        return topic in self._retained or self._topic(topic).logged

    # Topics

    def _topic(self, topic: str) -> _Topic:
        """Return what is known of a topic."""
        found = self._topics.get(topic)
        if found is None:
            if len(self._topics) >= _MAX_TOPICS:
                self._forget_topics()
            logged = bool(self._wanted.match(topic))
            found = self._topics[topic] = _Topic(logged, self._forgotten, OVERHEAD + len(topic))
        return found

    def _forget_topics(self) -> None:
        """Forget topics of which nothing is kept: more than will come, and few at once."""
        for _ in range(_FORGOTTEN_TOPICS):
            topic, known = self._topics.popitem(last=False)
            if topic in self._retained or (known.logged and 0 < self._log.first_offset <= known.last):
                self._topics[topic] = known
            else:
                self._forgotten = max(self._forgotten, known.last)

    # Publications

    def append(self, topic: str, content: bytes, retain: bool = False) -> Kept | None:
        # Each publication comes through here, so this calls nothing that is not needed.
        known = self._topics.get(topic) or self._topic(topic)
        logged = known.logged
        if not logged and not retain and topic not in self._retained:
            return None
        log = self._log
        offset = self._last_offset = self._last_offset + 1
        entry = (offset, known.last, topic, content)
        known.last = offset
        if logged:
            log.tail.append(entry)
            log.bytes_in += known.size + len(content)
            if self._max_age:
                self._times.append(monotonic())
        elif not retain:
            self._lost_to = offset
        if retain:
            self._retain(entry)
        if offset >= self._trim_at or log.bytes_in > self._trim_bytes:
            self.trim()
        return entry

    def _retain(self, entry: Kept) -> None:
        topic = entry[2]
        self.unretain(topic)
        self._retained[topic] = entry
        self._retained_bytes += size_of(entry)
        while len(self._retained) > self._max_retained or (
            self._retained_bytes > self._max_retained_bytes and len(self._retained) > 1
        ):
            self.unretain(next(iter(self._retained)))
            self._count("retained")

    def unretain(self, topic: str) -> bool:
        entry = self._retained.pop(topic, None)
        if entry is None:
            return False
        self._retained_bytes -= size_of(entry)
        if not self._in_log(entry):
            self._lost_to = max(self._lost_to, entry[0])
        return True

    def _in_log(self, value: Kept) -> bool:
        """Return whether a retained value is kept as a publication as well."""
        return 0 < self._log.first_offset <= value[0] and self._topics[value[2]].logged

    def trim(self) -> None:
        """Forget publications that are too old or too many."""
        log = self._log
        if len(log) > self._max_entries:
            self._forget(len(log) - self._max_entries, "entries")
        if log.bytes_in - log.bytes_out > self._max_bytes:
            log.count_out()
            while log.bytes_in - log.bytes_out > self._max_bytes and len(log) > 1:
                self._forget(1, "bytes")
                log.count_out()
        # Several at once take less time than one by one.
        more = self._max_entries - len(log) + self._more
        if self._max_age:
            oldest = monotonic() - self._max_age
            while self._times and self._times[0] < oldest:
                self._forget(1, "age")
            more = min(more, _MORE)
        chunk_bytes = self._max_bytes // _CHUNK_SHARE
        if len(log.tail) >= CHUNK or log.bytes_in - self._chunk_from >= chunk_bytes:
            log.close_chunk()
            self._chunk_from = log.bytes_in
        self._trim_at = self._last_offset + 1 + min(more, CHUNK - len(log.tail))
        self._trim_bytes = min(log.bytes_out + self._max_bytes, self._chunk_from + chunk_bytes)

    def _forget(self, count: int, reason: str) -> None:
        """Forget the oldest publications."""
        self._lost_to = max(self._lost_to, self._log.remove_oldest(count))
        for _ in range(min(count, len(self._times))):
            self._times.popleft()
        self._count(reason, count)

    def _count(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    # What a Pub asks

    def retained_topics(self) -> list[str]:
        return [*self._retained]

    def retained(self, pattern: str) -> Sequence[Kept]:
        return sorted(entry for _, entry in matching(pattern, self._retained))

    def since(self, pattern: str, offset: int) -> Iterator[Since]:
        self.trim()
        if offset > self._last_offset:
            yield Since((), False)
        elif is_literal(pattern):
            yield from self._since_of_topic(pattern, offset)
        else:
            yield from self._since_of_pattern(pattern, offset)

    def _since_of_topic(self, topic: str, offset: int) -> Iterator[Since]:
        known = self._topics.get(topic)
        value = self._retained.get(topic)
        if known is None:
            yield Since((), offset >= self._forgotten)
            return
        found: list[Kept] = []
        last = known.last
        for number, entries in enumerate(self._log.view().chain(last, offset)):
            if number:
                yield Since((), True)
            found += entries
            last = found[-1][1]
        if value is not None and offset < value[0] <= last:
            # Those between are lost, if there were any.
            found.append(value)
            last = value[1] if value[0] == last else last
        complete = last <= offset
        if not found:
            yield Since((), complete)
        while found:
            portion = found[: -PORTION - 1 : -1]
            del found[-PORTION:]
            yield Since(portion, complete)

    def _since_of_pattern(self, pattern: str, offset: int) -> Iterator[Since]:
        last = self._last_offset
        nothing_lost = offset >= self._lost_to
        complete = nothing_lost or offset >= self._forgotten
        # As of a plain dict: to copy the order of an OrderedDict takes five times as long.
        topics = [] if nothing_lost or not complete else [*dict.keys(self._topics)]
        #: By topic: the offset up to which nothing is missing.
        seen: dict[str, int] = {}
        for entries in self._behind(self._log.view(), offset):
            found = []
            for entry in entries:
                number, previous, topic, _ = entry
                before = seen.get(topic)
                if before is None:
                    before = seen[topic] = offset if matches(pattern, topic) else _OTHER
                if before != _OTHER and number > before:
                    complete = complete and previous <= before
                    seen[topic] = number
                    found.append(entry)
            yield Since(found, complete)
        for number, topic in enumerate(topics):
            if number % PORTION == 0:
                yield Since((), complete)
            before = seen.get(topic, offset)
            if before != _OTHER and self._last_of(topic, last) > before and matches(pattern, topic):
                complete = False
                break
        if topics or not complete:
            yield Since((), complete)

    def _behind(self, view: View, offset: int) -> Iterator[list[Kept]]:
        """Yield publications behind an offset in portions, the oldest ones first: of the log, and the retained values.

        A value that is in the log as well comes twice.
        """
        values = [*takewhile(lambda value: value[0] > offset, reversed(self._retained.values()))]
        for entries in view.behind(offset):
            if values and values[-1][0] <= entries[-1][0]:
                between = []
                while values and values[-1][0] <= entries[-1][0]:
                    between.append(values.pop())
                entries = sorted(entries + between)
            yield entries
        values.reverse()
        for begin in range(0, len(values), PORTION):
            yield values[begin : begin + PORTION]

    def _last_of(self, topic: str, end: int) -> int:
        """Return the offset of the last publication of a topic that was there when the last offset was ``end``.

        A higher one if that is not known any more.
        """
        known = self._topics.get(topic)
        last = self._forgotten if known is None else known.last
        if last > end:
            for entries in self._log.view().chain(last, end):
                last = entries[-1][1]
        return last
