"""How long senders to a destination wait, all together, for peers that do not read.

A server that answers its peers by ``send_to``, one after the other, waits when a peer's queue is full: a peer that asks
and does not read would stop it for all others. So the calls without a timeout share one patience
(``socket.send_to_patience``). Each of them may wait for half of what is left of it, so that something is left for the
peers that come after the first slow one. A peer for which it has run out is closed.

Time counts once, however many greenlets wait in it.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

__all__ = ["Patience"]

#: Seconds. Waits are forgotten after this time.
_WINDOW: Final = 10


class Patience:
    """The patience of one socket.

    Attributes:
        limit: seconds of waiting in any ``_WINDOW`` seconds; 0 for no limit.
    """

    __slots__ = ("_began", "_waiting", "_waits", "limit")

    def __init__(self) -> None:
        self.limit = 0.0
        #: Seconds of waiting by the second in which they ended, oldest first: at most ``_WINDOW`` and one entries.
        self._waits: list[tuple[int, float]] = []
        self._waiting = 0
        self._began = 0.0

    def begin(self) -> float | None:
        """Begin a wait. Return the seconds that it may take, None for no limit."""
        now = monotonic()
        if not self._waiting:
            self._began = now
        self._waiting += 1
        return max(0.0, self.limit - self._spent(now)) / 2 if self.limit else None

    def end(self) -> None:
        """End a wait."""
        self._waiting -= 1
        if self._waiting:
            return
        now = monotonic()
        self._forget(now)
        waited = now - self._began
        if self._waits and self._waits[-1][0] == int(now):
            waited += self._waits.pop()[1]
        self._waits.append((int(now), waited))

    def _spent(self, now: float) -> float:
        self._forget(now)
        return sum(seconds for _, seconds in self._waits) + now - self._began

    def _forget(self, now: float) -> None:
        while self._waits and self._waits[0][0] < int(now) - _WINDOW:
            del self._waits[0]
