"""A limited number of slots, which greenlets get in the order in which they came."""

from __future__ import annotations

from gevent.hub import Hub

from .waiting import WaitList

__all__ = ["Slots"]


class Slots:
    """A semaphore that is fair: nobody gets a slot before those that wait already.

    Args:
        hub: the hub of the thread that the greenlets run in.
        limit: the number of slots.

    Attributes:
        used: how many slots are taken.
    """

    __slots__ = ("_limit", "_line", "used")

    def __init__(self, hub: Hub, limit: int) -> None:
        self._limit = limit
        self._line = WaitList(hub, lambda: not self.full)
        self.used = 0

    @property
    def full(self) -> bool:
        """Whether all slots are taken."""
        return self.used >= self._limit

    @property
    def waiting(self) -> int:
        """How many greenlets wait for a slot."""
        return len(self._line.waiters)

    def take(self) -> bool:
        """Block until there is a slot for the caller, and take it. Return whether the caller had to wait."""
        waited = False
        while self.full or (self._line.waiters and not waited):
            self._line.wait(None)
            waited = True
        self.used += 1
        return waited

    def give_back(self) -> None:
        """Give a slot back. Never blocks."""
        self.used -= 1
        self._line.wake()
