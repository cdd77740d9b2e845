"""Each publication once: a plane finds its own ones, and those that came before, by their origin and sequence.

The sequence of an origin rises with each publication, over all connections. So one that is not above the last one of
its origin was here already: by another connection, or by another of the patterns that match it.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from typing import Final

from .engine import FOREIGN

__all__ = ["Once"]

#: Origins that are remembered: at least so many, and at most twice as many. Those that were silent longest go first.
_ORIGINS: Final = 1 << 16


class Once:
    """What came from each origin.

    Args:
        own: the origin of this plane.

    Attributes:
        echoes: publications of this plane that came back.
        duplicates: publications that came again.
    """

    __slots__ = ("_earlier", "_recent", "duplicates", "echoes", "own")

    def __init__(self, own: bytes) -> None:
        self.own = own
        #: By origin: its last sequence. Of those that have published since the two were exchanged, and before.
        self._recent: dict[bytes, int] = {}
        self._earlier: dict[bytes, int] = {}
        self.echoes = 0
        self.duplicates = 0

    def is_new(self, origin: bytes, sequence: int) -> bool:
        """Return whether a publication is another plane's and comes for the first time. Foreign ones always are."""
        if origin == FOREIGN:
            return True
        last = self._recent.get(origin)
        if last is None:
            if origin == self.own:
                self.echoes += 1
                return False
            last = self._earlier.get(origin, -1)
            if len(self._recent) >= _ORIGINS:
                self._earlier, self._recent = self._recent, {}
        if sequence <= last:
            self.duplicates += 1
            return False
        self._recent[origin] = sequence
        return True
