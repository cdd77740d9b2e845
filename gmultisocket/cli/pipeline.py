"""``gmultisocket push`` and ``pull``: distribute work, and take it."""

from __future__ import annotations

from argparse import Namespace

from ..protocol import Pull, Push
from .arguments import Parser, add_addresses, add_count_received, add_format, add_pace, add_source
from .connecting import connect, make, wait_peers
from .output import Printer
from .receiving import receive, until_signal
from .sending import close, is_endless, send_items
from .sources import Source

__all__ = ["pull", "push"]

_EXAMPLES = (
    "gmultisocket push -l tcp://127.0.0.1:5555 --lines --peers 2 < jobs.txt",
    "gmultisocket pull -d tcp://127.0.0.1:5555 -n 2",
    "gmultisocket pull -d tcp://127.0.0.1:5555 -n 2 -f json",
)


def push(parser: Parser) -> None:
    """Declare ``push``."""
    parser.describe("Send each message to one Pull, in turn, and end when all have left.", _EXAMPLES, "[DATA]")
    add_addresses(parser)
    add_source(parser)
    add_pace(parser, peers="Pulls")
    parser.set_defaults(run=_push)


def pull(parser: Parser) -> None:
    """Declare ``pull``."""
    parser.describe("Print the messages of Pushes, until a signal, -n or -t ends it.", _EXAMPLES)
    add_addresses(parser)
    add_count_received(parser)
    add_format(parser)
    parser.set_defaults(run=_pull)


def _push(arguments: Namespace) -> int:
    source = Source(arguments)
    with make(Push, arguments) as sock:
        connect(sock, arguments)
        with until_signal(is_endless(arguments, source)):
            wait_peers(sock, arguments)
            send_items(
                arguments, source, lambda item: sock.send(item.content, arguments.timeout), "push", arguments.count
            )
        return close(sock)


def _pull(arguments: Namespace) -> int:
    with make(Pull, arguments) as sock:
        connect(sock, arguments)
        with Printer(arguments, arguments.count) as printer, until_signal(not arguments.count):
            hint = "is it a Push, and has it sent anything?"
            return receive(sock, arguments, printer, sock.recv, printer.print, hint)
    return 0
