"""Time that is counted only while something particular happens, and its limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from ...errors import MultiSocketError
from ...usercode import LibraryTimeout

__all__ = ["OutOfTime", "Stopwatch"]


class OutOfTime(LibraryTimeout):
    """The time of a stopwatch is over.

    Attributes:
        of: the stopwatch.
    """

    def __init__(self, seconds: float, of: Stopwatch) -> None:
        super().__init__(seconds)
        self.of = of


class Stopwatch:
    """Counts the time between :meth:`start` and :meth:`stop`, which one greenlet calls.

    Attributes:
        since: when it was started; None while it stands.
    """

    __slots__ = ("_allowed", "_before", "_timeout", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        #: The seconds that were counted before it was started, and how many are allowed altogether.
        self._before = 0.0
        self._allowed: float | None = None
        self._timeout: OutOfTime | None = None

    @property
    def seconds(self) -> float:
        """The seconds that it has counted."""
        return self._before + (0.0 if self.since is None else monotonic() - self.since)

    def start(self) -> None:
        """Count from now on."""
        self.since = monotonic()
        if self._allowed is not None:
            self._timeout = OutOfTime(self._allowed - self._before, self)
            self._timeout.start()

    def stop(self) -> None:
        """Stop to count. May be repeated."""
        if self._timeout is not None:
            self._timeout.close()
            self._timeout = None
        self._before = self.seconds
        self.since = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the body."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    @contextmanager
    def limit(self, seconds: float, error: MultiSocketError) -> Iterator[None]:
        """Raise an error if more is counted in the body. A ``gevent.Timeout`` of anybody else passes through.

        Args:
            seconds: 0 for no limit.
            error: what to raise.
        """
        self._allowed = self.seconds + seconds if seconds else None
        try:
            yield
        except OutOfTime as expired:
            if expired.of is self:
                raise error from None
            raise
        finally:
            self._allowed = None
