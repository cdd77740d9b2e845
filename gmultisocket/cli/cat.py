"""``gmultisocket cat``: send each line of standard input as a message, and print the messages that arrive."""

from __future__ import annotations

import argparse

import gevent

from .. import Socket
from ..errors import BrokenPath, MultiSocketError
from .common import Subparsers, add_connections, read_lines, report, seconds
from .printing import Printer, add_printing, run_until_signal

__all__ = ["add"]

_EXAMPLES = """examples:
  gmultisocket cat --listen tcp://127.0.0.1:5555 --to all         a chat: one side,
  gmultisocket cat --dial tcp://127.0.0.1:5555                    and the other
  echo question | gmultisocket cat --dial ipc:///run/app.sock --count 1
  gmultisocket cat --listen tcp://127.0.0.1:5555 -o connector.pipe.raw=true --to last     for nc and telnet
"""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "cat",
        help="send lines of standard input and print the messages that arrive",
        description="Send each line of standard input as a message, and print the messages that arrive.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connections(parser)
    add_printing(parser)
    parser.add_argument(
        "--to",
        choices=("one", "all", "last"),
        default="one",
        help="send to one peer in turn (the default), to all peers, or to the peer whose message arrived last",
    )
    parser.add_argument(
        "-w",
        "--wait",
        metavar="SECONDS",
        type=seconds,
        default=1.0,
        help="after standard input has ended, end when no message has arrived for this time (default 1)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send and receive until the input has ended and no more messages arrive, or until ``--count`` have arrived."""
    return run_until_signal(arguments, lambda sock: Cat(sock, arguments).run())


class Cat:
    """The two directions: one greenlet sends and closes the socket at its end, the other one prints."""

    def __init__(self, sock: Socket, arguments: argparse.Namespace) -> None:
        self._sock = sock
        self._to = arguments.to
        self._wait = arguments.wait
        self._printer = Printer(arguments)
        self._last_source = b""
        self._error: MultiSocketError | None = None

    def run(self) -> int:
        """Send and print until both have ended, and return the exit status.

        Raises:
            MultiSocketError: a line could not be sent.
        """
        sending = gevent.spawn(self._send_lines)
        try:
            self._print_messages()
        finally:
            sending.kill()
        return 0

    def _print_messages(self) -> None:
        for message in self._sock:
            self._last_source = message.source
            self._printer.print(message)
            if self._printer.done:
                return
        if self._error is not None:
            raise self._error

    def _send_lines(self) -> None:
        """Send each line of standard input, wait until no more messages arrive, and close the socket."""
        try:
            for line in read_lines():
                self._send(line)
            printed = -1
            while printed != self._printer.printed:
                printed = self._printer.printed
                gevent.sleep(self._wait)
        except MultiSocketError as error:
            self._error = error
        finally:
            self._sock.close()

    def _send(self, line: bytes) -> None:
        if self._to == "all":
            self._sock.send_all(line)
        elif self._to == "one":
            self._sock.send(line)
        elif not self._last_source:
            report("nobody has written yet: a line was dropped")
        else:
            try:
                self._sock.send_to(self._last_source, line)
            except BrokenPath:
                report("the peer that wrote last has gone: a line was dropped")
