"""``gmultisocket send``: send messages, and end."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import gevent

from .common import (
    Subparsers,
    add_connections,
    connect,
    count,
    make_socket,
    read_all_input,
    read_lines,
    report,
    seconds,
)

__all__ = ["add"]

_EXAMPLES = """examples:
  gmultisocket send --dial tcp://127.0.0.1:5555 hello
  gmultisocket send --dial ipc:///run/app.sock --lines < jobs.txt
  gmultisocket send --listen 'tcp://*:5555' --peers 3 --all --interval 1 --count 60 tick
"""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "send",
        help="send messages",
        description="Send one or more messages, wait until they were sent, and end.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="?", help="the content; without it, all of standard input is sent")
    add_connections(parser)
    parser.add_argument("--lines", action="store_true", help="send each line of standard input as a message")
    parser.add_argument("--all", action="store_true", help="send each message to all peers, not to one")
    parser.add_argument("--peers", metavar="N", type=count, default=1, help="first wait until N peers are connected")
    parser.add_argument("-n", "--count", metavar="N", type=count, default=1, help="send everything N times")
    parser.add_argument("--interval", metavar="SECONDS", type=seconds, default=0.0, help="pause between messages")
    parser.add_argument("-t", "--timeout", metavar="SECONDS", type=seconds, help="the longest wait for peers")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Send. Returns 1 if messages are known to be lost."""
    if arguments.lines and arguments.data is not None:
        arguments.parser.error("--lines reads standard input: give no data")
    with make_socket(arguments) as sock:
        connect(sock, arguments)
        sock.wait_pipes(arguments.peers, arguments.timeout)
        send = sock.send_all if arguments.all else sock.send
        first = True
        for content in _contents(arguments):
            if not first:
                gevent.sleep(arguments.interval)
            first = False
            send(content, arguments.timeout)
        lost = sock.close()
    if lost:
        report(f"{lost} messages were not sent")
    return 1 if lost else 0


def _contents(arguments: argparse.Namespace) -> Iterator[bytes]:
    if arguments.lines:
        if arguments.count == 1:
            yield from read_lines()
            return
        contents = list(read_lines())
    else:
        contents = [read_all_input() if arguments.data is None else arguments.data.encode()]
    for _ in range(arguments.count):
        yield from contents
