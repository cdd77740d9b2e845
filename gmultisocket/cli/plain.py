"""``gmultisocket send`` and ``recv``: messages without a protocol."""

from __future__ import annotations

import os
from argparse import Namespace

from .. import Message, Socket
from ..errors import BrokenPath, printable
from ..wire import CONTROL, RAW, path_ids
from .arguments import Parser, add_addresses, add_count_received, add_format, add_pace, add_source
from .connecting import connect, make, wait_peers
from .notes import report
from .output import Printer
from .receiving import receive, until_signal
from .sending import close, is_endless, send_items
from .sources import Source

__all__ = ["MessagePrinter", "recv", "send"]

_EXAMPLES = (
    "gmultisocket recv -l tcp://127.0.0.1:5555 -n 5 --reply thanks",
    "gmultisocket send -d tcp://127.0.0.1:5555 hello",
    "gmultisocket send -d tcp://127.0.0.1:5555 --lines < jobs.txt",
)
_SEND_TYPES = ("one", "all", "destination")


def send(parser: Parser) -> None:
    """Declare ``send``."""
    parser.describe("Send messages, each to one peer in turn, and end when all have left.", _EXAMPLES, "[DATA]")
    add_addresses(parser)
    add_source(parser)
    add_pace(parser)
    parser.add("--all", action="store_true", help="send each message to all peers")
    parser.set_defaults(run=_send)


def recv(parser: Parser) -> None:
    """Declare ``recv``."""
    parser.describe("Print the messages that arrive, until a signal, -n or -t ends it.", _EXAMPLES)
    add_addresses(parser)
    add_count_received(parser)
    add_format(parser)
    parser.add("--reply", metavar="DATA", help="answer each message with this, along its path")
    parser.set_defaults(run=_recv)


def _send(arguments: Namespace) -> int:
    source = Source(arguments)
    with make(Socket, arguments) as sock:
        connect(sock, arguments)
        with until_signal(is_endless(arguments, source)):
            wait_peers(sock, arguments)
            send = sock.send_all if arguments.all else sock.send
            send_items(arguments, source, lambda item: send(item.content, arguments.timeout), "send", arguments.count)
        return close(sock)


def _recv(arguments: Namespace) -> int:
    with make(Socket, arguments) as sock:
        connect(sock, arguments)
        with Printer(arguments, arguments.count) as printer, until_signal(not arguments.count):
            messages = MessagePrinter(sock, printer)

            def handle(message: Message) -> None:
                if messages.print(message) and arguments.reply is not None:
                    try:
                        sock.send_to(message.source, os.fsencode(arguments.reply), arguments.timeout)
                    except BrokenPath:
                        report("a peer has gone before it could be answered")

            hint = "does it wait to be asked? See 'gmultisocket --help' for what speaks its protocol"
            return receive(sock, arguments, printer, sock.recv_msg, handle, hint)
    return 0


class MessagePrinter:
    """Prints the messages of a plain Socket.

    Args:
        sock: the Socket.
        printer: prints the contents.
    """

    def __init__(self, sock: Socket, printer: Printer) -> None:
        self._sock = sock
        self._printer = printer
        self._told: set[str] = set()

    def print(self, message: Message) -> bool:
        """Print a message. Return False if it is not one of a program: it was not printed.

        That is an empty message that marks the start or the end of a raw pipe, and what only a protocol understands.
        The first such message of a kind is reported: nobody would know why nothing is printed.
        """
        if message.flags & RAW and not message.content:
            return False
        if message.flags & CONTROL:
            self._report_protocol(message)
            return False
        self._printer.print(
            message.content,
            hops=message.hops,
            send_type=_SEND_TYPES[message.send_type],
            source=list(path_ids(message.source)),
            ttl=message.ttl,
        )
        return True

    def _report_protocol(self, message: Message) -> None:
        # What it is that a Pub sends first is a fact of its protocol. Most programs that receive meet none.
        from ..protocol.pubsubwire import SUBSCRIBE, WHO

        kind, send_type = message.content[:1], message.send_type
        if message.content == WHO:
            what = "is a Pub, which sends to subscribers only: use 'gmultisocket sub'"
        elif kind == SUBSCRIBE and _SEND_TYPES[send_type] == "all":
            what = "is a Sub, which sends only subscriptions: use 'gmultisocket pub'"
        else:
            what = "speaks a protocol: its messages that are not for programs are not printed"
        if what not in self._told:
            self._told.add(what)
            pipe = self._sock.pipes.get(message.pipe_id)
            report(f"{printable(pipe.peer_address) if pipe is not None else 'the peer'} {what}")
