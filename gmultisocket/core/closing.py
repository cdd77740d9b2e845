"""``close()``: one call does the work, and all others wait until it is done."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Any, TypeVar

import gevent
from gevent import Greenlet, getcurrent
from gevent.event import Event

from .. import options as opts
from ..loop.waiting import Deadline
from ..options import Options
from .flushing import Flushable, close_collected

__all__ = ["Closable"]

_Self = TypeVar("_Self", bound="Closable")


class Closable(Flushable):
    """A socket, or a protocol on one."""

    options: Options
    #: Whether a call of ``close()`` does the work, or has done it.
    _closing = False
    _close_done = False
    #: For those who wait until it is done; made by the first of them.
    _close_event: Event | None = None

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            unclosed = self._unclosed()
        except AttributeError:
            # Its __init__ has raised.
            return
        if unclosed:
            close_collected(self, self.close_nowait)

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has done its work."""
        return self._close_done

    def close(self, linger: float | None = None) -> int:
        """Close: refuse new messages to send, wait until queued ones have left, then close everything.

        Blocks at most ``linger`` seconds while queued messages leave, and until every greenlet, descriptor and socket
        file is gone. Messages that have arrived can still be received. May be called from anywhere, including a pipe
        callback or a greenlet of this very object, and more than once; a second call waits for the first.

        Args:
            linger: seconds; None for ``socket.send_stop_timeout``.

        Returns:
            How many messages that were accepted for sending are lost. 0 for a second call, and after a fork.
        """
        if self._forked():
            return 0
        self._check()
        if self._closing:
            if not self._is_mine(getcurrent()):
                self._wait_closed()
            return 0
        if linger is None:
            linger = self.options.get(opts.socket.send_stop_timeout)
        self._closing = True
        try:
            return self._close(Deadline(linger))
        finally:
            self._close_done = True
            if self._close_event is not None:
                self._close_event.set()

    def close_nowait(self, linger: float | None = None) -> Greenlet[..., Any]:
        """Close in a greenlet, and return that. For code that may not block, such as signal handlers."""
        return gevent.spawn(self.close, linger)

    def _wait_closed(self) -> None:
        """Block until ``close()`` has done its work."""
        if not self._close_done:
            if self._close_event is None:
                self._close_event = Event()
            self._close_event.wait()

    @property
    def _exit_patience(self) -> float:
        return self.options.get(opts.socket.send_stop_timeout)

    @abstractmethod
    def _forked(self) -> bool:
        """Return whether this object stayed with the parent of a fork."""

    @abstractmethod
    def _is_mine(self, greenlet: object) -> bool:
        """Return whether a greenlet works for this object. ``close()`` waits for it, so it must not wait for that."""

    @abstractmethod
    def _close(self, deadline: Deadline) -> int:
        """Do the work. Return how many messages are lost."""
