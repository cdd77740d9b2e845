"""``gmultisocket switch``: join two addresses, so that the peers at one reach the peers at the other."""

from __future__ import annotations

import argparse

from gevent import GreenletExit

from .. import Address, Socket, Switch
from .common import Subparsers, add_options, count, make_socket, report

__all__ = ["add"]

_EXAMPLES = """examples:
  gmultisocket switch ipc:///run/app-in.sock ipc:///run/app-out.sock
      a hub between the workers of a server: what a worker sends to all at one address,
      all workers receive at the other
  gmultisocket switch 'tcp://*:5555' ipc:///run/app.sock#dial
      give other machines access to a service that listens on this machine only
"""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "switch",
        help="join two addresses",
        description="Forward every message that arrives at one address to the other, in both directions, until a "
        "signal.\nReplies find their way back. An address that ends with #dial is dialed, any other is listened at.\n"
        "A peer that does not read loses messages to all, and is disconnected when it is answered; the others go on.\n"
        "At the end the numbers of forwarded and dropped messages are printed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("back", metavar="BACK", help="one address")
    parser.add_argument("front", metavar="FRONT", help="the other address")
    parser.add_argument(
        "--max-ttl", metavar="N", type=_ttl, default=64, help="lower the ttl of messages to N, 1 to 255; default: 64"
    )
    add_options(parser)
    parser.set_defaults(run=run)


def _ttl(text: str) -> int:
    """Parse the argument of --max-ttl."""
    number = count(text)
    if number > 255:
        raise argparse.ArgumentTypeError("must be at most 255")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Forward until a signal, and report how many messages were forwarded and dropped."""
    with make_socket(arguments) as back, make_socket(arguments) as front:
        _connect(back, "back", arguments.back)
        _connect(front, "front", arguments.front)
        with Switch(back, front, max_ttl=arguments.max_ttl) as switch:
            try:
                switch.join()
            except GreenletExit:
                pass
            report(f"{switch.forwarded} messages forwarded")
            for reason, dropped in sorted(switch.drops.items()):
                report(f"{dropped} messages dropped: {reason}")
    return 0


def _connect(sock: Socket, side: str, address: str) -> None:
    """Listen or dial, and report the address, with the real port instead of 0."""
    parsed = Address.parse(address)
    if parsed.connect_type == "dial":
        report(f"{side}: dialed {sock.dial(parsed).address}")
    else:
        report(f"{side}: listening at {sock.listen(parsed).address}")
