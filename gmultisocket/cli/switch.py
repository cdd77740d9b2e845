"""``gmultisocket switch``: join two addresses, so that the peers at one reach the peers at the other."""

from __future__ import annotations

import argparse

from gevent import GreenletExit

from .. import Address, Socket, Switch
from .arguments import Parser, add_socket_options, count
from .collecting import collect_rarely
from .connecting import make
from .notes import note

__all__ = ["switch"]

_EXAMPLES = (
    "gmultisocket switch tcp://127.0.0.1:5555 ipc:///run/out.sock",
    "gmultisocket recv -d ipc:///run/out.sock -n 1",
    "gmultisocket send -d tcp://127.0.0.1:5555 'through the switch'",
)


def switch(parser: Parser) -> None:
    """Declare the command."""
    parser.describe(
        "Forward what arrives at one address to the other, both ways, until a signal.\n"
        "Answers find their way back. Only a peer that does not read loses messages.\n"
        "At the end the numbers of forwarded and dropped messages are printed.",
        _EXAMPLES,
        "BACK FRONT",
    )
    parser.add("back", metavar="BACK")
    parser.add("front", metavar="FRONT")
    parser.add_row("BACK, FRONT", "addresses: listened at, dialed if they end with #dial")
    parser.add("--max-ttl", metavar="N", type=_ttl, default=64, help="lower the ttl of messages to N, 1 to 255 (64)")
    add_socket_options(parser)
    parser.set_defaults(run=_switch)


def _ttl(text: str) -> int:
    """Parse the argument of --max-ttl."""
    number = count(text)
    if number > 255:
        raise argparse.ArgumentTypeError("must be at most 255")
    return number


def _switch(arguments: argparse.Namespace) -> int:
    """Forward until a signal, and report how many messages were forwarded and dropped."""
    collect_rarely()
    with make(Socket, arguments) as back, make(Socket, arguments) as front:
        _connect(back, "back", arguments.back)
        _connect(front, "front", arguments.front)
        with Switch(back, front, max_ttl=arguments.max_ttl) as switch:
            try:
                switch.join()
            except GreenletExit:
                pass
            note(f"{switch.forwarded} messages forwarded")
            for reason, dropped in sorted(switch.drops.items()):
                note(f"{dropped} messages dropped: {reason}")
    return 0


def _connect(sock: Socket, side: str, address: str) -> None:
    """Listen or dial, and report the address, with the real port instead of 0."""
    parsed = Address.parse(address)
    if parsed.connect_type == "dial":
        note(f"{side}: dialed {sock.dial(parsed).address}")
    else:
        note(f"{side}: listening at {sock.listen(parsed).address}")
