"""Pipe events: callbacks get them in the order in which they happened, as :mod:`gmultisocket.loop.callbacks` says.

Events wait while a callback blocks. When ``_MAX_WAITING`` of them wait and a pipe closes whose "add" is among them,
nobody is told of this pipe at all: both events are left out. So callbacks never get a "remove" without its "add", the
order stays, and at most ``_MAX_WAITING`` events and two for each open pipe wait, however many peers come and go.

A protocol's hook is called at once instead, in the greenlet in which the event happens, and may do none of these. If
it fails on "add", the pipe is closed. If it fails on "remove", that is reported: the pipe must end in all parts of the
socket, and its dialer must dial again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from gevent import Greenlet, getcurrent

from ... import usercode
from ...log import ThrottledLog, get_logger
from ...loop.callbacks import Callbacks, Event
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


class PipeEvents(Callbacks):
    """Calls the callbacks of one socket.

    Attributes:
        left_out: the number of pipes that callbacks were not told of, because too many events waited.
        hook: a protocol's, see ``ProtocolSocket.on_pipe``; None without one.
    """

    __slots__ = ("hook", "left_out")

    def __init__(self) -> None:
        # The key of an event is its kind and its pipe: there is at most one of each.
        super().__init__(CallbackGreenlet.spawn, logger.name, "pipe")
        self.left_out = 0
        self.hook: Callable[[Literal["add", "remove"], Pipe], object] | None = None

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
        if not self:
            return
        if kind == "remove" and len(self._queue) >= _MAX_WAITING and self._leave_out(pipe):
            return
        self.post((kind, pipe), PipeEvent(kind, pipe, pipe.reason))

    def _leave_out(self, pipe: Pipe) -> bool:
        """Forget that a pipe was added, if no callback has seen it. Return whether that is so."""
        if self._queue.pop(("add", pipe), None) is None:
            return False
        self.left_out += 1
        # Once is enough: the number can be read, and a peer must not fill the log.
        level = logging.WARNING if self.left_out == 1 else logging.DEBUG
        logger.log(level, "a pipe callback is slow: %d events wait, short-lived pipes are left out", len(self._queue))
        return True

    def _report(self, error: BaseException, event: Event) -> None:
        # The pipe is asked for its address only now: that takes longer than all the rest of an event.
        kind, pipe, _ = event.args[0]
        what = f"a pipe callback failed on {kind!r}"
        usercode.report(logger.name, what, error, self, pipe_id=pipe.id, peer=pipe.peer_address)

    def join(self) -> None:
        """Block until all callbacks have returned, unless the caller is one of them."""
        while self._greenlet is not None and not isinstance(getcurrent(), CallbackGreenlet):
            self._greenlet.join()
