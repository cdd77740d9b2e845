"""Places for pipes: ``connector.pipe_limit``. An open pipe has a place, and a connection whose peer is in.

A connection that has not shaken hands has no place: peers that connect and say nothing keep nobody out. A dialer counts
its attempt too, but only against other dialers, so that they do not connect in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Sized

from gevent.hub import Hub

from ... import options as opts
from ...errors import PipeRefused
from ...loop.waiting import WaitList
from ...options import Options

__all__ = ["Places"]


class Places:
    """The places of one socket.

    Args:
        hub: the hub of the socket's thread.
        options: of the socket.
        pipes: its open pipes; each takes a place.
        on_free: called when a pipe may be made again, or the limit has changed. Never called without a limit: a
            thousand dialers that lose their pipes need not notify a thousand dialers.
    """

    __slots__ = (
        "_accept_loops",
        "_dialing",
        "_hub",
        "_limit",
        "_line",
        "_on_free",
        "_pipes",
        "_reserved",
    )

    def __init__(self, hub: Hub, options: Options, pipes: Sized, on_free: Callable[[], object]) -> None:
        self._limit: int = options.get(opts.connector.pipe_limit)
        self._pipes = pipes
        self._on_free = on_free
        self._reserved = 0
        self._dialing = 0
        self._hub = hub
        #: Connections that wait for a place, and accept loops that wait until one more connection is of use. Made when
        #: first needed: most sockets have no limit.
        self._line: WaitList | None = None
        self._accept_loops: WaitList | None = None
        options.watch(self, {opts.connector.pipe_limit: Places._set_limit})

    def _set_limit(self, value: int) -> None:
        self._limit = value
        self._report()

    def _report(self) -> None:
        for waiting in (self._line, self._accept_loops):
            if waiting is not None:
                waiting.wake()
        self._on_free()

    @property
    def _free(self) -> bool:
        return self._limit < 0 or len(self._pipes) + self._reserved < self._limit

    @property
    def below_pipe_limit(self) -> bool:
        """Whether one more pipe may be made, and no connection waits for that already."""
        return self._free and not (self._line is not None and self._line.waiters)

    def wait_below_limit(self) -> None:
        """Block until one more pipe may be made. Takes no place: another connection may be faster."""
        if not self.below_pipe_limit:
            if self._accept_loops is None:
                self._accept_loops = WaitList(self._hub, lambda: self.below_pipe_limit)
            self._accept_loops.wait(None)

    def check_below_limit(self) -> None:
        """Check that one more pipe may be made.

        Raises:
            PipeRefused: it may not.
        """
        if not self.below_pipe_limit:
            raise PipeRefused("the socket has its connector.pipe_limit of pipes")

    def reserve(self) -> None:
        """Take a place for a pipe that is about to be made.

        Raises:
            PipeRefused: there is none.
        """
        self.check_below_limit()
        self._reserved += 1

    def reserve_in_turn(self) -> bool:
        """Block until there is a place, and take it. Return whether the caller had to wait."""
        waited = False
        while not (self._free if waited else self.below_pipe_limit):
            if self._line is None:
                self._line = WaitList(self._hub, lambda: self._free)
            try:
                self._line.wait(None)
            except BaseException:
                # Without this one the line may be empty, and a place free for others.
                self.freed()
                raise
            waited = True
        self._reserved += 1
        if waited:
            self.freed()
        return waited

    def release(self) -> None:
        """Give a reserved place back: the pipe is open and counts itself, or there will be none."""
        self._reserved -= 1
        self.freed()

    def freed(self) -> None:
        """Report that a pipe has closed."""
        if self._limit >= 0 and self._free:
            self._report()

    # Dialers

    @property
    def may_dial(self) -> bool:
        """Whether one more dialer may connect."""
        return self.below_pipe_limit and (
            self._limit < 0 or len(self._pipes) + self._reserved + self._dialing < self._limit
        )

    def begin_dial(self) -> bool:
        """Count a dialer that is about to connect. Return False if it may not."""
        if not self.may_dial:
            return False
        self._dialing += 1
        return True

    def end_dial(self) -> None:
        """The dialer has a pipe, or has failed."""
        self._dialing -= 1
        self.freed()
