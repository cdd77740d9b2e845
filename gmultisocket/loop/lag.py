"""How late an event loop is: the time that a greenlet which is ready waits until it runs.

While a greenlet computes, no other one runs, and no timer fires. So a timer that is due every tenth of a second, and
looks how late it is, measures how long the others have to wait. It exists only from the first call of :func:`lag_of`
on, belongs to one hub, and does not keep the loop from ending. An idle loop shows about a millisecond: the kernel's
clock.

A loop that stands still for five seconds misses fifty of these looks. All of them are counted, each with the time that
was still to wait, as if somebody had been ready at each of these moments: otherwise the worst times would be the
rarest.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from time import monotonic
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from gevent._hub_local import get_hub_if_exists
from gevent.hub import Hub

from . import owner

__all__ = ["BUCKETS", "LagSummary", "LoopLag", "lag_of", "own_hub"]

#: Seconds between two looks.
_INTERVAL: Final = 0.1
_LOOKS_IN_SECOND: Final = 10
#: Looks that percentiles are made of: a minute.
_RECENT: Final = 600
#: The upper ends of the histogram's buckets, in seconds. What is above the last one is only in ``count`` and ``sum``.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LagSummary(NamedTuple):
    """How late a loop was. All times are in seconds.

    Attributes:
        last: the longest of the last second; by now, if the next look is overdue.
        p50, p99, maximum: of the last minute.
        looks: since the measuring began.
        total: the sum of their times.
        buckets: by each end in :data:`BUCKETS`, how many looks were not later.
    """

    last: float
    p50: float
    p99: float
    maximum: float
    looks: int
    total: float
    buckets: tuple[int, ...]


class LoopLag:
    """Measures one loop, from now on.

    Args:
        hub: whose loop it is. The calling thread's.
    """

    __slots__ = ("__weakref__", "_counts", "_due", "_recent", "_timer", "_total")

    def __init__(self, hub: Hub) -> None:
        loop: Any = hub.loop
        self._recent: deque[float] = deque(maxlen=_RECENT)
        #: By bucket, and the last one for what is above all of them.
        self._counts = [0] * (len(BUCKETS) + 1)
        self._total = 0.0
        self._timer = loop.timer(_INTERVAL, _INTERVAL, ref=False)
        self._due = 0.0
        self._start()
        owner.register(self)

    def _start(self) -> None:
        self._due = monotonic() + _INTERVAL
        # From now on, and not from the loop's own time, which may be old by as much as this is to measure.
        self._timer.again(self._look, update=True)

    def _look(self) -> None:
        """Count how late this look is, and the looks that should have been meanwhile. Called in the hub."""
        late = max(0.0, monotonic() - self._due)
        for missed in range(min(int(late / _INTERVAL), _RECENT - 1), -1, -1):
            self._count(late - missed * _INTERVAL)
        self._start()

    def _count(self, late: float) -> None:
        self._recent.append(late)
        self._counts[bisect_left(BUCKETS, late)] += 1
        self._total += late

    def summary(self) -> LagSummary:
        """Return what was measured. May be called in any thread."""
        looks = [*self._recent]
        # A loop that stands still, or this very greenlet, has not let the timer look.
        overdue = monotonic() - self._due
        if overdue > 0.0:
            looks.append(overdue)
        last = max(looks[-_LOOKS_IN_SECOND:], default=0.0)
        running = 0
        buckets = tuple([running := running + count for count in self._counts])
        looks.sort()
        p50, p99, most = (looks[(len(looks) - 1) * part // 100] if looks else 0.0 for part in (50, 99, 100))
        return LagSummary(last, p50, p99, most, buckets[-1], self._total, buckets[:-1])

    def _abandon(self) -> None:
        """Stop in a forked child, whose loop is not this one's."""
        owner.stop_abandoned(self._timer)


#: By the hub of their thread.
_measured: WeakKeyDictionary[Hub, LoopLag] = WeakKeyDictionary()
#: The hubs that another thread has asked to begin.
_asked: WeakSet[Hub] = WeakSet()


def _forget() -> None:
    _measured.clear()
    _asked.clear()


def own_hub() -> Hub | None:
    """Return the hub of the calling thread, None if it has none: ``get_hub()`` would make one."""
    hub: Hub | None = get_hub_if_exists()
    return hub


def lag_of(hub: Hub) -> LoopLag | None:
    """Return what measures a hub's loop. The first call starts it.

    May be called in any thread. Never blocks.

    Returns:
        None if this is not the hub's thread, and the measuring has not begun yet: it does soon. And None for a hub that
        was destroyed before it has.
    """
    lag = _measured.get(hub)
    if lag is None and hub.loop is not None:
        if hub.thread_ident == owner.current_thread():
            lag = _measured[hub] = LoopLag(hub)
        elif hub not in _asked:
            _asked.add(hub)
            loop: Any = hub.loop
            loop.run_callback_threadsafe(lag_of, hub)
    return lag


os.register_at_fork(after_in_child=_forget)
