"""Histories: what a Pub keeps of its publications, for subscribers that come late or come back.

A history numbers the publications of its topics: the first one has the offset 1. Each one also has the offset of the
publication before it in the same topic. With that a subscriber finds out that it has missed one.

Pure: no gevent, no sockets. A Pub uses a history in one thread. The one in memory is
:class:`~gmultisocket.protocol.memoryhistory.MemoryHistory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

from .subscriptions import is_literal, matches

__all__ = ["Entry", "History", "Kept", "Since", "everything_since", "publication", "topics_with_value"]

#: Topics that are compared with a pattern in one portion.
_PORTION: Final = 256

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
    """A portion of what a history has behind an offset.

    Attributes:
        entries: the next publications that it still has, oldest first; may be empty.
        complete: False if one that matches the pattern has been there, and is in no portion. One portion that says so
            is enough.
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
    def since(self, pattern: str, offset: int) -> Iterator[Since]:
        """Yield the publications behind an offset whose topics match a pattern, in portions, oldest first.

        All portions together are what was here when the first one was asked for. Before the Pub asks for the next one,
        others run: they may publish, and make this history forget something. A short history yields one portion with
        everything. A long one should look at some hundred publications for each portion, which may be empty.

        An offset from the future gets nothing, and is not complete. What is behind ``last_offset`` does no harm: the
        Pub leaves it out, as it will be given that.
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


def publication(topic: str, content: bytes) -> bytes:
    """Return what a publication is on the wire: the topic's length, the topic, and the content."""
    encoded = topic.encode()
    return _length.pack(len(encoded)) + encoded + content


def everything_since(history: History, pattern: str, offset: int) -> Since:
    """Return what a history has behind an offset in one piece."""
    portions = [*history.since(pattern, offset)]
    entries = [entry for portion in portions for entry in portion.entries]
    return Since(entries, all(portion.complete for portion in portions))


def topics_with_value(history: History, pattern: str) -> Iterator[list[str]]:
    """Yield, in portions, the topics that have a retained value now and match a pattern; the topic if it is one."""
    if is_literal(pattern):
        yield [pattern]
        return
    topics = history.retained_topics()
    for begin in range(0, len(topics), _PORTION):
        yield [topic for topic in topics[begin : begin + _PORTION] if matches(pattern, topic)]
