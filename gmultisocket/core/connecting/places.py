"""Places for pipes: ``connector.pipe_limit``, counted for open pipes and for those that are being made."""

from __future__ import annotations

from collections.abc import Callable, Sized

from ... import options as opts
from ...options import Options

__all__ = ["Places"]


class Places:
    """The places of one socket.

    Args:
        options: of the socket.
        pipes: its open pipes; each takes a place.
        on_free: called when a pipe may be made again, or the limit has changed. Never called without a limit: a
            thousand dialers that lose their pipes need not notify a thousand dialers.
    """

    def __init__(self, options: Options, pipes: Sized, on_free: Callable[[], object]) -> None:
        self._limit: int = options.get(opts.connector.pipe_limit)
        self._pipes = pipes
        self._on_free = on_free
        self._reserved = 0
        options.watch(self, {opts.connector.pipe_limit: Places._set_limit})

    def _set_limit(self, value: int) -> None:
        self._limit = value
        self._on_free()

    @property
    def below_pipe_limit(self) -> bool:
        """Whether one more pipe may be made."""
        return self._limit < 0 or len(self._pipes) + self._reserved < self._limit

    def reserve(self) -> bool:
        """Take a place for a pipe that is being made. Return False if there is none."""
        if not self.below_pipe_limit:
            return False
        self._reserved += 1
        return True

    def release(self) -> None:
        """Give a reserved place back: the pipe is open and counts itself, or there will be none."""
        self._reserved -= 1
        self.freed()

    def freed(self) -> None:
        """Report that a pipe has closed."""
        if self._limit >= 0 and self.below_pipe_limit:
            self._on_free()
