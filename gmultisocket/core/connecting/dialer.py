"""Dialers: keep one pipe to one address.

While its pipe is open, a dialer has no greenlet. It has one while it waits for something: a connection that is being
made, or the pause before the next attempt.

Pauses grow by a random factor between 1.1 and 1.5 from ``min_reconnect_time`` to ``max_reconnect_time``. Each is drawn
between half of that and all of it, so that a thousand dialers that lost their peer at once do not come back at once.
Pauses are short again only after a peer has proved to be one, by a message or by staying connected. A peer that accepts
and hangs up is dialed ever more slowly.

Source: the Go code's connector/dialer.go, where the bare connection resets the pause, and a pipe that closes early ends
the redialing for good.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Any, Final

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from ... import options as opts
from ...address import Address
from ...errors import Closed, ConnectionFailed, MultiSocketError, PipeRefused
from ...log import get_logger
from ...loop.ending import Ended, end
from ...loop.owner import check_thread
from ...loop.yielding import keep_to_turn
from ...options import Options
from ...state import StateMachine
from ...transport import TransportDialer
from ..pipes.pipe import Pipe
from .connector import Connector
from .endpoint import Endpoint
from .entry import Entry

__all__ = ["Dialer", "DialerState"]

logger = get_logger("gmultisocket.dialer")

#: The least and the largest factor by which a pause is longer than the one before.
_FACTORS: Final = (1.1, 1.5)


class DialerState(Enum):
    """The states of a dialer."""

    IDLE = "idle"
    DIALING = "dialing"
    CONNECTED = "connected"
    PAUSED = "paused"
    #: The socket has as many pipes as ``connector.pipe_limit`` allows.
    HELD = "held"
    CLOSED = "closed"


class Dialer(StateMachine, Endpoint):
    """Dials one address, and dials again when its pipe closes.

    Attributes:
        state: a :class:`DialerState`.
        attempts: how often it has tried to connect.
        reconnects: how many pipes it has made after the first one.
        last_error: why the latest attempt failed, None after a success.
    """

    __slots__ = (
        "_connected_at",
        "_connected_before",
        "_connector",
        "_greenlet",
        "_pause",
        "_pipe",
        "_transport",
        "attempts",
        "last_error",
        "reconnects",
        "state",
    )

    dials = True

    _moves = {
        DialerState.IDLE: {DialerState.DIALING, DialerState.PAUSED, DialerState.HELD, DialerState.CLOSED},
        DialerState.DIALING: {DialerState.CONNECTED, DialerState.IDLE, DialerState.PAUSED, DialerState.CLOSED},
        DialerState.CONNECTED: {DialerState.IDLE, DialerState.CLOSED},
        DialerState.PAUSED: {DialerState.DIALING, DialerState.HELD, DialerState.CLOSED},
        DialerState.HELD: {DialerState.DIALING, DialerState.PAUSED, DialerState.CLOSED},
        DialerState.CLOSED: (),
    }

    def __init__(self, connector: Connector, address: Address, options: Options, transport: TransportDialer) -> None:
        super().__init__(address, options, connector.pipes)
        self._connector = connector
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
        return self._given.bare

    @property
    def closed(self) -> bool:
        return self.state is DialerState.CLOSED

    @property
    def pipe(self) -> Pipe | None:
        """The open pipe, None while there is none."""
        return self._pipe

    # Dialing

    def _dial_now(self) -> None:
        """Connect. Blocks for at most ``connector.dialer.dial_timeout``.

        Raises:
            ConnectionFailed: nothing was connected.
            PipeRefused: by a negotiator, or by this socket's pipe limit.
            Closed: the dialer was closed meanwhile.
        """
        # In a greenlet of its own, so that close() can end the attempt and leave the caller's greenlet alone.
        worker = self._greenlet = gevent.spawn(self._work, self._dial_once)
        try:
            error = worker.get()
        except BaseException:
            # The caller's time is over, or the caller was killed.
            worker.kill(Ended)
            if self._pipe is not None:
                self._pipe.close("dial() was given up")
            raise
        if error is not None:
            raise Closed("dialer") if isinstance(error, GreenletExit) else error

    def _dial_later(self) -> None:
        """Connect in the background, and try until it succeeds."""
        self._spawn(0.0)

    def _spawn(self, pause: float) -> None:
        if self._greenlet is None and not self.closed:
            self._greenlet = gevent.spawn(self._work, self._dial_until_connected, pause)

    def _work(self, task: Callable[..., Exception | None], *arguments: float) -> Exception | None:
        """Run a task in the dialer's greenlet."""
        me = getcurrent()
        killed = False
        try:
            return task(*arguments)
        except GreenletExit as error:
            killed = not isinstance(error, Ended)
            raise
        finally:
            if self._greenlet is me:
                self._greenlet = None
            # If the pipe closed before this line, _redial() found this greenlet, and did nothing.
            if self.state is DialerState.IDLE and self._connected_before:
                self._redial()
            elif killed:
                # Something else may wait until this greenlet has ended, so another one takes over.
                self._spawn(self._next_pause())

    def _dial_once(self) -> Exception | None:
        """Connect. Return the error, None after a success."""
        places = self._connector.places
        if not places.begin_dial():
            return PipeRefused("the socket has its connector.pipe_limit of pipes")
        try:
            self._attempt()
        except Ended:
            raise
        except GreenletExit:
            return self.last_error
        except Exception as error:
            return error
        finally:
            places.end_dial()
        return None

    def _dial_until_connected(self, pause: float) -> None:
        """Connect, with pauses, until there is a pipe or the dialer closes. No error of an attempt ends this."""
        while not self.closed:
            if pause and self._move(DialerState.PAUSED):
                gevent.sleep(pause)
                keep_to_turn()
            if self.closed:
                return
            if not self._connector.places.begin_dial():
                # _place_free() dials again.
                self._move(DialerState.HELD)
                return
            try:
                self._attempt()
                return
            except MultiSocketError as error:
                logger.debug("dialing %s failed: %s", self.address, error)
            finally:
                self._connector.places.end_dial()
            pause = self._next_pause()

    def _attempt(self) -> None:
        """Make one connection and its pipe.

        Raises:
            MultiSocketError: it failed. The error is :attr:`last_error`.
            GreenletExit: close() or the caller of dial() has ended it (Ended), or something else has killed it.
        """
        if not self._move(DialerState.DIALING):
            raise Closed("dialer", f"it is {self.state.value}")
        self.attempts += 1
        entry = Entry(self._connector.places)
        try:
            self._connect(entry)
        except Ended:
            raise
        except MultiSocketError as error:
            self.last_error = error
            raise
        except BaseException as error:
            # Nothing raises this on purpose: it is a mistake in a transport or in a function of the program.
            self.last_error = ConnectionFailed(self.address, f"unexpected {type(error).__name__}: {error}")
            self._connector.survive("dial", error, "dialing %s failed by an unexpected error", self.address)
            if isinstance(error, GreenletExit):
                raise
            raise self.last_error from error
        finally:
            entry.end()
            if self.state is DialerState.DIALING:
                self._move(DialerState.IDLE)

    def _connect(self, entry: Entry) -> None:
        """Make the connection and the pipe of an attempt."""
        pipe = self._connector.maker.connect(self._transport, self, entry)
        # The state is right before the pipe can close, so that a peer that resets at once is noticed.
        if not self._move(DialerState.CONNECTED):
            pipe._discard("the dialer was closed")
            raise Closed("dialer")
        self.last_error = None
        self.reconnects += self._connected_before
        self._connected_before = True
        self._connected_at = monotonic()
        self._pipe = pipe
        try:
            self._connector.add(pipe)
        except BaseException:
            try:
                pipe.close("it could not be added")
            finally:
                if self._pipe is pipe:
                    self._pipe = None
                    self._move(DialerState.IDLE)
            raise

    # Dialing again

    def _pipe_closed(self, pipe: Pipe) -> None:
        if pipe is not self._pipe:
            return
        self._pipe = None
        if pipe.messages_received or monotonic() - self._connected_at > max(1.0, self._pause):
            self._pause = 0.0
        if self._move(DialerState.IDLE):
            self._redial()

    def _redial(self) -> None:
        if self.options.get(opts.connector.dialer.reconnect) and not self._connector.closing:
            self._spawn(self._next_pause())

    def _place_free(self) -> None:
        if self.state is DialerState.HELD and self._connector.places.may_dial:
            # A short pause of random length, so that not all held dialers dial at once.
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
        """Stop dialing. An open pipe stays open; an attempt to connect is cancelled. Never blocks.

        Raises:
            WrongThread: the socket belongs to another thread.
        """
        check_thread(self._connector.hub)
        if self._move(DialerState.CLOSED):
            end(self._greenlet)
            self._connector.remove_endpoint(self)

    def _join(self) -> None:
        if self._greenlet is not None and self._greenlet is not getcurrent():
            self._greenlet.join()

    def _abandon(self) -> None:
        self.state = DialerState.CLOSED
        self._transport.abandon()
