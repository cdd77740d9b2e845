"""A log of publications that may be read in portions, while new ones come and the oldest leave.

The publications lie in chunks. A chunk grows at its end until it is full. When its last publication has left the log,
the log forgets the chunk; a :class:`View` that still reads it keeps it. No publication moves. So a view of millions
takes no time to make, and does not change.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter
from typing import Final

from .history import Kept

__all__ = ["CHUNK", "OVERHEAD", "PORTION", "EntryLog", "View", "size_of"]

#: A chunk with so many publications is full.
CHUNK: Final = 512
#: Publications that are looked at in one portion.
PORTION: Final = 256

#: What a publication takes in memory besides its topic and its content, in bytes, about.
OVERHEAD: Final = 200

_offset_of = itemgetter(0)


def size_of(entry: Kept) -> int:
    """Return what a publication takes in memory, in bytes, about."""
    _, _, topic, content = entry
    return OVERHEAD + len(topic) + len(content)


def _first_of(chunk: list[Kept]) -> int:
    return chunk[0][0]


class EntryLog:
    """Publications in the order of their offsets.

    Who adds one does ``tail.append(entry)``, and adds ``size_of(entry)`` to ``bytes_in``.

    Attributes:
        tail: the chunk that grows. :meth:`close_chunk` begins another one.
        bytes_in: what all publications take that were ever in the log.
        bytes_out: what those take that have left it, or less: see :meth:`count_out`.
    """

    __slots__ = ("_chunks", "_closed", "_counted", "_ends", "_start", "bytes_in", "bytes_out", "tail")

    def __init__(self) -> None:
        self.tail: list[Kept] = []
        self.bytes_in = 0
        self.bytes_out = 0
        #: Only the tail may be empty. The others are closed: for each, ``bytes_in`` at its end.
        self._chunks: list[list[Kept]] = [self.tail]
        self._ends: list[int] = []
        #: How many publications the closed chunks have; how many of the first chunk have left; and how many of those
        #: ``bytes_out`` has.
        self._closed = 0
        self._start = 0
        self._counted = 0

    def __len__(self) -> int:
        return self._closed + len(self.tail) - self._start

    @property
    def first_offset(self) -> int:
        """The offset of the oldest publication, 0 if there is none."""
        chunk = self._chunks[0]
        return chunk[self._start][0] if len(chunk) > self._start else 0

    def close_chunk(self) -> None:
        """Begin another chunk, unless the last one is empty."""
        if self.tail:
            self._closed += len(self.tail)
            self._ends.append(self.bytes_in)
            self.tail = []
            self._chunks.append(self.tail)

    def remove_oldest(self, count: int) -> int:
        """Remove the oldest publications, of which there are so many, at least one. Return the offset of the last one.

        They are not looked at: most have not been for long, and memory that is used again is slow.
        """
        while True:
            chunk = self._chunks[0]
            left = len(chunk) - self._start
            if count < left:
                self._start += count
                return chunk[self._start - 1][0]
            count -= left
            if chunk is self.tail:
                self.close_chunk()
            del self._chunks[0]
            self._closed -= len(chunk)
            self.bytes_out = self._ends.pop(0)
            self._start = self._counted = 0
            if not count:
                return chunk[-1][0]

    def count_out(self) -> None:
        """Bring ``bytes_out`` up to date: add what the publications take that have left the first chunk."""
        self.bytes_out += sum(map(size_of, self._chunks[0][self._counted : self._start]))
        self._counted = self._start

    def view(self) -> View:
        """Return what is in the log now."""
        chunks = self._chunks if self.tail else self._chunks[:-1]
        return View(chunks[:], self._start, self.tail[-1][0] if self.tail else chunks[-1][-1][0] if chunks else 0)


class View:
    """What was in a log at one moment. It does not change when publications leave the log.

    Args:
        chunks: its chunks; none is empty.
        start: what had left the first one.
        last: the offset of the newest publication.
    """

    __slots__ = ("_chunks", "_last", "_start")

    def __init__(self, chunks: list[list[Kept]], start: int, last: int) -> None:
        self._chunks = chunks
        self._start = start
        self._last = last

    def _chunk(self, offset: int) -> int:
        """Return the number of the last chunk that begins at an offset or before it, -1 if there is none."""
        return bisect_left(self._chunks, offset + 1, key=_first_of) - 1

    def chain(self, last: int, offset: int) -> Iterator[list[Kept]]:
        """Yield publications of one topic in portions, the newest ones first. None is empty.

        Args:
            last: the offset of the first one. Then comes the one before it in its topic, and so on ...
            offset: ... down to this offset, without that one, or until one is not here.
        """
        found: list[Kept] = []
        chunk: list[Kept] = []
        number = place = 0
        while offset < last <= self._last:
            # Mostly it is the neighbour.
            place -= 1
            if place < 0 or chunk[place][0] != last:
                number = self._chunk(last)
                if number < 0:
                    break
                chunk = self._chunks[number]
                place = bisect_left(chunk, last, key=_offset_of)
                if place == len(chunk) or chunk[place][0] != last:
                    break
            if number == 0 and place < self._start:
                break
            entry = chunk[place]
            found.append(entry)
            last = entry[1]
            if len(found) == PORTION:
                yield found
                found = []
        if found:
            yield found

    def behind(self, offset: int) -> Iterator[list[Kept]]:
        """Yield the publications behind an offset in portions, the oldest ones first. None is empty."""
        number = max(self._chunk(offset), 0)
        for chunk in self._chunks[number:]:
            place = bisect_left(chunk, offset + 1, 0 if number else self._start, key=_offset_of)
            number += 1
            end = len(chunk)
            if chunk[-1][0] > self._last:
                end = bisect_left(chunk, self._last + 1, key=_offset_of)
            for begin in range(place, end, PORTION):
                yield chunk[begin : min(begin + PORTION, end)]
