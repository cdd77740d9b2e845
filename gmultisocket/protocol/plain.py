"""Receiving bare contents: the half that Pull, Bus and Pair have in common.

These protocols add nothing to a content, so their receive queue is the Socket's.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import Closed
from .base import ProtocolBase

__all__ = ["PlainReceiver"]


class PlainReceiver(ProtocolBase):
    """Receives contents. A message with flags belongs to another protocol: it is dropped and counted (``garbage``)."""

    def recv(self, timeout: float | None = None) -> bytes:
        """Return the content of the next message. Blocks until there is one.

        Raises:
            Timeout: none came in time.
            Closed: it is closed, and everything that had arrived was received.
        """
        return self._next(timeout).content

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over contents as they come; ends when it is closed and everything that had arrived was received."""
        while True:
            try:
                content = self._next(None).content
            except Closed:
                return
            yield content
