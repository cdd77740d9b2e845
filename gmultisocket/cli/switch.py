"""``gmultisocket switch``: join two addresses, so that those who connect to one reach those at the other."""

from __future__ import annotations

import argparse

from gevent import GreenletExit

from ..address import Address
from ..core.socket import Socket
from ..switch import Switch
from .common import Subparsers, add_options, make_socket, note

__all__ = ["add"]

_EXAMPLES = """examples:
  gmultisocket switch ipc:///run/app-in.sock ipc:///run/app-out.sock
      a hub between the workers of a server: what a worker sends to all at the one address,
      everybody gets who has dialed the other
  gmultisocket switch 'tcp://*:5555' ipc:///run/app.sock#dial
      lets other machines reach a service that listens on this one only
"""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "switch",
        help="join two addresses",
        description="Forward every message that comes in at one address to the other, and back, until a signal ends "
        "it. Replies find their way. It listens at an address, unless that ends with #dial.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("back", metavar="BACK", help="one address")
    parser.add_argument("front", metavar="FRONT", help="the other address")
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Forward until killed, and tell what became of it."""
    with make_socket(arguments) as back, make_socket(arguments) as front:
        _connect(back, "back", arguments.back)
        _connect(front, "front", arguments.front)
        with Switch(back, front) as switch:
            try:
                switch.join()
            except GreenletExit:
                pass
            note(f"{switch.forwarded} messages forwarded")
            for reason, dropped in sorted(switch.drops.items()):
                note(f"{dropped} messages dropped: {reason}")
    return 0


def _connect(sock: Socket, side: str, address: str) -> None:
    """Listen or dial, and say at which address: port 0 has become a real one."""
    parsed = Address.parse(address)
    if parsed.connect_type == "dial":
        note(f"{side}: dialed {sock.dial(parsed).address}")
    else:
        note(f"{side}: listening at {sock.listen(parsed).address}")
