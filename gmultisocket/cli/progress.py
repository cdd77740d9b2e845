"""How far a long command is.

On a terminal it is one line that moves. Elsewhere it is a plain line every ten seconds, so a short command prints none.
It goes to standard error: an output that is piped has only messages. Work without a known end has no progress, and
neither has what a person types, nor anything with ``--quiet``.
"""

from __future__ import annotations

import os
import sys
from time import monotonic
from types import TracebackType
from typing import Final

from .notes import is_quiet, note, set_line, write

__all__ = ["Progress"]

#: Seconds between two lines that are not on a terminal, and between two changes of the line on a terminal.
_PLAIN_INTERVAL: Final = 10.0
_MOVING_INTERVAL: Final = 0.1


class Progress:
    """Shows how far some work is. A context manager: at its end the line that moves is taken away.

    Args:
        what: the work; "" shows nothing.
        total: how many messages there are, or of what else :meth:`show` has as its unit; None if that is not known.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._shown = bool(what) and not is_quiet()
        self._terminal = self._shown and sys.stderr is not None and sys.stderr.isatty()
        self._interval = _MOVING_INTERVAL if self._terminal else _PLAIN_INTERVAL
        self._start = monotonic()
        self._next = self._start + self._interval
        self._text = ""

    def __enter__(self) -> Progress:
        if self._terminal:
            set_line(self._move)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._terminal:
            self._move(False)
            set_line(None)

    def show(self, done: int, total: int | None = None, unit: str = "messages") -> None:
        """Report how much is done. Cheap: most calls print nothing.

        Args:
            done: how much.
            total: of how much; None for the total of the whole work.
            unit: of what.
        """
        now = monotonic()
        if now < self._next:
            return
        total = total or self._total
        if not total or not self._shown:
            return
        self._next = now + self._interval
        self._text = self._describe(done, total, unit, now - self._start)
        if self._terminal:
            self._move(True)
        else:
            note(self._text)

    def _describe(self, done: int, total: int, unit: str, seconds: float) -> str:
        rate = done / seconds
        percent = min(done * 100 // total, 100)
        left = f", {max(0, total - done) / rate:,.0f} s left" if rate else ""
        return f"{self._what}: {percent} %, {done:,} of {total:,} {unit}, {rate:,.0f} a second{left}"

    def _move(self, shown: bool) -> None:
        """Print the line in the place of the line before, or take it away."""
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:
            # The terminal was closed.
            return
        write("\r\x1b[K" + (self._text[: width - 1] if shown else ""))
