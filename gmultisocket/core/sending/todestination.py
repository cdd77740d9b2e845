"""Messages to a destination: they go to the pipe that the first id of the path names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ... import options as opts
from ...errors import BrokenPath, MessageDropped, Timeout
from ...loop.waiting import Deadline
from ...wire import MAX_CONTENT, first_id
from ..pipes.pipe import Pipe, PipeState
from ..pipes.scheduler import WriteScheduler
from .fanout import Sent
from .overflow import OverflowPolicy
from .patience import Patience

__all__ = ["ToDestinationSender"]


class ToDestinationSender:
    """Sends to destinations for one socket.

    Args:
        pipes: the open pipes by id.
        scheduler: of the socket's pipes.
        overflow: applied to a full pipe.
        patience: how long calls without a timeout wait together.
        check_open: raises if nothing may be sent any more; called after each wait.
    """

    __slots__ = (
        "_check_open",
        "_overflow",
        "_patience",
        "_pipes",
        "_scheduler",
    )

    def __init__(
        self,
        pipes: Mapping[int, Pipe],
        scheduler: WriteScheduler,
        overflow: OverflowPolicy,
        patience: Patience,
        check_open: Callable[[], object],
    ) -> None:
        self._pipes = pipes
        self._scheduler = scheduler
        self._overflow = overflow
        self._check_open = check_open
        self._patience = patience

    def own_limit(self, destination: bytes) -> int:
        """Return the longest content for a path's first pipe, if that depends on its dialer's or listener's options.

        What a pipe may receive it may send too, unless ``socket.max_send_content_length`` is set. 0 without a pipe.
        """
        pipe = self._pipes.get(first_id(destination))
        if pipe is None:
            return 0
        options = pipe._options or pipe._endpoint.options
        if options.get(opts.socket.max_send_content_length) >= 0:
            return 0
        return options.get(opts.connector.pipe.max_recv_content_length) or MAX_CONTENT

    def send(self, fields: Sent, timeout: float | None) -> None:
        """Send along a path; see ``Socket.send_to``."""
        pipe_id = first_id(fields[3])
        pipe = self._pipes.get(pipe_id)
        if pipe is None or pipe.state is not PipeState.OPEN:
            raise BrokenPath(pipe_id)
        if not self._scheduler.queue_limit:
            pipe._update_full()
        if (pipe.full or pipe._awaited) and not self._wait_for(pipe, timeout):
            if pipe.state is not PipeState.OPEN:
                raise BrokenPath(pipe_id)
            if self._overflow.best_effort:
                raise MessageDropped("overflow")
            if self._overflow.blocks:
                raise Timeout("send_to", timeout)
            return
        pipe._put(*fields)

    def _wait_for(self, pipe: Pipe, timeout: float | None) -> bool:
        """Block until one pipe is writable, or apply the overflow policy.

        Returns:
            False if the pipe is not writable in time, or has closed.
        """
        if timeout is not None or not self._overflow.blocks or not pipe._remote:
            return self._wait_until(pipe, Deadline(timeout))
        allowed = self._patience.begin()
        try:
            return self._wait_until(pipe, Deadline(allowed)) or not self._evict(pipe)
        finally:
            self._patience.end()

    def _evict(self, pipe: Pipe) -> bool:
        """Close a pipe for which the senders have no patience left. Return False if it is writable after all."""
        if pipe.state is PipeState.OPEN and not pipe.full:
            return False
        pipe._close("it does not read what is sent to it (socket.send_to_patience)")
        return True

    def _wait_until(self, pipe: Pipe, deadline: Deadline) -> bool:
        woken = False
        while (pipe.full or (pipe._awaited and not woken)) and pipe.state is PipeState.OPEN:
            if not self._overflow.blocks:
                return self._overflow.apply(pipe)
            woken = pipe._waiters().wait(deadline.left())
            if not woken:
                self._scheduler.spend(1, 0)
                return False
            self._check_open()
        return pipe.state is PipeState.OPEN

    def wait_writable(self, pipe: Pipe, timeout: float | None) -> bool:
        """Block until one pipe is writable; see ``ProtocolSocket.wait_writable``."""
        deadline = Deadline(timeout)
        while pipe.full and pipe.state is PipeState.OPEN:
            if not pipe._waiters().wait(deadline.left()):
                return False
            self._check_open()
        return pipe.state is PipeState.OPEN
