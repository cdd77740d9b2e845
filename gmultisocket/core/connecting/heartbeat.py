"""Heartbeats and idle peers: find peers that have gone without a word, or that hold a pipe and do not use it.

Every byte that a peer sends is a sign of life; only a silent peer is pinged, by an internal message that the Go code
drops unread. So without a ``connector.pipe.heartbeat_timeout`` a peer is cut off for its silence only after it has once
answered: then it is known to understand pings. Time during which this process was too busy to look, or did not read,
does not count as silence of the peer.
"""

from __future__ import annotations

from typing import Final

from ... import options as opts
from ...errors import MultiSocketError, Timeout
from ...loop.periodic import Periodic
from ...loop.yielding import yield_to_loop
from ..pipes.bytespipe import BytesPipe
from ..pipes.pipe import PipeState

__all__ = ["Heartbeat"]

#: Seconds between two looks at the pipes, whatever their intervals.
_LONGEST_STEP: Final = 1.0
#: After this number of pipes other greenlets run.
_BATCH: Final = 1000

_LIMITS: Final = (
    opts.connector.pipe.heartbeat_timeout,
    opts.connector.pipe.idle_timeout,
    opts.connector.pipe.frame_timeout,
)


class _Silence(Timeout):
    """Why the pipe of a silent peer closes."""

    def __init__(self, seconds: float) -> None:
        super().__init__("keepalive", seconds)

    def __str__(self) -> str:
        return f"the peer was silent for {self.seconds:.1f} s"


class _Unfinished(Timeout):
    """Why the pipe of a peer closes that does not end a message."""

    def __init__(self, seconds: float) -> None:
        super().__init__("message", seconds)

    def __str__(self) -> str:
        return f"the peer has not ended a message for {self.seconds:.1f} s (connector.pipe.frame_timeout)"


class _Progress:
    """What a pipe with one of these limits has done so far."""

    __slots__ = ("_frame", "_frame_since", "_moved", "_moved_since")

    def __init__(self, clock: float) -> None:
        self._moved: tuple[object, ...] = ()
        self._moved_since = clock
        self._frame: int | None = None
        self._frame_since = clock

    def check(self, pipe: BytesPipe, clock: float, silent: float) -> str | MultiSocketError | None:
        """Return why the pipe must close, None if it need not.

        Args:
            pipe: the pipe.
            clock: the time now.
            silent: the seconds since the peer's last sign of life.
        """
        silence_limit, idle_limit, frame_limit = map((pipe._options or pipe._endpoint.options).get, _LIMITS)
        if silence_limit and silent >= silence_limit:
            return _Silence(silent)
        frame = pipe._unfinished_frame()
        # A long message that arrives or leaves slowly is no idleness.
        moved = (
            pipe.messages_received + pipe.messages_sent,
            frame is not None and pipe.bytes_received,
            pipe._partial is not None and pipe.bytes_sent,
        )
        if moved != self._moved or pipe._reading_paused:
            self._moved, self._moved_since = moved, clock
        elif idle_limit and clock - self._moved_since >= idle_limit:
            return f"no message for {clock - self._moved_since:.1f} s (connector.pipe.idle_timeout)"
        if frame != self._frame or pipe._reading_paused:
            self._frame, self._frame_since = frame, clock
        elif frame is not None and frame_limit and clock - self._frame_since >= frame_limit:
            return _Unfinished(clock - self._frame_since)
        return None


class Heartbeat:
    """Watches the pipes of one socket. Has a greenlet only while there are pipes to watch."""

    __slots__ = ("_clock", "_periodic", "_step", "_watched")

    def __init__(self) -> None:
        #: The pipes, and the progress of those with limits.
        self._watched: dict[BytesPipe, _Progress | None] = {}
        self._step = _LONGEST_STEP
        #: Seconds, without the time during which this process was too busy to look: bytes may have arrived then.
        self._clock = 0.0
        self._periodic = Periodic(self._interval, self._check)

    def watch(self, pipe: BytesPipe) -> None:
        """Begin to watch a pipe, if its options ask for it."""
        interval, _ = pipe._keepalive_times()
        limits = [value for option in _LIMITS if (value := pipe._endpoint.options.get(option))]
        if not interval and not limits:
            return
        self._step = min(self._step, *(time / 4 for time in (interval, *limits) if time))
        pipe._last_activity = (pipe._activity(), self._clock)
        self._watched[pipe] = _Progress(self._clock) if limits else None
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
            since = self._clock
            pipe._last_activity = (activity, since)
            pipe._pinged = False
        silent = self._clock - since
        progress = self._watched[pipe]
        reason = None if progress is None else progress.check(pipe, self._clock, silent)
        if reason is not None:
            pipe.close(reason)
        elif silent:
            self._keep_alive(pipe, silent)

    def _keep_alive(self, pipe: BytesPipe, silent: float) -> None:
        interval, allowed = pipe._keepalive_times()
        if not interval or silent < interval:
            return
        if not pipe._pinged:
            pipe._pinged = True
            pipe._ping()
        elif allowed and silent >= max(allowed, interval) and pipe._can_pong():
            pipe.close(_Silence(silent))
