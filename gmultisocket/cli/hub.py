"""``gmultisocket hub``: pass publications on between the processes that have a Backplane."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import gevent
from gevent import Greenlet, GreenletExit
from gevent.socket import wait_read

from ..backplane.hubserver import HubServer
from ..core.connecting.listener import Listener
from .common import Subparsers, add_options, report, seconds

__all__ = ["add"]

_EXAMPLES = """examples:
  gmultisocket hub ipc:///run/app/hub
      join the processes of this host whose Backplane has the URL ipc:///run/app/hub
  gmultisocket hub 'tcp://10.0.0.5:5600'
      join those of several hosts; everybody who reaches the port can publish
"""


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "hub",
        help="join the processes that have a Backplane",
        description="Pass each publication on to the processes that want it, until a signal.\n"
        "At an ipc address there is at most one hub: another one ends at once with status 1. It also ends if its\n"
        "socket file is removed or replaced. At the end the numbers of publications are printed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="ADDRESS", help="where it listens")
    parser.add_argument(
        "--idle", metavar="SECONDS", type=seconds, help="end after so many seconds without a client; default: never"
    )
    parser.add_argument(
        "--until-eof", action="store_true", help="end when standard input ends: with the process that has started it"
    )
    add_options(parser)
    parser.set_defaults(run=run)


class _Reporting(HubServer):
    """A hub that prints where it listens."""

    def _listening(self, listener: Listener) -> None:
        report(f"the hub listens at {listener.address}")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal, or until there is no reason any more."""
    if arguments.verbose:
        logging.basicConfig(level=logging.DEBUG, format="gmultisocket: %(message)s")
    until: Greenlet[..., Any] | None = gevent.spawn(_read_to_end) if arguments.until_eof else None
    with _Reporting(dict(arguments.options)) as hub:
        try:
            reason = hub.serve(arguments.address, idle=arguments.idle, until=until)
        except GreenletExit:
            reason = "a signal"
        report(f"the hub ends: {reason}; {hub.taken} publications came, {hub.passed_on} copies of them left")
        for name, number in sorted(hub.counters.drops.items()):
            report(f"{number} messages dropped: {name}")
    return 0


def _read_to_end() -> None:
    """Block until standard input has ended (a greenlet)."""
    descriptor = sys.stdin.fileno()
    while True:
        wait_read(descriptor)
        if not os.read(descriptor, 1 << 16):
            return
