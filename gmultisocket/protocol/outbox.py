"""The outbox: messages of a protocol that leave as soon as their pipe is writable.

Answers and control messages are often made in callbacks, where nothing may be sent, and a peer that does not read must
not delay messages to other peers. So they are posted here, and one greenlet for each pipe sends the messages of that
pipe, in the order in which they were posted. ``socket.send_overflow`` does not apply to them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import gevent
from gevent import Greenlet

from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..errors import Closed, ForkedSocketError
from ..wire import Message

__all__ = ["Outbox"]


class Outbox:
    """Unsent messages by pipe and key.

    Args:
        core: of the protocol's socket.
        spawn: the protocol's ``_spawn``.
        limit: messages that may wait for one pipe. One more closes the pipe: its peer does not read. None if the
            protocol's keys bound their number.
        close_reason: why a pipe at the limit is closed, for its ``reason``.
        count_drops: whether messages that cannot be sent are counted as drops: ``"peer gone"`` if their pipe has
            closed, ``"closed"`` if the socket has.

    Attributes:
        queues: by pipe, then by key: the unsent messages. Has no pipe without any. Read-only.
    """

    __slots__ = ("_close_reason", "_core", "_count_drops", "_greenlets", "_limit", "_spawn", "queues")

    def __init__(
        self,
        core: ProtocolSocket,
        spawn: Callable[..., Greenlet[..., Any]],
        *,
        limit: int | None = None,
        close_reason: str = "",
        count_drops: bool = False,
    ) -> None:
        self._core = core
        self._spawn = spawn
        self._limit = limit
        self._close_reason = close_reason
        self._count_drops = count_drops
        self.queues: dict[Pipe, dict[Hashable, Message]] = {}
        self._greenlets: dict[Pipe, Greenlet[..., Any]] = {}

    def post(self, pipe: Pipe, key: Hashable, message: Message) -> bool:
        """Send a message by a pipe later, in the place of an unsent one with the same key.

        Neither blocks nor switches greenlets: callbacks may use it, unless there is a limit.

        Returns:
            False if there were too many, and so the pipe was closed.
        """
        queue = self.queues.get(pipe)
        if queue is None:
            queue = self.queues[pipe] = {}
            self._greenlets[pipe] = self._spawn(self._send, pipe, queue)
        elif self._limit is not None and len(queue) >= self._limit and key not in queue:
            pipe.close(self._close_reason)
            self._drop("peer gone", 1)
            return False
        queue[key] = message
        return True

    def pending(self, pipe: Pipe, key: Hashable) -> Message | None:
        """Return the unsent message of a key, or None."""
        queue = self.queues.get(pipe)
        return queue.get(key) if queue is not None else None

    def forget(self, pipe: Pipe, key: Hashable) -> None:
        """Remove the unsent message of a key, if there is one."""
        queue = self.queues.get(pipe)
        if queue is not None:
            queue.pop(key, None)

    def waiting(self, pipe: Pipe) -> int:
        """Return the number of unsent messages of a pipe."""
        return len(self.queues.get(pipe, ()))

    def flush(self, timeout: float | None) -> None:
        """Block until all messages have been sent, or the time is up."""
        gevent.joinall(list(self._greenlets.values()), timeout)

    def _send(self, pipe: Pipe, queue: dict[Hashable, Message]) -> None:
        """Send the messages of one pipe (a greenlet for each pipe, while it has any)."""
        reason = "closed"
        try:
            while queue:
                if not self._core.wait_writable(pipe):
                    reason = "peer gone"
                    return
                # Checked only now: during the wait, others may have posted, replaced and forgotten.
                if queue:
                    self._core.put(pipe, queue.pop(next(iter(queue))))
        except (Closed, ForkedSocketError):
            pass
        finally:
            del self.queues[pipe], self._greenlets[pipe]
            self._drop(reason, len(queue))

    def _drop(self, reason: str, count: int) -> None:
        if self._count_drops:
            for _ in range(count):
                self._core.count_drop(reason)
