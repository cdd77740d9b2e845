"""To-one messages whose pipe closed before they left: they go to another pipe, before anything newer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ...log import ThrottledLog, get_logger
from ...loop.ending import LOG_INTERVAL, survive
from ...wire import Message
from ..pipes.pipe import Pipe
from .rotation import Rotation

__all__ = ["Requeue"]

_log: Final = ThrottledLog(get_logger("gmultisocket.socket"), LOG_INTERVAL)


class Requeue:
    """The requeued messages of one socket.

    Args:
        writable: the pipes that can take a to-one message.

    Attributes:
        pending: messages that wait for a writable pipe, in the order in which they are sent.
        hook: a protocol's callback, see ``ProtocolSocket.on_requeue``; None without one.
    """

    __slots__ = ("_sending", "_writable", "hook", "pending")

    def __init__(self, writable: Rotation[Pipe]) -> None:
        self._writable = writable
        self._sending = False
        self.pending: deque[Message] = deque()
        self.hook: Callable[[Message, Pipe | None], bool] | None = None

    def add(self, messages: list[Message]) -> None:
        """Add the messages of a pipe that has closed, oldest first, and send what can be sent.

        The messages of one pipe stay in order among themselves, however many of their next pipes close.
        """
        if self.hook is not None:
            messages = [message for message in messages if self._is_wanted(message, None)]
        # In front, because some of them may have been requeued before: they were in front of those that still wait.
        self.pending.extendleft(reversed(messages))
        if messages:
            self.send()

    def send(self) -> None:
        """Put messages into writable pipes while there are any."""
        if self._sending:
            # A pipe has broken when it was given a message below. That message is requeued again. If this were a call
            # within a call for each broken pipe, hundreds that break at once would exhaust the stack.
            return
        self._sending = True
        try:
            while self.pending and (pipe := self._writable.first) is not None:
                message = self.pending.popleft()
                if not self._is_wanted(message, pipe):
                    continue
                self._writable.rotate()
                pipe._put(message.flags, message.ttl, message.source, message.destination, message.content)
        finally:
            self._sending = False

    def _is_wanted(self, message: Message, pipe: Pipe | None) -> bool:
        """Return whether a message may go to another pipe. If the hook fails it may: nothing is lost by an error."""
        if self.hook is None:
            return True
        try:
            return self.hook(message, pipe)
        except BaseException as error:
            # It comes from the middle of a pipe's end, which must go on.
            name = type(error).__name__
            survive(_log, f"hook requeue {name}", error, "a protocol failed on a message that is requeued")
            return True

    def lose(self) -> int:
        """Remove all messages, because no pipe is left for them. Return their number."""
        lost = len(self.pending)
        self.pending.clear()
        return lost
