"""The counters of a pipe and of a socket.

Pipes and sockets count in plain attributes where messages pass. This module only holds totals and adds them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["TOTALS", "Counters", "add_drops", "as_dict"]

#: The counters that are numbers.
TOTALS: Final = (
    "messages_sent",
    "bytes_sent",
    "messages_received",
    "bytes_received",
    "messages_unconfirmed",
    "bytes_unconfirmed",
)


class Counters:
    """Totals since a pipe or socket was made.

    Attributes:
        messages_sent: messages that were given to the kernel, or to a peer in this process.
        bytes_sent: bytes of those messages on the wire; for peers in this process and raw pipes, of the contents only.
        messages_received: messages that arrived whole.
        bytes_received: bytes that arrived, counted in the same way.
        drops: messages lost on this side, by reason: ``"overflow"`` (a queue's policy), ``"disconnect"`` (queued for a
            pipe that closed), ``"timeout"`` (a ``send_all`` ran out of time), ``"no_recv"``, ``"closed"`` (arrived
            while the socket closed), ``"unread"`` (not received before the peer was gone), ``"internal"``,
            ``"flags"`` (not for a raw pipe), ``"ttl"``.
        messages_unconfirmed: of the messages sent, those that the peer's kernel had not acknowledged when their pipe
            closed: they may be lost. An estimate from ``bytes_unconfirmed`` and the mean size of messages, at least 1
            if any may be lost. Only tcp, tls and WebSocket pipes know it.
        bytes_unconfirmed: the bytes that were not acknowledged, exactly, as they are on the wire: with pings, and with
            what TLS adds.
    """

    __slots__ = (*TOTALS, "drops")

    def __init__(
        self,
        messages_sent: int = 0,
        bytes_sent: int = 0,
        messages_received: int = 0,
        bytes_received: int = 0,
        drops: dict[str, int] | None = None,
        messages_unconfirmed: int = 0,
        bytes_unconfirmed: int = 0,
    ) -> None:
        self.messages_sent = messages_sent
        self.bytes_sent = bytes_sent
        self.messages_received = messages_received
        self.bytes_received = bytes_received
        self.drops = {} if drops is None else drops
        self.messages_unconfirmed = messages_unconfirmed
        self.bytes_unconfirmed = bytes_unconfirmed

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in (*TOTALS, "drops"))
        return f"Counters({values})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Counters):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    # Not hashable: its values change.
    __hash__ = None  # type: ignore[assignment]

    def drop(self, reason: str, count: int = 1) -> None:
        """Count lost messages under a reason."""
        if count:
            self.drops[reason] = self.drops.get(reason, 0) + count

    def add(self, other: Counters) -> None:
        """Add the totals of another object to these."""
        for name in TOTALS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        add_drops(self.drops, other.drops)


def add_drops(sums: dict[str, int], drops: Mapping[str, int]) -> None:
    """Add the numbers of lost messages, by reason, to sums."""
    # A copy, because another thread may ask.
    for reason, count in [*drops.items()]:
        sums[reason] = sums.get(reason, 0) + count


def as_dict(counters: Counters) -> dict[str, Any]:
    """Return counters by name, as ``stats()`` has them."""
    return {name: getattr(counters, name) for name in (*TOTALS, "drops")}
