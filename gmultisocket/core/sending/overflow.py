"""What happens to a message when a pipe's queue is full (``socket.send_overflow``, ``socket.send_best_effort``)."""

from __future__ import annotations

from ..pipes.pipe import Pipe
from ..pipes.scheduler import WriteScheduler

__all__ = ["OverflowPolicy"]


class OverflowPolicy:
    """The policy of one socket.

    Attributes:
        policy: block, drop_newest, drop_oldest or disconnect.
        best_effort: whether a full queue drops the new message under every policy.
    """

    __slots__ = ("_scheduler", "best_effort", "policy")

    def __init__(self, scheduler: WriteScheduler) -> None:
        self._scheduler = scheduler
        self.policy = "block"
        self.best_effort = False

    @property
    def blocks(self) -> bool:
        """Whether a sender waits for space."""
        return self.policy == "block" and not self.best_effort

    def apply(self, pipe: Pipe) -> bool:
        """Apply a policy that does not block to one full pipe.

        Returns:
            Whether the pipe is writable now. If not, the new message was dropped, and counted on the pipe.
        """
        if self.best_effort:
            pipe._drop("overflow")
            return False
        return self.make_space(pipe)

    def make_space(self, pipe: Pipe) -> bool:
        """Do as :meth:`apply` does, as if ``best_effort`` were off."""
        self._scheduler.spend(1, 0)
        if self.policy == "drop_oldest":
            # With a limit in bytes, several small messages may have to go for a large one.
            while pipe.full and pipe._drop_oldest():
                pipe._update_full()
            if not pipe.full:
                return True
        if self.policy == "disconnect":
            pipe._drop("overflow")
            pipe._close("its send queue was full (socket.send_overflow is disconnect)")
            return False
        pipe._drop("overflow")
        return False
