"""Log records that peers can cause, limited in number so that a peer cannot fill the disk."""

from __future__ import annotations

import logging
from time import monotonic

__all__ = ["ThrottledLog"]


class ThrottledLog:
    """Writes records to a logger: one of each kind in an interval at its own level, the others at DEBUG.

    Args:
        logger: the logger.
        interval: seconds.
    """

    __slots__ = ("_interval", "_logger", "_written")

    def __init__(self, logger: logging.Logger, interval: float) -> None:
        self._logger = logger
        self._interval = interval
        #: When the latest record of a kind was written at its own level.
        self._written: dict[str, float] = {}

    def log(self, kind: str, level: int, text: str, *args: object, error: BaseException | None = None) -> None:
        """Log ``text % args``.

        Args:
            kind: what the interval is counted for. A constant of this library, never a peer's word: kinds are kept.
            level: as for :meth:`logging.Logger.log`.
            text: the record's message.
            args: its arguments.
            error: an exception whose traceback the record has.
        """
        now = monotonic()
        written = self._written.get(kind)
        if written is not None and now - written < self._interval:
            level = logging.DEBUG
        else:
            self._written[kind] = now
        self._logger.log(level, text, *args, exc_info=error)
