"""``gmultisocket recv``: print the messages that arrive."""

from __future__ import annotations

import argparse

from .. import Socket
from ..errors import BrokenPath, Timeout
from .common import Subparsers, add_connections, report, seconds
from .printing import Printer, add_printing, run_until_signal

__all__ = ["add"]

_EXAMPLES = """examples:
  gmultisocket recv --listen 'tcp://*:5555'
  gmultisocket recv --listen tcp://127.0.0.1:0 --count 1 --format json
  gmultisocket recv --listen ipc:///run/app.sock --reply pong
"""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "recv",
        help="print the messages that arrive",
        description="Print the messages that arrive, until a signal or --count ends it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connections(parser)
    add_printing(parser)
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        help="end when no message has arrived for this time; an error if fewer than --count arrived, or none at all",
    )
    parser.add_argument("--reply", metavar="DATA", help="answer each message with this, back along its path")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Receive. Returns 1 if too few messages arrived in time."""
    return run_until_signal(arguments, lambda sock: _receive(sock, arguments))


def _receive(sock: Socket, arguments: argparse.Namespace) -> int:
    printer = Printer(arguments)
    while not printer.done:
        try:
            message = sock.recv_msg(arguments.timeout)
        except Timeout:
            break
        if printer.print(message) and arguments.reply is not None:
            try:
                sock.send_to(message.source, arguments.reply.encode(), arguments.timeout)
            except BrokenPath:
                report("a peer has gone before it could be answered")
    needed = arguments.count or 1
    if printer.printed < needed:
        report(f"{printer.printed} of {needed} messages arrived, then none for {arguments.timeout} s")
        return 1
    return 0
