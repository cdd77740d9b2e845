"""What a Pub answers to a subscriber that says its positions (0x05), and the memory that replays take.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Final

from .history import History, Kept, topics_with_value
from .pubsubwire import Ask, Replay

__all__ = ["Beginning", "Pins"]

#: Publications that are pinned, or unpinned, in one portion.
_PORTION: Final = 256
#: What a publication takes in one replay, in bytes, about.
_PLACE: Final = 16
#: Publications whose places in memory are so near to each other are counted in one table. With one table for all, a
#: publication that makes it grow would take as long as all those before.
_TABLE_BITS: Final = 14


class Beginning:
    """Finds what belongs to a replay, in portions.

    * A subscriber that gives no position in this history meets it for the first time: it gets the retained values.
    * With a position it gets what is behind it. If something of that is not there any more, or it does not ask for it,
      or it is too much, the head says that there is a gap.
    * What was published since the subscription was accepted it gets in any case.

    Args:
        history: the Pub's.
        ask: what the subscriber says.
        accepted: the last offset when its subscription was accepted.
        pins: the memory that all replays take. If there is not enough, only the retained values are sent, and not even
            those if they do not fit.

    Attributes:
        entries: the publications that were found, oldest first. They are pinned.
        last: the last offset of the history when the search began: what is behind it is not found.
    """

    __slots__ = ("_accepted", "_ask", "_epoch", "_full", "_history", "_pins", "_position", "entries", "last")

    def __init__(self, history: History, ask: Ask, accepted: int, pins: Pins) -> None:
        self._history = history
        self._ask = ask
        self._accepted = accepted
        self._pins = pins
        self._epoch, self.last = history.epoch, history.last_offset
        self._position = next((offset for epoch, offset in ask.positions if epoch == self._epoch), None)
        self._full = False
        self.entries: deque[Kept] = deque()

    def head(self, complete: bool, gap: bool) -> Replay:
        """Return the head of the replay."""
        first = self._position is None
        return Replay(self._ask.id, self._epoch, self.last, complete and not first, gap, first)

    def steps(self) -> Generator[None, None, Replay | None]:
        """Find the publications that are in the history now. Return the head of the replay.

        Between two portions others may run, publish, and make the history forget something. What is published meanwhile
        is not among the publications: it has to come behind them.
        """
        ask, position = self._ask, self._position
        if ask.recover and position is not None:
            complete = yield from self._add_since(position)
        else:
            if ask.retained:
                yield from self._add_values(position or 0, self._accepted)
            if self._accepted < self.last:
                yield from self._add_since(max(position or 0, self._accepted))
            complete = position is None or (yield from self._are_all(position))
        if self._full:
            yield from self._clear()
            if ask.retained:
                yield from self._add_values(0, self.last)
                if self._full:
                    yield from self._clear()
            return self.head(False, True)
        return self.head(complete, not complete)

    def more(self, offset: int) -> Generator[None, None, Replay | None]:
        """Find what was published behind an offset until now. Return a head if something of it is missing, or None."""
        self.last = self._history.last_offset
        self._full = False
        return self._more(offset)

    def _more(self, offset: int) -> Generator[None, None, Replay | None]:
        complete = yield from self._add_since(offset)
        return None if complete and not self._full else self.head(False, True)

    def _add(self, entries: Sequence[Kept]) -> Generator[None, None, None]:
        """Add publications. If there is not enough memory, nothing more is added."""
        for begin in range(0, len(entries), _PORTION):
            if begin:
                yield
            portion = entries[begin : begin + _PORTION]
            self._full = self._full or not self._pins.add(portion)
            if self._full:
                break
            self.entries.extend(portion)

    def _clear(self) -> Generator[None, None, None]:
        """Take out what was added."""
        while self.entries:
            yield
            for _ in range(min(_PORTION, len(self.entries))):
                self._pins.remove(self.entries.pop())
        self._full = False

    def _add_since(self, offset: int) -> Generator[None, None, bool]:
        """Add the publications behind an offset. Return whether that are all that have been there."""
        complete = True
        for number, portion in enumerate(self._history.since(self._ask.pattern, offset)):
            if number:
                yield
            yield from self._add(self._until_last(portion.entries))
            complete = complete and portion.complete
            if self._full:
                break
        return complete

    def _are_all(self, offset: int) -> Generator[None, None, bool]:
        """Return whether what was added is everything behind an offset."""
        more = len(self.entries)
        for number, portion in enumerate(self._history.since(self._ask.pattern, offset)):
            if number:
                yield
            more -= len(self._until_last(portion.entries))
            if more < 0 or not portion.complete:
                return False
        return not more

    def _until_last(self, entries: Sequence[Kept]) -> Sequence[Kept]:
        """Return those of some publications, oldest first, that were there when the replay began."""
        if entries and entries[-1][0] > self.last:
            return [entry for entry in entries if entry[0] <= self.last]
        return entries

    def _add_values(self, offset: int, last: int) -> Generator[None, None, None]:
        """Add the retained values behind one offset and up to another, oldest first, to no others."""
        history = self._history
        for number, topics in enumerate(topics_with_value(history, self._ask.pattern)):
            if number:
                yield
            values = (value for topic in topics for value in history.retained(topic))
            yield from self._add([value for value in values if offset < value[0] <= last])
            if self._full:
                return
        ordered = sorted(self.entries)
        self.entries.clear()
        self.entries.extend(ordered)


class Pins:
    """The publications that replays have still to send: they stay in memory when the history forgets them.

    A publication that several replays have to send counts once, and a little for each of them.

    Args:
        limit: returns the most bytes that they may have.

    Attributes:
        size: the bytes of all of them.
    """

    __slots__ = ("_limit", "_tables", "size")

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        #: By the id of the object, which lives as long as it is here: how many replays have to send it.
        self._tables: dict[int, dict[int, int]] = {}
        self.size = 0

    def add(self, entries: Sequence[Kept]) -> bool:
        """Add publications for one replay if there is memory for all of them. Return whether there is."""
        tables = self._tables
        more = _PLACE * len(entries)
        for entry in entries:
            key = id(entry)
            table = tables.get(key >> _TABLE_BITS)
            if table is None or key not in table:
                more += _size(entry)
        if more and self.size + more > self._limit():
            return False
        for entry in entries:
            key = id(entry)
            table = tables.setdefault(key >> _TABLE_BITS, {})
            table[key] = table.get(key, 0) + 1
        self.size += more
        return True

    def remove(self, entry: Kept) -> None:
        """Remove a publication of one replay."""
        key = id(entry)
        table = self._tables[key >> _TABLE_BITS]
        count = table.pop(key)
        self.size -= _PLACE
        if count > 1:
            table[key] = count - 1
            return
        self.size -= _size(entry)
        if not table:
            del self._tables[key >> _TABLE_BITS]


def _size(entry: Kept) -> int:
    _, _, topic, content = entry
    return len(topic) + len(content)
