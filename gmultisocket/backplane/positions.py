"""Hands out the publications with positions at one process: of topics with history, and present values.

While all is well, each goes to the Pubs when it comes. After a connection was lost and made again, those that were
missed come together with the new ones, one pattern after the other. So until all patterns are served again they are
gathered, and then handed out in order, in portions.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, Protocol

from ..protocol.history import Entry
from .planehistory import HistoryTopics, PlaneHistory

__all__ = ["LocalHistory", "PositionedPublications"]

#: Publications that are handed out before others run.
_PORTION: Final = 256
#: Bytes of contents that are handed out at once without loss: the kernel takes so much for each peer.
_AT_ONCE: Final = 1 << 16


class LocalHistory(Protocol):
    """The subscribers in this process, as far as they get what has a position."""

    def deliver_entry(self, entry: Entry) -> None:
        """Give a publication to all that want it. Called in the order of the offsets."""

    def deliver_value(self, entry: Entry) -> None:
        """Give a present value that was fetched to the program's subscriptions; later subscribers of Pubs find it."""

    def history_began(self) -> None:
        """There is another history than before."""

    def replay_behind(self, offset: int, topics: Collection[str]) -> None:
        """Many publications of some topics follow, behind an offset: some subscribers get them better from the history.

        ``deliver_entry`` is called for each of them all the same.
        """


class PositionedPublications:
    """The history of a plane here, and what is still to be handed out of it.

    Args:
        patterns: of the topics with history.
        local: the subscribers.

    Attributes:
        history: what is here.
        is_catching_up: whether not all patterns are served again.
        fetched: how many publications have come that the engine had when a pattern was asked for.
    """

    __slots__ = ("_gathered", "_knows_epoch", "_local", "fetched", "history", "is_catching_up")

    def __init__(self, patterns: Sequence[str], local: LocalHistory) -> None:
        self.history = PlaneHistory(HistoryTopics(patterns))
        self._local = local
        self._knows_epoch = False
        self.is_catching_up = True
        self.fetched = 0
        #: By offset.
        self._gathered: dict[int, tuple[Entry, bool]] = {}

    def connected(self, epoch: int, last_offset: int) -> None:
        """A connection works, and the engine has said its epoch and its last offset."""
        history = self.history
        if epoch != history.epoch:
            # Of a history that has begun while the engine was away, everything is new for those that are here.
            history.begin(epoch, 0 if self._knows_epoch else last_offset)
            self._knows_epoch = True
            self._local.history_began()

    def take(self, entry: Entry, logged: bool, retained: bool, live: bool) -> None:
        """Take a publication."""
        is_new = self.history.add(entry, logged, retained)
        self.fetched += not live
        if self.is_catching_up:
            self._gathered[entry.offset] = entry, retained
        elif live:
            self.history.advance(entry.offset)
            self._local.deliver_entry(entry)
        elif retained and is_new:
            self._local.deliver_value(entry)

    def settled(self, values_again: bool) -> Iterator[None]:
        """All patterns are served again: hand out what was missed. Yield between portions; do not go on after a cut.

        Args:
            values_again: whether those that are here also get present values that they may have.
        """
        before = self.history.last_offset
        missed = [entry for entry, _ in self._gathered.values() if entry.offset > before]
        if sum(len(entry.content) for entry in missed) > _AT_ONCE:
            self._local.replay_behind(before, {entry.topic for entry in missed})
        number = 0
        while self._gathered:
            gathered, self._gathered = self._gathered, {}
            for offset in sorted(gathered):
                entry, retained = gathered[offset]
                if offset > before or (retained and values_again):
                    self.history.advance(offset)
                    self._local.deliver_entry(entry)
                elif retained:
                    self._local.deliver_value(entry)
                number += 1
                if number % _PORTION == 0:
                    yield
            before = self.history.last_offset
        self.is_catching_up = False

    def cut(self) -> None:
        """The connection is lost."""
        self.history.cut()
        self._gathered.clear()
        self.is_catching_up = True
