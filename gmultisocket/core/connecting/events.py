"""Pipe events: callbacks get them in the order in which they happened, one after the other, in one greenlet.

The greenlet exists only while there are events. No lock is held meanwhile and nothing in the socket waits for it, so a
callback may block, send, close pipes, or close the socket.

Events wait while a callback blocks. When ``_MAX_WAITING`` of them wait and a pipe closes whose "add" is among them,
nobody is told of this pipe at all: both events are left out. So callbacks never get a "remove" without its "add", the
order stays, and at most ``_MAX_WAITING`` events and two for each open pipe wait, however many peers come and go.

A protocol's hook is called at once instead, in the greenlet in which the event happens, and may do none of these.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from gevent import Greenlet, Timeout, getcurrent

from ...log import get_logger
from ..pipes.pipe import Pipe

__all__ = ["CallbackGreenlet", "PipeCallback", "PipeEvent", "PipeEvents"]

logger = get_logger("gmultisocket.socket")

#: When this number of events wait, the events of pipes that open and close meanwhile are left out.
_MAX_WAITING: Final = 1024


class PipeEvent(NamedTuple):
    """A pipe was added or removed.

    Attributes:
        kind: ``"add"`` or ``"remove"``.
        pipe: the pipe; it is closed when this is its removal.
        reason: why it closed, "" for ``"add"``.
        messages_unconfirmed, bytes_unconfirmed: what was sent and may be lost with the pipe, see
            :class:`~gmultisocket.Counters`; 0 for ``"add"``.
    """

    kind: Literal["add", "remove"]
    pipe: Pipe
    reason: str = ""

    @property
    def messages_unconfirmed(self) -> int:
        return self.pipe.counters.messages_unconfirmed if self.kind == "remove" else 0

    @property
    def bytes_unconfirmed(self) -> int:
        return self.pipe.counters.bytes_unconfirmed if self.kind == "remove" else 0


PipeCallback = Callable[[PipeEvent], object]


class CallbackGreenlet(Greenlet):  # type: ignore[type-arg]  # at run time it takes none
    """The greenlet that a socket's callbacks run in.

    A ``close()`` that is called in one waits for no callback of any socket: two sockets whose callbacks close each
    other would wait for one another.
    """


class PipeEvents:
    """Calls the callbacks of one socket.

    Attributes:
        left_out: the number of pipes that callbacks were not told of, because too many events waited.
        hook: a protocol's, see ``ProtocolSocket.on_pipe``; None without one.
    """

    __slots__ = ("_callbacks", "_greenlet", "_queue", "hook", "left_out")

    def __init__(self) -> None:
        self._callbacks: list[PipeCallback] = []
        #: Events that no callback has seen, oldest first, by kind and pipe: there is at most one of each. (Not a dict:
        #: the more keys were removed from its front, the longer it takes to find its first key.)
        self._queue: OrderedDict[tuple[str, Pipe], PipeEvent] = OrderedDict()
        self._greenlet: CallbackGreenlet | None = None
        self.left_out = 0
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
        if kind == "remove" and len(self._queue) >= _MAX_WAITING and self._leave_out(pipe):
            return
        self._queue[kind, pipe] = PipeEvent(kind, pipe, pipe.reason)
        if self._greenlet is None:
            self._greenlet = CallbackGreenlet.spawn(self._run)

    def _leave_out(self, pipe: Pipe) -> bool:
        """Forget that a pipe was added, if no callback has seen it. Return whether that is so."""
        if self._queue.pop(("add", pipe), None) is None:
            return False
        self.left_out += 1
        # Once is enough: the number can be read, and a peer must not fill the log.
        level = logging.WARNING if self.left_out == 1 else logging.DEBUG
        logger.log(level, "a pipe callback is slow: %d events wait, short-lived pipes are left out", len(self._queue))
        return True

    def _run(self) -> None:
        try:
            while self._queue:
                _, event = self._queue.popitem(last=False)
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
