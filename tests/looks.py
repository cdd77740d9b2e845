"""Counts how often the loop looks at sockets and timers."""

from __future__ import annotations

from typing import Any

from gevent import get_hub

__all__ = ["Looks"]


class Looks:
    """A context manager that counts the looks of this thread's loop.

    Attributes:
        count: how often the loop has looked.
    """

    def __init__(self) -> None:
        self.count = 0
        loop: Any = get_hub().loop
        self._watcher = loop.check()

    def __enter__(self) -> Looks:
        self._watcher.start(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        self._watcher.stop()
        self._watcher.close()

    def _look(self) -> None:
        self.count += 1
