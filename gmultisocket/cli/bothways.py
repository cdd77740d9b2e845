"""``gmultisocket bus``, ``pair`` and ``cat``: send and print at the same time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import Socket
from ..errors import BrokenPath
from .arguments import Parser
from .connecting import connect, make
from .notes import report
from .plain import MessagePrinter
from .sources import Source
from .talking import Talk, add_talking

if TYPE_CHECKING:
    from ..protocol import Bus, Pair

__all__ = ["bus", "cat", "pair"]

_BUS_EXAMPLES = (
    "gmultisocket bus -l ipc:///run/bus.sock --peers 2 -n 2 first",
    "gmultisocket bus -d ipc:///run/bus.sock -n 1 second",
    "gmultisocket bus -d ipc:///run/bus.sock -n 1 third",
)
_PAIR_EXAMPLES = (
    "gmultisocket pair -l tcp://127.0.0.1:5555 -n 1 'who is there?'",
    "gmultisocket pair -d tcp://127.0.0.1:5555 -n 1 'only me'",
)
_CAT_EXAMPLES = (
    "gmultisocket recv -l tcp://127.0.0.1:5555 -n 1 --reply answer",
    "echo question | gmultisocket cat -d tcp://127.0.0.1:5555 -n 1",
)


def bus(parser: Parser) -> None:
    """Declare ``bus``."""
    parser.describe("Send to all neighbours, and print what they send.", _BUS_EXAMPLES, "[DATA]")
    add_talking(parser)
    parser.set_defaults(run=_bus)


def pair(parser: Parser) -> None:
    """Declare ``pair``."""
    parser.describe("Talk to one peer: send, and print what it sends. No second one comes.", _PAIR_EXAMPLES, "[DATA]")
    add_talking(parser)
    parser.set_defaults(run=_pair)


def cat(parser: Parser) -> None:
    """Declare ``cat``."""
    parser.describe("Send lines of the input, and print what arrives, without a protocol.", _CAT_EXAMPLES, "[DATA]")
    add_talking(parser)
    parser.add(
        "--to", choices=("one", "all", "last"), default="one", metavar="WHOM",
        help="one in turn, all, or last: who wrote last (one)",
    )  # fmt: skip
    parser.set_defaults(run=_cat)


def _bus(arguments: Namespace) -> int:
    from ..protocol import Bus

    # The lines of a file come faster than a neighbour reads them.
    return _talk(Bus, arguments, {"socket.send_overflow": "block"})


def _pair(arguments: Namespace) -> int:
    from ..protocol import Pair

    return _talk(Pair, arguments)


def _talk(
    kind: Callable[[dict[str, Any]], Bus | Pair], arguments: Namespace, defaults: Mapping[str, Any] | None = None
) -> int:
    """Send and receive by a protocol, and return the exit status. The arguments are those of :func:`make`."""
    source = Source(arguments)
    with make(kind, arguments, defaults) as sock:
        connect(sock, arguments)
        talk = Talk(sock, arguments, source)
        return talk.run(
            take=lambda: talk.printer.print(sock.recv()), send=lambda content: sock.send(content, arguments.timeout)
        )


def _cat(arguments: Namespace) -> int:
    source = Source(arguments)
    if arguments.to == "last":
        # A peer writes first: nothing is to be sent before.
        arguments.peers = 0
    with make(Socket, arguments) as sock:
        connect(sock, arguments)
        return _Cat(sock, arguments, source).run()


class _Cat:
    """Sends and receives without a protocol: remembers which peer wrote last."""

    def __init__(self, sock: Socket, arguments: Namespace, source: Source) -> None:
        self._sock = sock
        self._arguments = arguments
        self._talk = Talk(sock, arguments, source)
        self._messages = MessagePrinter(sock, self._talk.printer)
        self._last_source = b""

    def run(self) -> int:
        """Send and receive, and return the exit status."""
        timeout = self._arguments.timeout
        if self._arguments.to == "last":
            return self._talk.run(self._take, self._send_to_last)
        send = self._sock.send_all if self._arguments.to == "all" else self._sock.send
        return self._talk.run(self._take, lambda content: send(content, timeout))

    def _take(self) -> None:
        message = self._sock.recv_msg()
        if self._messages.print(message):
            self._last_source = message.source

    def _send_to_last(self, content: bytes) -> None:
        if not self._last_source:
            report("nobody has written yet: a line was dropped")
            return
        try:
            self._sock.send_to(self._last_source, content, self._arguments.timeout)
        except BrokenPath:
            report("the peer that wrote last has gone: a line was dropped")
