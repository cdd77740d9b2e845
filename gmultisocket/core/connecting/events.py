"""Pipe events: callbacks get them in the order in which they happened, one after the other, in one greenlet.

The greenlet exists only while there are events. No lock is held meanwhile and nothing in the socket waits for it, so a
callback may block, send, close pipes, or close the socket.

A protocol's hook is called at once instead, in whatever greenlet the event happens, and may do none of these things.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from gevent import Greenlet, Timeout, getcurrent

from ...log import get_logger
from ..pipes.pipe import Pipe

__all__ = ["CallbackGreenlet", "PipeCallback", "PipeEvent", "PipeEvents"]

logger = get_logger("gmultisocket.socket")


class PipeEvent(NamedTuple):
    """A pipe was added or removed.

    Attributes:
        kind: ``"add"`` or ``"remove"``.
        pipe: the pipe; it is closed when this is its removal.
        reason: why it closed, "" for ``"add"``.
    """

    kind: Literal["add", "remove"]
    pipe: Pipe
    reason: str = ""


PipeCallback = Callable[[PipeEvent], object]


class CallbackGreenlet(Greenlet):  # type: ignore[type-arg]  # at run time it takes none
    """The greenlet that a socket's callbacks run in.

    A ``close()`` that is called in one waits for no callback of any socket: two sockets whose callbacks close each
    other would wait for one another.
    """


class PipeEvents:
    """Calls the callbacks of one socket."""

    __slots__ = ("_callbacks", "_greenlet", "_queue", "hook")

    def __init__(self) -> None:
        self._callbacks: list[PipeCallback] = []
        self._queue: deque[PipeEvent] = deque()
        self._greenlet: CallbackGreenlet | None = None
        #: A protocol's, see ``ProtocolSocket.on_pipe``; None without one.
        self.hook: Callable[[Literal["add", "remove"], Pipe], object] | None = None

    def subscribe(self, callback: PipeCallback) -> Callable[[], None]:
        """Call a callback for each event from now on. Return a function that ends this."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def emit(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        """Call the hook, and queue the event for the callbacks. Never blocks."""
        if self.hook is not None:
            self.hook(kind, pipe)
        if not self._callbacks:
            return
        self._queue.append(PipeEvent(kind, pipe, pipe.reason))
        if self._greenlet is None:
            self._greenlet = CallbackGreenlet.spawn(self._run)

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
            self._greenlet = None

    def join(self) -> None:
        """Block until all callbacks have returned, unless the caller is one of them."""
        if self._greenlet is not None and not isinstance(getcurrent(), CallbackGreenlet):
            self._greenlet.join()
