"""What a Pub answers to a subscriber that says its positions (0x05), and the memory that replays take.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from .history import History, Kept
from .pubsubwire import Ask, Replay

__all__ = ["Pins", "begin_replay"]

#: What a publication takes in one replay, in bytes, about.
_PLACE: Final = 16


def begin_replay(
    history: History, ask: Ask, accepted: int, retained: Sequence[Kept], fits: Callable[[Sequence[Kept]], bool]
) -> tuple[Replay, Sequence[Kept]]:
    """Return the head of a replay, and the publications in it, oldest first.

    * A subscriber that gives no position in this history meets it for the first time: it gets the retained values.
    * With a position it gets what is behind it. If something of that is not there any more, or it does not ask for it,
      or it is too much, the head says that there is a gap.
    * What was published since the subscription was accepted it gets in any case.

    Args:
        history: the Pub's.
        ask: what the subscriber says.
        accepted: the last offset when its subscription was accepted.
        retained: the retained values of the topics that match, oldest first, if it asks for them.
        fits: whether there is memory for some publications. If not, only the retained values are sent, and not even
            those if they do not fit.
    """
    epoch, last = history.epoch, history.last_offset
    position = next((offset for known, offset in ask.positions if known == epoch), None)
    entries = retained
    if accepted < last:
        new = history.since(ask.pattern, accepted).entries
        entries = [*(entry for entry in retained if entry[0] <= accepted), *new]
    recovered = gap = False
    if position is not None:
        since = history.since(ask.pattern, position)
        entries = since.entries if ask.recover else [entry for entry in entries if entry[0] > position]
        recovered = since.complete and len(entries) == len(since.entries)
        gap = not recovered
    if not fits(entries):
        gap, recovered = True, False
        entries = retained if entries is not retained and fits(retained) else []
    return Replay(ask.id, epoch, last, recovered, gap, first_meeting=position is None), entries


class Pins:
    """The publications that replays have still to send: they stay in memory when the history forgets them.

    A publication that several replays have to send counts once, and a little for each of them.

    Args:
        limit: returns the most bytes that they may have.

    Attributes:
        size: the bytes of all of them.
    """

    __slots__ = ("_counts", "_limit", "size")

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        #: By the id of the object, which lives as long as it is here.
        self._counts: dict[int, int] = {}
        self.size = 0

    def fits(self, entries: Iterable[Kept]) -> bool:
        """Return whether some publications may be added."""
        counts = self._counts
        more = sum(_PLACE if id(entry) in counts else _PLACE + _size(entry) for entry in entries)
        return not more or self.size + more <= self._limit()

    def add(self, entries: Iterable[Kept]) -> None:
        """Add publications for one replay."""
        for entry in entries:
            count = self._counts.get(id(entry), 0)
            self._counts[id(entry)] = count + 1
            self.size += _PLACE if count else _PLACE + _size(entry)

    def remove(self, entry: Kept) -> None:
        """Remove a publication of one replay."""
        count = self._counts.pop(id(entry))
        self.size -= _PLACE
        if count > 1:
            self._counts[id(entry)] = count - 1
        else:
            self.size -= _size(entry)


def _size(entry: Kept) -> int:
    _, _, topic, content = entry
    return len(topic) + len(content)
