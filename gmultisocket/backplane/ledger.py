"""What became of each publication of a plane, and those that wait while the engine is away or slow.

At any moment ``sent = confirmed + dropped + unconfirmed + buffered``. A publication is

* *buffered* while it waits for the engine,
* *in flight* from then on until the server has confirmed it,
* *unconfirmed* if it is in flight, or was when the connection was lost: then it may have arrived, and is not sent
  again.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, NamedTuple

__all__ = ["MAX_BYTES_IN_FLIGHT", "MAX_IN_FLIGHT", "Kept", "Kind", "Ledger", "Overflow"]

#: What the engine may have that the server has not confirmed. Further publications are buffered.
MAX_IN_FLIGHT: Final = 16_384
MAX_BYTES_IN_FLIGHT: Final = 4 << 20

#: What is dropped when the buffer is full.
Overflow = Literal["drop_newest", "drop_oldest"]
#: What the server does with a publication besides passing it on.
Kind = Literal["publish", "retain", "unretain"]


class Kept(NamedTuple):
    """A publication that waits.

    Attributes:
        head: as the engine made it of the topic.
        content: its content.
        sequence: its sequence.
        kind: ``"publish"``; ``"retain"``: it is its topic's present value; ``"unretain"``: its topic has none any more.
    """

    head: bytes
    content: bytes
    sequence: int
    kind: Kind = "publish"

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.head) + len(self.content)


class Ledger:
    """The publications of one plane.

    Args:
        max_messages: publications that may be buffered.
        max_bytes: bytes that they may have.
        overflow: what is dropped when there are more.

    Attributes:
        sent: publications in all.
        confirmed: those that the server has.
        dropped: those that were given up, by reason: ``"overflow"`` of the buffer, ``"closed"``, or what the server
            said.
        buffered_bytes: the bytes of those that are buffered.
        bytes_in_flight: the bytes of those that are in flight, 0 if none is. Read-only.
        is_open: whether more may be in flight.
    """

    __slots__ = ("_buffer", "_given_up", "_in_flight", "buffered_bytes", "bytes_in_flight", "confirmed", "dropped",
                 "is_open", "max_bytes", "max_messages", "overflow", "sent")  # fmt: skip

    def __init__(self, max_messages: int, max_bytes: int, overflow: Overflow) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.overflow = overflow
        self.sent = 0
        self.confirmed = 0
        self.dropped: dict[str, int] = {}
        self._given_up = 0
        self._buffer: deque[Kept] = deque()
        self.buffered_bytes = 0
        #: The sizes of what is in flight, oldest first.
        self._in_flight: deque[int] = deque()
        self.bytes_in_flight = 0
        self.is_open = True

    @property
    def buffered(self) -> int:
        """The number of publications that wait for the engine."""
        return len(self._buffer)

    @property
    def in_flight(self) -> int:
        """The number of publications that the engine has and the server has not confirmed yet."""
        return len(self._in_flight)

    @property
    def unconfirmed(self) -> int:
        """The number of publications that may have been lost: in flight now, or when a connection was lost."""
        return self._given_up + len(self._in_flight)

    # While it waits

    def keep(self, publication: Kept) -> None:
        """Buffer a publication that was counted in ``sent``, or drop one."""
        size = publication.size
        if size > self.max_bytes or (self.overflow == "drop_newest" and self._is_full(size)):
            self.drop("overflow")
            return
        while self._is_full(size):
            self.buffered_bytes -= self._buffer.popleft().size
            self.drop("overflow")
        self._buffer.append(publication)
        self.buffered_bytes += size

    def _is_full(self, size: int) -> bool:
        return len(self._buffer) >= self.max_messages or self.buffered_bytes + size > self.max_bytes

    def take(self) -> Kept:
        """Remove and return the oldest publication of the buffer."""
        kept = self._buffer.popleft()
        self.buffered_bytes -= kept.size
        return kept

    def drop(self, reason: str, count: int = 1) -> None:
        """Count publications that were given up."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def drop_buffered(self, reason: str) -> int:
        """Give up everything that is buffered. Return how many they were."""
        count = len(self._buffer)
        self._buffer.clear()
        self.buffered_bytes = 0
        if count:
            self.drop(reason, count)
        return count

    # In flight

    def hand_over(self, size: int) -> None:
        """Record that the engine has got the next publication."""
        self._in_flight.append(size)
        self.bytes_in_flight += size
        if len(self._in_flight) >= MAX_IN_FLIGHT or self.bytes_in_flight >= MAX_BYTES_IN_FLIGHT:
            self.is_open = False

    def confirm(self, count: int) -> None:
        """Record that the server has the oldest publications in flight.

        Raises:
            IndexError: so many were not in flight. Those that were are counted.
        """
        in_flight = self._in_flight
        landed = min(count, len(in_flight))
        self.confirmed += landed
        self.bytes_in_flight -= sum([in_flight.popleft() for _ in range(landed)])
        self._update_open()
        if landed < count:
            raise IndexError("more publications were confirmed than were in flight")

    def refuse(self, reason: str) -> None:
        """Record that the server has refused the oldest publication in flight. Raises as :meth:`confirm` does."""
        self._land()
        self.drop(reason)

    def _land(self) -> None:
        self.bytes_in_flight -= self._in_flight.popleft()
        self._update_open()

    def _update_open(self) -> None:
        self.is_open = len(self._in_flight) < MAX_IN_FLIGHT and self.bytes_in_flight < MAX_BYTES_IN_FLIGHT

    def cut(self) -> None:
        """Record that the connection is lost: what was in flight stays unconfirmed for ever."""
        self._given_up += len(self._in_flight)
        self._in_flight.clear()
        self.bytes_in_flight = 0
        self.is_open = True
