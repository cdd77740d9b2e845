"""Heartbeats: find peers that have gone without a word (``connector.pipe.heartbeat_interval``, off by default).

Any byte that a peer sends is a sign of life; only a silent peer is pinged, by an internal message that the Go code
drops unread. So a peer is cut for its silence only after it has once answered: then it is known to understand.
The time for which this process itself was too busy to look is not held against the peer.

Wire: flag 0x04; content 0x01 ping, 0x02 pong, each with bytes that come back; 0x00 close.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
from gevent import Greenlet

from ..errors import Timeout
from ..wire import Message
from .bytespipe import CLOSE, PING, PONG, BytesPipe
from .framedpipe import FramedPipe
from .pipe import PipeState

__all__ = ["Heartbeat"]

#: The longest that a look at the pipes may be put off, in seconds, whatever their intervals.
_LONGEST_STEP = 1.0
#: What a ping may carry, in bytes; more is not sent back.
_MOST_ECHOED = 125
#: After a look at so many pipes others run.
_MOST_AT_ONCE = 1000


class _Silence(Timeout):
    """Why the pipe of a silent peer closes."""

    def __init__(self, seconds: float) -> None:
        super().__init__("keepalive", seconds)

    def __str__(self) -> str:
        return f"the peer was silent for {self.seconds:.1f} s"


class Heartbeat:
    """Watches the pipes of one socket, with one greenlet while there are any to watch."""

    __slots__ = ("_clock", "_greenlet", "_step", "_watched")

    def __init__(self) -> None:
        self._watched: dict[BytesPipe, None] = {}
        self._step = _LONGEST_STEP
        #: Seconds, without the time for which this process was too busy to look: bytes may have come then.
        self._clock = 0.0
        self._greenlet: Greenlet[..., Any] | None = None

    @staticmethod
    def understand(pipe: FramedPipe, message: Message) -> bool:
        """Act on an internal message from a peer. False if it means nothing here."""
        kind, rest = message.content[:1], message.content[1:]
        if kind == PING and len(rest) <= _MOST_ECHOED:
            pipe.knows_internal = True
            if not pipe.full:
                # Of a peer that does not read, the answers would pile up here.
                pipe.put_internal(PONG + rest)
        elif kind == PONG:
            pipe.knows_internal = True
        elif kind == CLOSE:
            pipe.end_with_goodbye()
        else:
            return False
        return True

    def watch(self, pipe: BytesPipe) -> None:
        """Begin to watch a pipe, if its options ask for it."""
        interval, _ = pipe.silence()
        if not interval:
            return
        self._step = min(self._step, interval / 4)
        pipe.beat = (pipe.life(), self._clock)
        self._watched[pipe] = None
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Stop watching."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def join(self) -> None:
        """Block until the greenlet has ended."""
        if self._greenlet is not None:
            self._greenlet.join()

    def _run(self) -> None:
        try:
            while self._watched:
                before = monotonic()
                gevent.sleep(self._step)
                self._clock += min(monotonic() - before, self._step)
                for number, pipe in enumerate([*self._watched], 1):
                    if number % _MOST_AT_ONCE == 0:
                        gevent.sleep(0)
                    self._look(pipe)
        finally:
            self._greenlet = None

    def _look(self, pipe: BytesPipe) -> None:
        if pipe.state is not PipeState.OPEN:
            del self._watched[pipe]
            return
        seen, since = pipe.beat
        life = pipe.life()
        if life != seen or pipe.held_up():
            pipe.beat = (life, self._clock)
            pipe.pinged = False
            return
        interval, allowed = pipe.silence()
        silent = self._clock - since
        if not interval or silent < interval:
            return
        if not pipe.pinged:
            pipe.pinged = True
            pipe.ask()
        elif allowed and silent >= max(allowed, interval) and pipe.answers():
            pipe.close(_Silence(silent))
