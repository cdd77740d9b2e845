"""Heartbeats and idle peers: find peers that have gone without a word, or that hold a pipe and do not use it.

Every byte that a peer sends is a sign of life. A silent peer is pinged, by an internal message that the Go code drops
unread, and every peer once, soon after its pipe has opened. Without a ``connector.pipe.heartbeat_timeout`` a peer is
cut off for its silence only after it has once answered: then it is known to understand pings.

Slow is not silent. A ping waits behind what was sent before it, so the peer's time to answer does not run while its
kernel acknowledges more and more of that. When the ping has arrived, acknowledgements prove nothing: the kernel of a
stopped process makes them too, until its buffers are full. Only if bytes wait on this side, more of them are taken
because the peer reads.

A side that does not read, because its own queue is full, cannot read pings. It shows its peers that it lives by pongs
that no ping asked for, and does not count their silence. Nor does it count time during which it was too busy to look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ... import options as opts
from ...errors import MultiSocketError, Timeout, snippet
from ...log import ThrottledLog, get_logger
from ...loop.ending import LOG_INTERVAL, Ended, survive
from ...loop.periodic import Periodic
from ...loop.yielding import yield_to_loop
from ..pipes.bytespipe import BytesPipe
from ..pipes.pipe import PipeState
from ..pipes.writepipe import _BLOCKED

__all__ = ["Heartbeat"]

_log: Final = ThrottledLog(get_logger("gmultisocket.pipe"), LOG_INTERVAL)
#: The most seconds between two looks at the pipes, for pipes with longer intervals too.
_LONGEST_STEP: Final = 1.0
#: After this number of pipes other greenlets run.
_BATCH: Final = 1000
#: A socket sends at most this number of pongs in a second that no ping asked for; each costs some 10 us.
_PONGS_A_SECOND: Final = 1000

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

    @staticmethod
    def silence_limit(pipe: BytesPipe) -> float:
        """Return the seconds after which a silent peer is cut, also one that has never answered a ping; 0 for never."""
        return (pipe._options or pipe._endpoint.options).get(opts.connector.pipe.heartbeat_timeout)

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


class _Watched:
    """What is known of a watched pipe.

    Attributes:
        since: the time of the peer's last sign of life.
        received: how many bytes it had sent then.
        mark: where in what is sent to it a ping ends that it has not answered; None without one. A pipe with only a
            ``heartbeat_timeout`` has a mark without a ping.
        acknowledged: how many bytes it had acknowledged at the last look. Valid while there is a mark.
        progress: for the pipe's other limits; None without them.
    """

    __slots__ = ("acknowledged", "mark", "progress", "received", "since")

    def __init__(self, clock: float, received: int) -> None:
        self.since = clock
        self.received = received
        self.mark: int | None = None
        self.acknowledged = 0
        self.progress: _Progress | None = None

    def heard(self, pipe: BytesPipe, clock: float) -> None:
        """Store that the peer has sent something, or could not."""
        self.since = clock
        self.received = pipe.bytes_received
        if self.mark is not None and (pipe.bytes_sent >= self.mark or not pipe.queued):
            # Otherwise the ping waits in the queue, and another one would join it.
            self.mark = None

    def takes_more(self, pipe: BytesPipe) -> bool:
        """Return whether the peer shows by what it acknowledges that it lives."""
        if self.mark is None:
            return False
        before, self.acknowledged = self.acknowledged, pipe._acknowledged()
        return self.acknowledged > before and (self.acknowledged < self.mark or pipe._busy == _BLOCKED)


class Heartbeat:
    """Watches the pipes of one socket. Has a greenlet only while there are pipes to watch."""

    __slots__ = ("_clock", "_pause", "_periodic", "_pongs_due", "_step", "_unasked", "_watched")

    def __init__(self) -> None:
        self._watched: dict[BytesPipe, _Watched] = {}
        #: New pipes whose peers will get their first ping at the next look: otherwise one that is busy until it
        #: vanishes would never be asked. A peer that only sends and leaves at once need not be asked.
        self._unasked: dict[BytesPipe, None] = {}
        self._step = _LONGEST_STEP
        #: Seconds of the pause before the next look; 0 while nobody looks.
        self._pause = 0.0
        #: Seconds, without the time during which this process was too busy to look: bytes may have arrived then.
        self._clock = 0.0
        #: When to send pongs that no ping asked for.
        self._pongs_due = 0.0
        self._periodic = Periodic(self._interval, self._check)

    def watch(self, pipe: BytesPipe) -> None:
        """Begin to watch a new pipe, or one whose options have changed, if its options ask for it. Never blocks."""
        interval, _ = pipe._keepalive_times()
        limits = [value for option in _LIMITS if (value := (pipe._options or pipe._endpoint.options).get(option))]
        if pipe.state is PipeState.CLOSED:
            # The program has set an option of it.
            return
        if interval or limits:
            self._step = min(self._step, *(time / 4 for time in (interval, *limits) if time))
            self._add(pipe, bool(limits))
        if interval and not pipe._can_pong():
            self._unasked[pipe] = None

    def show_life(self, pipe: BytesPipe) -> None:
        """Begin to send pongs to a peer while its pings are not read. May be repeated."""
        if pipe not in self._watched and pipe.state is PipeState.OPEN:
            self._add(pipe, False)

    def _add(self, pipe: BytesPipe, limited: bool) -> None:
        # The time until the next look is no silence: it may be longer than what this pipe is allowed.
        now = self._clock + (self._pause if self._pause > self._step else 0.0)
        watched = self._watched.get(pipe)
        if watched is None:
            watched = self._watched[pipe] = _Watched(now, pipe.bytes_received)
        if limited and watched.progress is None:
            watched.since = now
            watched.progress = _Progress(now)
        self._periodic.start()

    def stop(self) -> None:
        """Stop watching. Never blocks."""
        self._periodic.stop()

    def join(self) -> None:
        """Block until the greenlet has ended."""
        self._periodic.join()

    def _interval(self) -> float:
        self._pause = self._step if self._watched else 0.0
        return self._pause

    def _check(self, elapsed: float, late: float) -> None:
        self._clock += elapsed - late
        unasked, self._unasked = self._unasked, {}
        for pipe in unasked:
            self._look(pipe, _ask)
        pongs = self._clock >= self._pongs_due
        paused = 0
        for number, pipe in enumerate([*self._watched], 1):
            if number % _BATCH == 0:
                yield_to_loop()
            if pipe.state is not PipeState.OPEN:
                del self._watched[pipe]
                continue
            if pipe._reading_paused:
                paused += 1
            self._look(pipe, self._show_and_check if pongs else self._check_pipe)
        if pongs:
            self._pongs_due = self._clock + paused / _PONGS_A_SECOND

    def _look(self, pipe: BytesPipe, look: Callable[[BytesPipe], object]) -> None:
        """Call a function for a pipe. Its error must not keep this from looking at the pipes behind it."""
        try:
            look(pipe)
        except Ended:
            raise
        except BaseException as error:
            text = "the check of pipe %d to %s failed, and will be repeated"
            survive(_log, type(error).__name__, error, text, pipe.id, snippet(pipe.peer_address))

    def _show_and_check(self, pipe: BytesPipe) -> None:
        if pipe._reading_paused:
            pipe._show_life()
        self._check_pipe(pipe)

    def _check_pipe(self, pipe: BytesPipe) -> None:
        """Ping a pipe that is silent, or close it."""
        watched = self._watched[pipe]
        if pipe.bytes_received != watched.received or pipe._reading_paused:
            watched.heard(pipe, self._clock)
        elif watched.takes_more(pipe):
            watched.since = self._clock
        silent = self._clock - watched.since
        progress = watched.progress
        reason = None if progress is None else progress.check(pipe, self._clock, silent)
        if reason is not None:
            pipe.close(reason)
        elif silent:
            self._keep_alive(pipe, watched, silent)

    def _keep_alive(self, pipe: BytesPipe, watched: _Watched, silent: float) -> None:
        interval, allowed = pipe._keepalive_times()
        if watched.mark is None:
            limit = 0.0 if watched.progress is None else watched.progress.silence_limit(pipe)
            wait = min(interval or limit, limit / 2 or interval)
            if wait and silent >= wait:
                watched.acknowledged = pipe._acknowledged()
                if interval:
                    pipe._ping()
                watched.mark = pipe._end_of_queue()
        elif interval and allowed and silent >= max(allowed, interval) and pipe._can_pong():
            pipe.close(_Silence(silent))


def _ask(pipe: BytesPipe) -> None:
    if not pipe._can_pong():
        pipe._ping()
