"""The outbox: messages of a protocol that leave as soon as their pipe is writable.

Answers and control messages are often made in callbacks, where nothing may be sent, and a peer that does not read must
not delay what is for the others. So they are posted here. A greenlet for each pipe that has messages sends them, in the
order in which they were posted. ``socket.send_overflow`` does not apply to them.

What waits for a peer that does not read is bounded in number and in bytes, either by limits here, or because the
protocol bounds the number and the size of its keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import gevent
from gevent import Greenlet

from ..core.pipes.pipe import Pipe, PipeState
from ..core.protocolsocket import ProtocolSocket
from ..errors import Closed, ForkedSocketError
from ..wire import Message

__all__ = ["Outbox"]


#: What a message takes in memory besides its content and its destination: the objects around them, in bytes.
_OVERHEAD = 256


class _Queue:
    """The unsent messages of one pipe.

    Attributes:
        messages: by key, oldest first. (Not a dict: the more keys were removed from its front, the longer it takes to
            find its first key.)
        size: the memory that they take, in bytes, about.
        greenlet: sends them.
    """

    __slots__ = ("greenlet", "messages", "size")

    def __init__(self) -> None:
        self.messages: OrderedDict[Hashable, Message] = OrderedDict()
        self.size = 0
        self.greenlet: Greenlet[..., Any] | None = None

    def put(self, key: Hashable, message: Message) -> None:
        """Add a message, in the place of an unsent one with the same key."""
        before = self.messages.get(key)
        if before is not None:
            self.size -= _size(before)
        self.messages[key] = message
        self.size += _size(message)

    def remove(self, key: Hashable) -> None:
        """Remove the message of a key, if there is one."""
        message = self.messages.pop(key, None)
        if message is not None:
            self.size -= _size(message)

    def take(self) -> Message:
        """Remove and return the oldest message."""
        _, message = self.messages.popitem(last=False)
        self.size -= _size(message)
        return message


def _size(message: Message) -> int:
    return _OVERHEAD + len(message.content) + len(message.destination)


class Outbox:
    """Unsent messages by pipe and key.

    Args:
        core: of the protocol's socket.
        spawn: the protocol's ``_spawn``.
        limits: return the number of messages that may wait for one pipe, and their bytes, 0 for no limit. One more
            message closes the pipe: its peer does not read. A single message may have any size. None if the protocol's
            keys bound both.
        close_reason: why a pipe at the limit is closed, for its ``reason``.
        count_drops: whether messages that cannot be sent are counted as drops: ``"peer gone"`` if their pipe has
            closed, ``"closed"`` if the socket has.
        on_sent: called with the pipe after each message that was sent, and when none is left. Must not block.

    Attributes:
        queues: by pipe: its unsent messages. Has no pipe without any. Read-only.
    """

    __slots__ = ("_close_reason", "_core", "_count_drops", "_limits", "_on_sent", "_spawn", "queues")

    def __init__(
        self,
        core: ProtocolSocket,
        spawn: Callable[..., Greenlet[..., Any]],
        *,
        limits: Callable[[], tuple[int, int]] | None = None,
        close_reason: str = "",
        count_drops: bool = False,
        on_sent: Callable[[Pipe], object] | None = None,
    ) -> None:
        self._core = core
        self._spawn = spawn
        self._limits = limits
        self._close_reason = close_reason
        self._count_drops = count_drops
        self._on_sent = on_sent
        self.queues: dict[Pipe, _Queue] = {}

    def post(self, pipe: Pipe, key: Hashable, message: Message) -> bool:
        """Send a message by a pipe later, in the place of an unsent one with the same key.

        Neither blocks nor switches greenlets: callbacks may use it, unless there are limits.

        Returns:
            False if there were too many, and so the pipe was closed.
        """
        queue = self.queues.get(pipe)
        if queue is None:
            queue = self.queues[pipe] = _Queue()
            queue.greenlet = self._spawn(self._send, pipe, queue)
        elif self._limits is not None and self._is_over(queue, message):
            pipe.close(self._close_reason)
            self._drop("peer gone", 1)
            return False
        queue.put(key, message)
        return True

    def send(self, pipe: Pipe, key: Hashable, message: Message) -> None:
        """Send a message by a pipe at once if that is possible, else later, as :meth:`post` does. Not for callbacks."""
        if pipe.full or pipe.state is not PipeState.OPEN or pipe in self.queues:
            self.post(pipe, key, message)
            return
        self._core.put(pipe, message)
        if self._on_sent is not None:
            self._on_sent(pipe)

    def _is_over(self, queue: _Queue, message: Message) -> bool:
        """Return whether one more message is too much."""
        assert self._limits is not None
        number, size = self._limits()
        waiting = len(queue.messages)
        return bool(waiting) and (waiting >= number or bool(size) and queue.size + _size(message) > size)

    def pending(self, pipe: Pipe, key: Hashable) -> Message | None:
        """Return the unsent message of a key, or None."""
        queue = self.queues.get(pipe)
        return queue.messages.get(key) if queue is not None else None

    def forget(self, pipe: Pipe, key: Hashable) -> None:
        """Remove the unsent message of a key, if there is one."""
        queue = self.queues.get(pipe)
        if queue is not None:
            queue.remove(key)

    def waiting(self, pipe: Pipe) -> int:
        """Return the number of unsent messages of a pipe."""
        queue = self.queues.get(pipe)
        return len(queue.messages) if queue is not None else 0

    def waiting_bytes(self, pipe: Pipe) -> int:
        """Return the memory that the unsent messages of a pipe take, in bytes, about."""
        queue = self.queues.get(pipe)
        return queue.size if queue is not None else 0

    def size(self) -> int:
        """Return the number of all unsent messages."""
        return sum(len(queue.messages) for queue in [*self.queues.values()])

    def flush(self, timeout: float | None) -> None:
        """Block until all messages have been sent, or the time is up."""
        gevent.joinall([queue.greenlet for queue in self.queues.values() if queue.greenlet is not None], timeout)

    def _send(self, pipe: Pipe, queue: _Queue) -> None:
        """Send the messages of one pipe (a greenlet for each pipe, while it has any)."""
        reason = "closed"
        try:
            while queue.messages:
                if not self._core.wait_writable(pipe):
                    reason = "peer gone"
                    return
                # Checked only now: during the wait, others may have posted, replaced and forgotten.
                if queue.messages:
                    self._core.put(pipe, queue.take())
                    if self._on_sent is not None:
                        self._on_sent(pipe)
        except (Closed, ForkedSocketError):
            pass
        finally:
            del self.queues[pipe]
            self._drop(reason, len(queue.messages))
            if self._on_sent is not None:
                self._on_sent(pipe)

    def _drop(self, reason: str, count: int) -> None:
        if self._count_drops:
            for _ in range(count):
                self._core.count_drop(reason)
