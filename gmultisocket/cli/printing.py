"""What ``recv`` and ``cat`` share: both print the messages that arrive, until ``--count`` or a signal ends them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from gevent import GreenletExit

from .. import Message, Socket
from ..errors import MultiSocketError
from ..wire import RAW, path_ids
from .common import connect, count, make_socket

__all__ = ["Printer", "add_printing", "run_until_signal"]


def _line(message: Message) -> bytes:
    return message.content + b"\n"


def _raw(message: Message) -> bytes:
    return message.content


def _quoted(message: Message) -> bytes:
    return ascii(message.content)[1:].encode() + b"\n"


def _hex(message: Message) -> bytes:
    return message.content.hex().encode() + b"\n"


def _json(message: Message) -> bytes:
    fields = {
        "content": message.content.decode(errors="backslashreplace"),
        "hops": message.hops,
        "send_type": ("one", "all", "destination")[message.send_type],
        "source": list(path_ids(message.source)),
        "ttl": message.ttl,
    }
    return json.dumps(fields).encode() + b"\n"


#: Name -> function that returns the bytes to print for a message.
_FORMATS: dict[str, Callable[[Message], bytes]] = {
    "line": _line,
    "raw": _raw,
    "quoted": _quoted,
    "hex": _hex,
    "json": _json,
}


def add_printing(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a command that prints messages."""
    parser.add_argument(
        "-f",
        "--format",
        choices=_FORMATS,
        default="line",
        help="print contents unchanged, with a newline after each (line, the default) or without (raw), "
        "quoted as in Python, in hex digits, or whole messages as JSON, one on each line",
    )
    parser.add_argument("-n", "--count", metavar="N", type=count, help="end after N messages have arrived")


class Printer:
    """Prints messages in the format ``--format``, and counts them up to ``--count``.

    Attributes:
        printed: the number of printed messages.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._to_bytes = _FORMATS[arguments.format]
        self._count: int | None = arguments.count
        self.printed = 0

    @property
    def done(self) -> bool:
        """Whether as many messages were printed as ``--count`` says."""
        return self.printed == self._count

    def print(self, message: Message) -> bool:
        """Print a message, and return True. An empty message that marks the start or the end of a raw pipe is skipped.

        May block the whole process while nobody reads standard output: then the peers have to wait, too.
        """
        if message.flags & RAW and not message.content:
            return False
        if sys.stdout is None:
            raise MultiSocketError("standard output is closed")
        sys.stdout.buffer.write(self._to_bytes(message))
        sys.stdout.buffer.flush()
        self.printed += 1
        return True


def run_until_signal(arguments: argparse.Namespace, receive: Callable[[Socket], int]) -> int:
    """Call ``receive`` with a connected Socket, and return the exit status that it returns.

    If there is no ``--count``, a signal is the normal end, with status 0.
    """
    with make_socket(arguments) as sock:
        connect(sock, arguments)
        try:
            return receive(sock)
        except GreenletExit:
            if arguments.count:
                raise
            return 0
