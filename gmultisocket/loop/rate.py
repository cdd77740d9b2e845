"""Rates: how much may be used in a second."""

from __future__ import annotations

from time import monotonic

__all__ = ["Rate"]


class Rate:
    """A token bucket: so much a second, and what was not used in the last second.

    Args:
        per_second: how much; more than 0.
    """

    __slots__ = ("_at", "_left", "per_second")

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._left = max(1.0, per_second)
        self._at = monotonic()

    def use(self, amount: float) -> None:
        """Use some. More than there is may be used, and is then missing later."""
        now = monotonic()
        self._left = min(max(1.0, self.per_second), self._left + (now - self._at) * self.per_second) - amount
        self._at = now

    @property
    def debt(self) -> float:
        """The seconds until what was used too much is made up for, 0 if nothing was."""
        return max(0.0, -self._left / self.per_second - (monotonic() - self._at))
