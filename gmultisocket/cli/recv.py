"""``gmultisocket recv``: print the messages that come."""

from __future__ import annotations

import argparse

from gevent import GreenletExit

from ..core.socket import Socket
from ..errors import BrokenPath, Timeout
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
    seconds,
    write,
)

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
        help="print the messages that come",
        description="Print the messages that come, until a signal ends it or there were enough.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connections(parser)
    add_format(parser)
    parser.add_argument("-n", "--count", metavar="N", type=count, help="end after N messages")
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        help="end when nothing came for so long; an error if that was less than --count, or nothing at all",
    )
    parser.add_argument("--reply", metavar="DATA", help="answer each message with this, along the path that it came")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Receive. Returns 1 if that were too few when the time was up."""
    with make_socket(arguments) as sock:
        connect(sock, arguments)
        try:
            received = _receive(sock, arguments)
        except GreenletExit:
            if arguments.count:
                raise
            return 0
    needed = arguments.count or 1
    if received < needed:
        note(f"{received} of {needed} messages came within {arguments.timeout} s of the one before")
        return 1
    return 0


def _receive(sock: Socket, arguments: argparse.Namespace) -> int:
    """Print messages until there were enough or the time is up, and return how many there were."""
    to_bytes = FORMATS[arguments.format]
    reply = None if arguments.reply is None else arguments.reply.encode()
    received = 0
    while received != arguments.count:
        try:
            message = sock.recv_msg(arguments.timeout)
        except Timeout:
            break
        if is_greeting(message):
            continue
        write(to_bytes(message))
        received += 1
        if reply is not None:
            try:
                sock.send_to(message.source, reply, arguments.timeout)
            except BrokenPath:
                note("a peer has gone before it could be answered")
    return received
