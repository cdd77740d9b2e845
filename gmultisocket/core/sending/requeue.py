"""To-one messages whose pipe closed before they left: they go to another pipe, before anything newer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...wire import Message
from ..pipes.pipe import Pipe
from .rotation import Rotation

__all__ = ["Requeue"]


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
        hook = self.hook
        if hook is not None:
            messages = [message for message in messages if hook(message, None)]
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
                if self.hook is not None and not self.hook(message, pipe):
                    continue
                self._writable.rotate()
                pipe._put(message.flags, message.ttl, message.source, message.destination, message.content)
        finally:
            self._sending = False

    def lose(self) -> int:
        """Remove all messages, because no pipe is left for them. Return their number."""
        lost = len(self.pending)
        self.pending.clear()
        return lost
