"""Printing messages to standard output."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from argparse import Namespace
from typing import Any

import gevent
from gevent import Greenlet, getcurrent
from gevent.socket import wait_read, wait_write

from ..errors import MultiSocketError
from .formats import FORMATS

__all__ = ["Printer"]

#: A pipe that can be written to takes so many bytes without blocking.
_PIECE = select.PIPE_BUF


class Printer:
    """Prints messages in the format ``--format``, and counts them up to ``--count``.

    While nobody reads the output it blocks this greenlet only, so heartbeats and signals work. Its peers then wait.

    A context manager. When the reader of a pipe has gone, BrokenPipeError is raised in the greenlet that has entered
    it, also if that waits for a message: ``gmultisocket sub ... | head -1`` ends with the first one.

    Args:
        arguments: of a command with ``add_format``.
        count: how many messages are enough; None for no limit.

    Attributes:
        printed: the number of printed messages.
    """

    def __init__(self, arguments: Namespace, count: int | None) -> None:
        self._format = FORMATS[arguments.format]
        self._count = count
        self._descriptor: int | None = None if sys.stdout is None else sys.stdout.fileno()
        self._poll = None if self._descriptor is None else _poll(self._descriptor)
        self._watching: Greenlet[..., object] | None = None
        self.printed = 0

    def __enter__(self) -> Printer:
        descriptor = self._descriptor
        if descriptor is not None and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            self._watching = gevent.spawn(_watch_reader, descriptor, getcurrent())
        return self

    def __exit__(self, *error: object) -> None:
        if self._watching is not None:
            self._watching.kill()

    @property
    def done(self) -> bool:
        """Whether as many messages were printed as are enough."""
        return self.printed == self._count

    def print(self, content: bytes, **facts: Any) -> None:
        """Print a message.

        Args:
            content: the content.
            facts: what else ``json`` prints.

        Raises:
            MultiSocketError: standard output is closed.
            OSError: it cannot be written to.
        """
        if self._descriptor is None:
            raise MultiSocketError("standard output is closed")
        self._write(self._descriptor, self._format(content, facts))
        self.printed += 1

    def _write(self, descriptor: int, data: bytes) -> None:
        if self._poll is None:
            while data:
                data = data[os.write(descriptor, data) :]
            return
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while piece:
                if not self._poll.poll(0):
                    wait_write(descriptor)
                piece = piece[os.write(descriptor, piece) :]


def _watch_reader(descriptor: int, printing: Any) -> None:
    """Wait until a pipe has no reader, and raise BrokenPipeError in a greenlet."""
    wait_read(descriptor)
    poll = select.poll()
    poll.register(descriptor, 0)
    # From this end nothing can be read, unless it was opened for both: then it always has a reader.
    if poll.poll(0):
        printing.kill(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), block=False)


def _poll(descriptor: int) -> select.poll | None:
    """Return what tells whether writing would block; None for a file, where it does not.

    The descriptor stays blocking: other processes share it.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
