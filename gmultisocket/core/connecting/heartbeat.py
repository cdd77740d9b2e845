"""Heartbeats: find peers that have gone without a word (``connector.pipe.heartbeat_interval``, off by default).

Every byte that a peer sends is a sign of life; only a silent peer is pinged, by an internal message that the Go code
drops unread. So a peer is cut off for its silence only after it has once answered: then it is known to understand
pings. Time during which this process was too busy to look does not count as silence of the peer.
"""

from __future__ import annotations

from typing import Final

from ...errors import Timeout
from ...loop.periodic import Periodic
from ...loop.yielding import yield_to_loop
from ..pipes.bytespipe import BytesPipe
from ..pipes.pipe import PipeState

__all__ = ["Heartbeat"]

#: Seconds between two looks at the pipes, whatever their intervals.
_LONGEST_STEP: Final = 1.0
#: After this number of pipes other greenlets run.
_BATCH: Final = 1000


class _Silence(Timeout):
    """Why the pipe of a silent peer closes."""

    def __init__(self, seconds: float) -> None:
        super().__init__("keepalive", seconds)

    def __str__(self) -> str:
        return f"the peer was silent for {self.seconds:.1f} s"


class Heartbeat:
    """Watches the pipes of one socket. Has a greenlet only while there are pipes to watch."""

    __slots__ = ("_clock", "_periodic", "_step", "_watched")

    def __init__(self) -> None:
        self._watched: dict[BytesPipe, None] = {}
        self._step = _LONGEST_STEP
        #: Seconds, without the time during which this process was too busy to look: bytes may have arrived then.
        self._clock = 0.0
        self._periodic = Periodic(self._interval, self._check)

    def watch(self, pipe: BytesPipe) -> None:
        """Begin to watch a pipe, if its options ask for it."""
        interval, _ = pipe._keepalive_times()
        if not interval:
            return
        self._step = min(self._step, interval / 4)
        pipe._last_activity = (pipe._activity(), self._clock)
        self._watched[pipe] = None
        self._periodic.start()

    def stop(self) -> None:
        """Stop watching. Never blocks."""
        self._periodic.stop()

    def join(self) -> None:
        """Block until the greenlet has ended."""
        self._periodic.join()

    def _interval(self) -> float:
        return self._step if self._watched else 0.0

    def _check(self, elapsed: float, late: float) -> None:
        self._clock += elapsed - late
        for number, pipe in enumerate([*self._watched], 1):
            if number % _BATCH == 0:
                yield_to_loop()
            self._check_pipe(pipe)

    def _check_pipe(self, pipe: BytesPipe) -> None:
        """Ping a pipe that is silent, or close it."""
        if pipe.state is not PipeState.OPEN:
            del self._watched[pipe]
            return
        seen, since = pipe._last_activity
        activity = pipe._activity()
        if activity != seen or pipe._reading_paused:
            pipe._last_activity = (activity, self._clock)
            pipe._pinged = False
            return
        interval, allowed = pipe._keepalive_times()
        silent = self._clock - since
        if not interval or silent < interval:
            return
        if not pipe._pinged:
            pipe._pinged = True
            pipe._ping()
        elif allowed and silent >= max(allowed, interval) and pipe._can_pong():
            pipe.close(_Silence(silent))
