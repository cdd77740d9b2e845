"""Sending and printing at the same time: ``cat``, ``pair`` and ``bus``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from ..errors import Closed, MultiSocketError
from .arguments import Parser, add_addresses, add_format, add_pace, add_source, count, wait_time
from .connecting import wait_peers
from .notes import report
from .output import Printer
from .receiving import until_signal
from .sending import close, send_items
from .sources import Source

if TYPE_CHECKING:
    from .connecting import Endpoint

__all__ = ["Talk", "add_talking"]


def add_talking(parser: Parser) -> None:
    """Declare the arguments of a command that talks."""
    add_addresses(parser)
    add_source(parser, "lines")
    add_pace(parser, repeats=False)
    add_format(parser)
    parser.add("-n", "-C", "--count", metavar="N", type=count, help="end after N messages have come")
    parser.add(
        "-w", "--wait", metavar="SECONDS", type=wait_time,
        help="end when none came for this time after the input",
    )  # fmt: skip


class Talk:
    """The two directions: one greenlet sends, and closes the socket at its end; the caller's prints.

    Args:
        endpoint: the socket or protocol, connected.
        arguments: of a command with :func:`add_talking`.
        source: of what is sent.
    """

    def __init__(self, endpoint: Endpoint, arguments: Namespace, source: Source) -> None:
        self._endpoint = endpoint
        self._arguments = arguments
        self._source = source
        self._error: Exception | None = None
        # Who waits for a number of messages does not want to miss one that takes a second.
        self._wait: float = (inf if arguments.count else 1.0) if arguments.wait is None else arguments.wait
        self._sent = Event()
        self._status = 0
        self.printer = Printer(arguments, arguments.count)

    def run(self, take: Callable[[], object], send: Callable[[bytes], object]) -> int:
        """Send and print until both have ended, and return the exit status.

        Args:
            take: receives and prints a message; raises Closed when no more can come.
            send: sends a content.

        Raises:
            MultiSocketError: something could not be sent.
        """
        sending = gevent.spawn(self._send, send)
        try:
            with self.printer, until_signal(not self._arguments.count):
                while not self.printer.done:
                    take()
                if self._source.given:
                    # A message of the arguments is sent also if enough has come before.
                    self._sent.wait()
        except Closed:
            pass
        finally:
            sending.kill()
        if self._error is not None:
            raise self._error
        needed = self._arguments.count or 0
        if self.printer.printed < needed:
            report(f"{self.printer.printed} of {needed} messages arrived, then none for {self._wait} s")
            return 1
        return self._status

    def _send(self, send: Callable[[bytes], object]) -> None:
        """Send everything, wait until no more messages arrive, and close the socket (in its own greenlet)."""
        try:
            wait_peers(self._endpoint, self._arguments)
            send_items(self._arguments, self._source, lambda item: send(item.content), "")
            self._sent.set()
            printed = -1
            while printed != self.printer.printed:
                printed = self.printer.printed
                self._pause()
        except (MultiSocketError, OSError) as error:
            self._error = error
        finally:
            self._sent.set()
            self._status = close(self._endpoint)

    def _pause(self) -> None:
        if self._wait < inf:
            gevent.sleep(self._wait)
        else:
            Event().wait()
