"""Pipe events: told to callbacks in the order in which they happened, one after the other, from one greenlet.

The greenlet exists only while there is something to tell. No lock is held meanwhile and nothing of the socket waits for
it, so a callback may block, send, close pipes, or close the socket.

A protocol's watcher is told at once instead, in whatever greenlet the event happens, and may do nothing of that kind.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from gevent import Greenlet, Timeout, getcurrent

if TYPE_CHECKING:
    from .pipe import Pipe

__all__ = ["PipeCallback", "PipeEvent", "PipeEvents", "Teller"]

logger = logging.getLogger("gmultisocket.socket")


class PipeEvent(NamedTuple):
    """A pipe came or went.

    Attributes:
        kind: ``"add"`` or ``"remove"``.
        pipe: the pipe; closed already when this is its removal.
        reason: why it closed, "" for ``"add"``.
    """

    kind: Literal["add", "remove"]
    pipe: Pipe
    reason: str = ""


PipeCallback = Callable[[PipeEvent], object]


class Teller(Greenlet):  # type: ignore[type-arg]  # at run time it takes none
    """The greenlet that a socket's callbacks run in.

    Whoever closes a socket from one waits for no callback, of whatever socket: two sockets whose callbacks close each
    other would wait for one another.
    """


class PipeEvents:
    """Tells callbacks what happens to pipes."""

    __slots__ = ("_callbacks", "_queue", "greenlet", "watcher")

    def __init__(self) -> None:
        self._callbacks: list[PipeCallback] = []
        self._queue: deque[PipeEvent] = deque()
        #: The greenlet that tells, while there is something to tell.
        self.greenlet: Teller | None = None
        #: A protocol's, see ``ProtocolSocket.on_pipe``; None without one.
        self.watcher: Callable[[Literal["add", "remove"], Pipe], object] | None = None

    def subscribe(self, callback: PipeCallback) -> Callable[[], None]:
        """Have a callback told from now on; returns what ends it."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def tell(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        """Queue an event. Never blocks."""
        if self.watcher is not None:
            self.watcher(kind, pipe)
        if not self._callbacks:
            return
        self._queue.append(PipeEvent(kind, pipe, pipe.reason))
        if self.greenlet is None:
            self.greenlet = Teller.spawn(self._run)

    def _run(self) -> None:
        try:
            while self._queue:
                event = self._queue.popleft()
                for callback in list(self._callbacks):
                    try:
                        if callback in self._callbacks:
                            callback(event)
                    except (Exception, Timeout):
                        logger.exception("a pipe callback failed on %r", event.kind)
        finally:
            self.greenlet = None

    def join(self) -> None:
        """Block until everything was told, unless called by a callback."""
        if self.greenlet is not None and not isinstance(getcurrent(), Teller):
            self.greenlet.join()
