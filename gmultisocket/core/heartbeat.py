"""Heartbeats: find peers that have gone without a word (``connector.pipe.heartbeat_interval``, off by default).

Any byte that a peer sends is a sign of life; only a silent peer is pinged, by an internal message that the Go code
drops unread. So a peer is cut for its silence only after it has once answered: then it is known to understand.
The time for which this process itself was too busy to look is not held against the peer.

Wire: flag 0x04; content 0x01 ping, 0x02 pong, each with bytes that come back; 0x00 close.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

import gevent
from gevent import Greenlet

from .. import options as opts
from ..wire import Message
from .bytespipe import FramedPipe
from .pipe import Pipe, PipeState

__all__ = ["Heartbeat"]

CLOSE, PING, PONG = b"\x00", b"\x01", b"\x02"
#: The longest that a look at the pipes may be put off, in seconds, whatever their intervals.
_LONGEST_STEP = 1.0
#: What a ping may carry, in bytes; more is not sent back.
_MOST_ECHOED = 125


class Heartbeat:
    """Watches the pipes of one socket, with one greenlet while there are any to watch."""

    __slots__ = ("_greenlet", "_pipes", "_step")

    def __init__(self, pipes: Mapping[int, Pipe]) -> None:
        self._pipes = pipes
        self._step = _LONGEST_STEP
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
            pipe.close("the peer said goodbye")
        else:
            return False
        return True

    def watch(self, pipe: FramedPipe) -> None:
        """Begin to watch a pipe."""
        interval = pipe.options.get(opts.connector.pipe.heartbeat_interval)
        self._step = min(self._step, interval / 4)
        pipe.beat = (pipe.bytes_received, monotonic())
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
            while any(isinstance(pipe, FramedPipe) for pipe in self._pipes.values()):
                before = monotonic()
                gevent.sleep(self._step)
                now = monotonic()
                self._look(now, late=max(0.0, now - before - self._step))
        finally:
            self._greenlet = None

    def _look(self, now: float, late: float) -> None:
        for pipe in list(self._pipes.values()):
            if not isinstance(pipe, FramedPipe) or pipe.state is not PipeState.OPEN:
                continue
            interval = pipe.options.get(opts.connector.pipe.heartbeat_interval)
            if not interval:
                continue
            received, since = pipe.beat
            if pipe.bytes_received != received:
                pipe.beat = (pipe.bytes_received, now)
                pipe.pinged = False
                continue
            # Bytes may have come while nobody could read them.
            since += late
            pipe.beat = (received, since)
            silent = now - since
            allowed = pipe.options.get(opts.connector.pipe.heartbeat_timeout) or 2 * interval
            if silent >= max(allowed, interval) and pipe.knows_internal:
                pipe.close(f"the peer was silent for {silent:.1f} s")
            elif silent >= interval and not pipe.pinged:
                pipe.pinged = True
                pipe.put_internal(PING)
