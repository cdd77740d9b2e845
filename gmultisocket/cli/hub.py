"""``gmultisocket hub``: pass publications on between the processes that have a Backplane."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import Any

import gevent
from gevent import Greenlet, GreenletExit
from gevent.socket import wait_read

from ..backplane.hubserver import HubServer
from ..core.connecting.listener import Listener
from .arguments import Parser, add_socket_options, seconds
from .collecting import collect_rarely
from .connecting import socket_options
from .notes import note, report

__all__ = ["hub"]

_EXAMPLES = ("gmultisocket hub ipc:///run/hub.sock",)


def hub(parser: Parser) -> None:
    """Declare the command."""
    parser.describe(
        "Pass publications on between the processes whose Backplane has this address,\n"
        "until a signal. At an ipc address there is at most one hub: another one ends at\n"
        "once with status 1. At the end the numbers of publications are printed.",
        _EXAMPLES,
        "ADDRESS",
    )
    parser.add("address", metavar="ADDRESS")
    parser.add_row("ADDRESS", "where it listens; who reaches it can publish")
    parser.add("--idle", metavar="SECONDS", type=seconds, help="end after this time without a client")
    parser.add("--history", metavar="PATTERN", action="append", default=[], help="keep the history of these topics")
    parser.add("--until-eof", action="store_true", help="end with standard input: with who has started it")
    add_socket_options(parser)
    parser.set_defaults(run=_hub)


class _Reporting(HubServer):
    """A hub that prints where it listens."""

    def _listening(self, listener: Listener) -> None:
        note(f"the hub listens at {listener.address}")


def _hub(arguments: Namespace) -> int:
    """Serve until a signal, or until there is no reason any more."""
    collect_rarely()
    until: Greenlet[..., Any] | None = gevent.spawn(_read_to_end) if arguments.until_eof else None
    with _Reporting(socket_options(arguments), history=arguments.history) as server:
        try:
            reason = server.serve(arguments.address, idle=arguments.idle, until=until)
        except GreenletExit:
            reason = "a signal"
        note(f"the hub ends: {reason}; {server.taken} publications came, {server.passed_on} copies of them left")
        for name, number in sorted(server.counters.drops.items()):
            report(f"{number} messages dropped: {name}")
    return 0


def _read_to_end() -> None:
    """Block until standard input has ended (a greenlet)."""
    descriptor = sys.stdin.fileno()
    while True:
        wait_read(descriptor)
        if not os.read(descriptor, 1 << 16):
            return
