"""Pipe events: callbacks get them in the order in which they happened, one after the other, in one greenlet.

The greenlet exists only while there are events. No lock is held meanwhile and nothing in the socket waits for it, so a
callback may block, send, close pipes, or close the socket. Whatever it raises is reported, and the other callbacks are
called all the same. If it is killed, its greenlet ends, and another one goes on.

Events wait while a callback blocks. When ``_MAX_WAITING`` of them wait and a pipe closes whose "add" is among them,
nobody is told of this pipe at all: both events are left out. So callbacks never get a "remove" without its "add", the
order stays, and at most ``_MAX_WAITING`` events and two for each open pipe wait, however many peers come and go.

A protocol's hook is called at once instead, in the greenlet in which the event happens, and may do none of these. If
it fails on "add", the pipe is closed. If it fails on "remove", that is reported: the pipe must end in all parts of the
socket, and its dialer must dial again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from gevent import Greenlet, GreenletExit, Timeout, getcurrent

from ... import usercode
from ...log import ThrottledLog, get_logger
from ...loop.ending import LOG_INTERVAL, survive
from ..pipes.pipe import Pipe

__all__ = ["CallbackGreenlet", "PipeCallback", "PipeEvent", "PipeEvents"]

logger = get_logger("gmultisocket.socket")
_log: Final = ThrottledLog(logger, LOG_INTERVAL)

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

    __slots__ = ("__weakref__", "_callbacks", "_greenlet", "_queue", "_uncalled", "hook", "left_out")

    def __init__(self) -> None:
        self._callbacks: list[PipeCallback] = []
        #: Events that no callback has seen, oldest first, by kind and pipe: there is at most one of each. (Not a dict:
        #: the more keys were removed from its front, the longer it takes to find its first key.)
        self._queue: OrderedDict[tuple[str, Pipe], PipeEvent] = OrderedDict()
        self._greenlet: CallbackGreenlet | None = None
        #: The event that callbacks are called with now, and those that were not called with it yet.
        self._uncalled: tuple[PipeEvent, list[PipeCallback]] | None = None
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
        """Call the hook, and queue the event for the callbacks. Never blocks. Raises what the hook raises on "add"."""
        if self.hook is not None:
            try:
                self.hook(kind, pipe)
            except BaseException as error:
                if kind == "add":
                    # The caller closes the pipe, and reports the error.
                    raise
                name = type(error).__name__
                survive(_log, f"hook {kind} {name}", error, "a protocol failed on %r of pipe %d", kind, pipe.id)
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
            while self._uncalled is not None or self._queue:
                if self._uncalled is None:
                    _, event = self._queue.popitem(last=False)
                    self._uncalled = event, list(self._callbacks)
                self._call(*self._uncalled)
                self._uncalled = None
        finally:
            # If a callback was killed, another greenlet calls the rest.
            self._greenlet = CallbackGreenlet.spawn(self._run) if self._uncalled or self._queue else None

    def _call(self, event: PipeEvent, uncalled: list[PipeCallback]) -> None:
        """Call each of the callbacks with an event. Remove it from the list first."""
        while uncalled:
            callback = uncalled.pop(0)
            if callback not in self._callbacks:
                continue
            try:
                callback(event)
            except (Exception, Timeout) as error:
                self._report(event, error)
            except GreenletExit as error:
                self._report(event, error)
                raise

    def _report(self, event: PipeEvent, error: BaseException) -> None:
        pipe = event.pipe
        what = f"a pipe callback failed on {event.kind!r}"
        usercode.report(logger.name, what, error, self, pipe_id=pipe.id, peer=pipe.peer_address)

    def join(self) -> None:
        """Block until all callbacks have returned, unless the caller is one of them."""
        while self._greenlet is not None and not isinstance(getcurrent(), CallbackGreenlet):
            self._greenlet.join()
