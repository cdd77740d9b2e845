"""``gmultisocket cat``: lines of standard input go out as messages, messages come out as lines."""

from __future__ import annotations

import argparse

import gevent
from gevent import GreenletExit

from ..core.socket import Socket
from ..errors import BrokenPath, MultiSocketError
from .common import (
    FORMATS,
    Subparsers,
    add_connections,
    add_format,
    connect,
    count,
    is_greeting,
    make_socket,
    note,
    read_lines,
    seconds,
    write,
)

__all__ = ["add"]

_EXAMPLES = """examples:
  gmultisocket cat --listen tcp://127.0.0.1:5555 --to all         a chat: this side,
  gmultisocket cat --dial tcp://127.0.0.1:5555                    and that
  echo question | gmultisocket cat --dial ipc:///run/app.sock --count 1
  gmultisocket cat --listen tcp://127.0.0.1:5555 -o connector.pipe.raw=true --to last     for nc and telnet
"""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "cat",
        help="send lines of standard input and print the messages that come",
        description="Send each line of standard input as a message, and print the messages that come.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connections(parser)
    add_format(parser)
    parser.add_argument(
        "--to",
        choices=("one", "all", "last"),
        default="one",
        help="send to one peer in turn (the default), to all, or to the one whose message came last",
    )
    parser.add_argument("-n", "--count", metavar="N", type=count, help="end after N messages have come")
    parser.add_argument(
        "-w",
        "--wait",
        metavar="SECONDS",
        type=seconds,
        default=1.0,
        help="at the end of standard input, wait until nothing has come for so long (default 1)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send and receive until the input has ended and nothing comes any more, or enough has come."""
    with make_socket(arguments) as sock:
        connect(sock, arguments)
        cat = Cat(sock, arguments)
        sending = gevent.spawn(cat.send_lines)
        try:
            cat.print_messages()
        except GreenletExit:
            if arguments.count:
                raise
        finally:
            sending.kill()
    return 0


class Cat:
    """The two directions: one greenlet sends, another prints; the end of the first one closes the socket."""

    def __init__(self, sock: Socket, arguments: argparse.Namespace) -> None:
        self._sock = sock
        self._arguments = arguments
        self._to_bytes = FORMATS[arguments.format]
        self._received = 0
        self._last_source = b""
        self._error: MultiSocketError | None = None

    def print_messages(self) -> None:
        """Print what comes, until there was enough or the socket closes.

        Raises:
            MultiSocketError: a line could not be sent.
        """
        for message in self._sock:
            self._last_source = message.source
            if is_greeting(message):
                continue
            write(self._to_bytes(message))
            self._received += 1
            if self._received == self._arguments.count:
                return
        if self._error is not None:
            raise self._error

    def send_lines(self) -> None:
        """Send what standard input has, wait until nothing comes any more, and close the socket."""
        try:
            for line in read_lines():
                self._send(line)
            received = -1
            while received != self._received:
                received = self._received
                gevent.sleep(self._arguments.wait)
        except MultiSocketError as error:
            self._error = error
        finally:
            self._sock.close()

    def _send(self, line: bytes) -> None:
        if self._arguments.to == "all":
            self._sock.send_all(line)
        elif self._arguments.to == "one":
            self._sock.send(line)
        elif not self._last_source:
            note("nobody has written yet: a line was dropped")
        else:
            try:
                self._sock.send_to(self._last_source, line)
            except BrokenPath:
                note("the peer that wrote last has gone: a line was dropped")
