"""Dialers: keep one pipe to one address.

A dialer has no greenlet of its own while its pipe is open: one is made when there is something to wait for, a
connection that is being made, a pause before the next attempt, or room under the pipe limit.

Pauses grow by a random factor between 1.1 and 1.5 from ``min_reconnect_time`` to ``max_reconnect_time``, and each is
drawn between half and all of that, so that a thousand dialers which lost their peer at once do not come
back at once. They start small again only when a peer has proved to be one, by a message or by staying: a peer that
accepts and hangs up is dialed ever more slowly.

Source: the Go code's connector/dialer.go, where the pause is reset by the bare connection and a pipe that closes early
ends the redialing for good.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from .. import options as opts
from ..address import Address
from ..errors import Closed, MultiSocketError, PipeRefused
from ..loop.owner import check_thread
from ..options import Options
from ..transport import TransportDialer
from .endpoint import Endpoint

if TYPE_CHECKING:
    from .connector import Connector
    from .pipe import Pipe

__all__ = ["Dialer", "DialerState"]

logger = logging.getLogger("gmultisocket.dialer")

_FACTORS = (1.1, 1.5)


class DialerState(Enum):
    """Where a dialer stands."""

    IDLE = "idle"
    DIALING = "dialing"
    CONNECTED = "connected"
    PAUSED = "paused"
    #: The socket has as many pipes as ``connector.pipe_limit`` allows.
    HELD = "held"
    CLOSED = "closed"


_S = DialerState
_MOVES = {
    _S.IDLE: {_S.DIALING, _S.PAUSED, _S.HELD, _S.CLOSED},
    _S.DIALING: {_S.CONNECTED, _S.IDLE, _S.PAUSED, _S.CLOSED},
    _S.CONNECTED: {_S.IDLE, _S.CLOSED},
    _S.PAUSED: {_S.DIALING, _S.HELD, _S.CLOSED},
    _S.HELD: {_S.DIALING, _S.PAUSED, _S.CLOSED},
    _S.CLOSED: frozenset[DialerState](),
}


class Dialer(Endpoint):
    """Dials one address, and dials again when its pipe closes.

    Attributes:
        state: where it stands.
        attempts: how often it has tried to connect.
        reconnects: how many of its pipes came after the first.
        last_error: why the latest attempt failed, None after one that did not.
    """

    dials = True

    def __init__(self, connector: Connector, address: Address, options: Options, transport: TransportDialer) -> None:
        super().__init__(connector, address, options)
        self._transport = transport
        self.state = DialerState.IDLE
        self.attempts = 0
        self.reconnects = 0
        self.last_error: MultiSocketError | None = None
        self._pipe: Pipe | None = None
        self._connected_at = 0.0
        self._connected_before = False
        self._pause = 0.0
        self._greenlet: Greenlet[..., Any] | None = None

    def __repr__(self) -> str:
        return f"<Dialer {self.address} {self.state.value}>"

    @property
    def address(self) -> str:
        return self._address.bare

    @property
    def closed(self) -> bool:
        return self.state is DialerState.CLOSED

    @property
    def pipe(self) -> Pipe | None:
        """The open pipe, None while there is none."""
        return self._pipe

    def _move(self, state: DialerState) -> bool:
        if state not in _MOVES[self.state]:
            return False
        self.state = state
        return True

    # Dialing

    def dial_now(self) -> None:
        """Connect. Blocks for at most ``connector.dialer.dial_timeout``.

        Raises:
            ConnectionFailed: nothing was connected.
            PipeRefused: by a negotiator, or by this socket's pipe limit.
            Closed: the dialer was closed meanwhile.
        """
        # In a greenlet of the dialer's own, so that close() can end the attempt without touching the caller's.
        worker = self._greenlet = gevent.spawn(self._work, self._dial_once)
        try:
            error = worker.get()
        except BaseException:
            # The caller's time is up, or it was killed.
            worker.kill()
            if self._pipe is not None:
                self._pipe.close("dial() was given up")
            raise
        if error is not None:
            raise Closed("dialer") if isinstance(error, GreenletExit) else error

    def dial_later(self) -> None:
        """Connect in a greenlet of the dialer's own, as often as it takes."""
        self._spawn(0.0)

    def _spawn(self, pause: float) -> None:
        if self._greenlet is None and not self.closed:
            self._greenlet = gevent.spawn(self._work, self._dial_until_connected, pause)

    def _work(self, task: Callable[..., Exception | None], *arguments: float) -> Exception | None:
        """Do what the dialer's greenlet is there for."""
        me = getcurrent()
        try:
            return task(*arguments)
        finally:
            if self._greenlet is me:
                self._greenlet = None
            # The pipe may have closed while this greenlet was still here to be seen.
            if self.state is DialerState.IDLE and self._connected_before:
                self._redial()

    def _dial_once(self) -> Exception | None:
        """Connect, or return why not."""
        if not self._connector.reserve():
            return PipeRefused(f"the socket has its {self._connector.pipe_limit} pipes (connector.pipe_limit)")
        try:
            self._attempt()
        except Exception as error:
            return error
        finally:
            self._connector.release()
        return None

    def _dial_until_connected(self, pause: float) -> None:
        """Connect, with pauses, until a pipe is there or the dialer closes."""
        while not self.closed:
            if pause and self._move(DialerState.PAUSED):
                gevent.sleep(pause)
            if self.closed:
                return
            if not self._connector.reserve():
                # limit_changed() starts anew.
                self._move(DialerState.HELD)
                return
            try:
                self._attempt()
                return
            except Closed:
                return
            except MultiSocketError as error:
                logger.debug("dialing %s failed: %s", self.address, error)
            finally:
                self._connector.release()
            pause = self._next_pause()

    def _attempt(self) -> None:
        """Make one connection and its pipe."""
        if not self._move(DialerState.DIALING):
            raise Closed("dialer", f"it is {self.state.value}")
        self.attempts += 1
        try:
            pipe = self._connector.connect(self._transport, self)
            # The state is right before the pipe can close: a peer that resets at once is seen to have gone.
            if not self._move(DialerState.CONNECTED):
                pipe.connection.close()
                raise Closed("dialer")
        except MultiSocketError as error:
            self.last_error = error
            raise
        finally:
            if self.state is DialerState.DIALING:
                self._move(DialerState.IDLE)
        self.last_error = None
        self.reconnects += self._connected_before
        self._connected_before = True
        self._connected_at = monotonic()
        self._pipe = pipe
        self._connector.add(pipe)

    def pipe_closed(self, pipe: Pipe, lived: bool) -> None:
        if pipe is not self._pipe:
            return
        self._pipe = None
        if lived or monotonic() - self._connected_at > max(1.0, self._pause):
            self._pause = 0.0
        if self._move(DialerState.IDLE):
            self._redial()

    def _redial(self) -> None:
        if self.options.get(opts.connector.dialer.reconnect) and self._connector.dials:
            self._spawn(self._next_pause())

    def limit_changed(self) -> None:
        if self.state is DialerState.HELD and self._connector.has_room():
            # A short pause of random length: not all held dialers at once.
            self._spawn(random.uniform(0.0, self.options.get(opts.connector.dialer.min_reconnect_time)))

    def _next_pause(self) -> float:
        """Return the seconds until the next attempt."""
        shortest = self.options.get(opts.connector.dialer.min_reconnect_time)
        longest = self.options.get(opts.connector.dialer.max_reconnect_time) or float("inf")
        self._pause = max(shortest, self._pause * random.uniform(*_FACTORS)) if self._pause else shortest
        self._pause = min(self._pause, max(shortest, longest))
        return max(0.001, self._pause * random.uniform(0.5, 1.0))

    # Closing

    def close(self) -> None:
        """Stop dialing. A pipe that is open stays open; a connection in the making is given up. Never blocks.

        Raises:
            WrongThread: the socket belongs to another thread.
        """
        check_thread(self._connector.hub)
        if self._move(DialerState.CLOSED):
            if self._greenlet is not None and self._greenlet is not getcurrent():
                self._greenlet.kill(block=False)
            self._connector.dialer_closed(self)

    def abandon(self) -> None:
        """Stop dialing in a forked child, without switching greenlets."""
        self.state = DialerState.CLOSED
        self._transport.abandon()

    def join(self) -> None:
        """Block until its greenlet has ended, unless that is the caller."""
        if self._greenlet is not None and self._greenlet is not getcurrent():
            self._greenlet.join()
