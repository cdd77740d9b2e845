"""What the commands share: arguments, the Socket that they describe, and standard input."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from gevent.socket import wait_read

from .. import Dialer, Listener, Socket
from ..errors import MultiSocketError, OptionError
from ..options import lookup

__all__ = [
    "Subparsers",
    "add_connections",
    "add_options",
    "connect",
    "count",
    "make_socket",
    "read_all_input",
    "read_lines",
    "report",
    "seconds",
]


class Subparsers(Protocol):
    """The type that ``argparse.ArgumentParser.add_subparsers()`` returns; argparse has no public name for it."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


# Arguments


def count(text: str) -> int:
    """Parse an argument that is a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def seconds(text: str) -> float:
    """Parse an argument that is a time in seconds."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return number


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        option = lookup(name)
        return option.name, option.parse(value)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of every command with a Socket."""
    parser.add_argument(
        "-o",
        "--option",
        metavar="NAME=VALUE",
        type=_option,
        action="append",
        default=[],
        dest="options",
        help="set an option ('gmultisocket options' lists them), e.g. socket.send_queue_size=1000; may be repeated",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log connections to standard error")


def add_connections(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a command that may connect to any number of addresses."""
    parser.add_argument(
        "-l", "--listen", metavar="ADDRESS", action="append", default=[], help="listen at an address; may be repeated"
    )
    parser.add_argument(
        "-d", "--dial", metavar="ADDRESS", action="append", default=[], help="connect to an address; may be repeated"
    )
    add_options(parser)


def make_socket(arguments: argparse.Namespace) -> Socket:
    """Return a Socket with the given options."""
    if arguments.verbose:
        logging.basicConfig(level=logging.DEBUG, format="gmultisocket: %(message)s")
    return Socket(dict(arguments.options))


def connect(sock: Socket, arguments: argparse.Namespace) -> None:
    """Listen and dial at the given addresses, and report each. Blocks until every dial is connected.

    Raises:
        MultiSocketError: one of them failed, or no address was given.
    """
    if not arguments.listen and not arguments.dial:
        raise MultiSocketError("no address was given: use --listen or --dial, e.g. --dial tcp://127.0.0.1:5555")
    endpoints: list[Listener | Dialer] = [sock.listen(address) for address in arguments.listen]
    endpoints += [sock.dial(address) for address in arguments.dial]
    for endpoint in endpoints:
        report(f"{'dialed' if endpoint.dials else 'listening at'} {endpoint.address}")


def report(text: str) -> None:
    """Print a line on standard error; standard output is for messages."""
    # Standard error may be full or closed: the messages go on.
    with suppress(OSError):
        print(f"gmultisocket: {text}", file=sys.stderr, flush=True)


# Standard input


def _read_input(size: int = 1 << 16) -> bytes:
    """Return some bytes of standard input, ``b""`` at its end. Blocks this greenlet only.

    The descriptor stays in its mode (blocking or not): the shell and its other jobs share it.
    """
    if sys.stdin is None:
        raise MultiSocketError("standard input is closed")
    descriptor = sys.stdin.fileno()
    wait_read(descriptor)
    try:
        return os.read(descriptor, size)
    except OSError as error:
        # The terminal was closed.
        if error.errno == errno.EIO:
            return b""
        raise


def read_all_input() -> bytes:
    """Return all of standard input. Blocks this greenlet only."""
    return b"".join(iter(_read_input, b""))


def read_lines() -> Iterator[bytes]:
    """Yield each line of standard input, without its end, when it is complete. Blocks this greenlet only."""
    rest = b""
    for data in iter(_read_input, b""):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest:
        yield rest
