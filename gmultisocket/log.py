"""Log records that peers can cause, limited in number so that no peer can fill the disk."""

from __future__ import annotations

import logging
from time import monotonic

__all__ = ["ThrottledLog"]


class ThrottledLog:
    """Writes records to a logger: in each interval the first record of a kind at its own level, the others at DEBUG.

    Args:
        logger: the logger.
        interval: seconds.
    """

    __slots__ = ("_interval", "_logger", "_written")

    def __init__(self, logger: logging.Logger, interval: float) -> None:
        self._logger = logger
        self._interval = interval
        #: When the last record of each kind was written at its own level.
        self._written: dict[str, float] = {}

    def log(self, kind: str, level: int, text: str, *args: object, error: BaseException | None = None) -> None:
        """Log ``text % args``.

        Args:
            kind: each kind has its own intervals. Must be one of a few constants, never from a peer: kinds are kept.
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
