"""``gmultisocket rep`` and ``respond``: print what is asked, and answer it."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from ..wire import path_ids
from .arguments import Parser, add_addresses, add_count_received, add_data, add_format
from .connecting import connect, make
from .output import Printer
from .receiving import receive, until_signal
from .sending import close
from .sources import Source, data_arguments

if TYPE_CHECKING:
    from ..protocol import ReceivedRequest, Rep, Respondent

__all__ = ["add_answering", "answer"]


def add_answering(parser: Parser) -> None:
    """Declare the arguments of a command that answers."""
    add_addresses(parser)
    add_data(parser, "the answer; without it, what was asked is sent back")
    # An answer is one message, however long.
    parser.set_defaults(split="whole")
    add_count_received(parser)
    add_format(parser)


def answer(kind: type[Rep] | type[Respondent], arguments: Namespace, hint: str) -> int:
    """Answer until it is enough, and return the exit status.

    Args:
        kind: the protocol's class.
        arguments: of a command with :func:`add_answering`.
        hint: why nothing may come though a peer is connected.
    """
    content = next(iter(Source(arguments))).content if data_arguments(arguments) else None
    with make(lambda options: kind(None, options), arguments) as sock:
        connect(sock, arguments)
        with Printer(arguments, arguments.count) as printer, until_signal(not arguments.count):

            def handle(request: ReceivedRequest) -> None:
                printer.print(request.content, source=list(path_ids(request.source)))
                request.reply(request.content if content is None else content)

            status = receive(sock, arguments, printer, sock.recv, handle, hint)
            return close(sock) or status
    return 0
