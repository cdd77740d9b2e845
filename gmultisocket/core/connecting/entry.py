"""The way of one connection into the socket: what it waits for, and whose time that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import MultiSocketError
from .places import Places
from .stopwatch import Stopwatch

__all__ = ["Entry"]


class Entry:
    """One connection that becomes a pipe. This one is of a dialer, which waits for nobody's turn.

    Attributes:
        peer_time: counts while this side waits for the peer.
        own_time: counts while a function of this side's user decides about the connection.
        reserved: whether it holds a place for a pipe.
    """

    __slots__ = ("_places", "own_time", "peer_time", "reserved")

    @property
    def in_own_greenlet(self) -> bool:
        """Whether the greenlet that works for the connection is the library's, and no server's."""
        return True

    def __init__(self, places: Places) -> None:
        self._places = places
        self.peer_time = Stopwatch()
        self.own_time = Stopwatch()
        self.reserved = False

    def begin(self) -> None:
        """Block until the handshake may begin. Called when the peer has sent something; may be repeated."""

    @contextmanager
    def function(self, seconds: float, error: MultiSocketError) -> Iterator[None]:
        """Call a function of this side's user in the body. Blocks until it may run.

        Args:
            seconds: how long the function may take, without the time in :meth:`peer`; 0 for no limit.
            error: what to raise after that.
        """
        with self.own_time.limit(seconds, error):
            try:
                self._resume()
                yield
            finally:
                self._pause()

    @contextmanager
    def peer(self) -> Iterator[None]:
        """Wait for the peer in the body. A function that waits for its peer does not count among those that run."""
        in_function = self.own_time.since is not None
        self._pause()
        try:
            with self.peer_time.running():
                yield
        except Exception:
            if in_function:
                self._resume()
            raise
        if in_function:
            self._resume()

    def _resume(self) -> None:
        self._take_slot()
        self.own_time.start()

    def _pause(self) -> None:
        self.own_time.stop()
        self._give_slot_back()

    def _take_slot(self) -> None:
        """Block until one more function may run."""

    def _give_slot_back(self) -> None:
        """Give the slot back, when the function has ended. May be repeated."""

    def admit(self) -> None:
        """Take a place for the pipe, because the peer is in. May block.

        Raises:
            PipeRefused: there is none, or the peer has too many pipes.
        """
        self._places.reserve()
        self.reserved = True

    def end(self) -> None:
        """Give the place back: the pipe is open and counts itself, or there will be none. May be repeated."""
        if self.reserved:
            self.reserved = False
            self._places.release()
