"""What the subcommands share: arguments that say where to connect, standard input, and the ways to print a message."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gevent.socket import wait_read

from ..core.connecting.dialer import Dialer
from ..core.connecting.listener import Listener
from ..core.socket import Socket
from ..errors import MultiSocketError, OptionError
from ..options import lookup
from ..wire import RAW, Message, path_ids

__all__ = [
    "FORMATS",
    "Subparsers",
    "add_connections",
    "add_format",
    "add_options",
    "connect",
    "count",
    "is_greeting",
    "make_socket",
    "note",
    "read_lines",
    "seconds",
    "write",
]


class Subparsers(Protocol):
    """What ``argparse.ArgumentParser.add_subparsers()`` returns; argparse has no public name for it."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


# Arguments


def count(text: str) -> int:
    """Read an argument that is a positive number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def seconds(text: str) -> float:
    """Read an argument that is a time in seconds."""
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
    """Declare the arguments that every command with a socket has."""
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
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="tell on standard error what becomes of connections"
    )


def add_connections(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say where to connect."""
    parser.add_argument(
        "-l", "--listen", metavar="ADDRESS", action="append", default=[], help="listen there; may be repeated"
    )
    parser.add_argument(
        "-d", "--dial", metavar="ADDRESS", action="append", default=[], help="connect to there; may be repeated"
    )
    add_options(parser)


def make_socket(arguments: argparse.Namespace) -> Socket:
    """Return a Socket with the options that were given."""
    if arguments.verbose:
        logging.basicConfig(level=logging.DEBUG, format="gmultisocket: %(message)s")
    return Socket(dict(arguments.options))


def connect(sock: Socket, arguments: argparse.Namespace) -> None:
    """Listen and dial as the arguments say, and note where. Blocks until every dial is connected.

    Raises:
        MultiSocketError: one of them failed, or none was given.
    """
    if not arguments.listen and not arguments.dial:
        raise MultiSocketError("where to? Give an address to --listen at or to --dial, e.g. tcp://127.0.0.1:5555")
    endpoints: list[Listener | Dialer] = [sock.listen(address) for address in arguments.listen]
    endpoints += [sock.dial(address) for address in arguments.dial]
    for endpoint in endpoints:
        note(f"{'dialed' if endpoint.dials else 'listening at'} {endpoint.address}")


# Input and output


def note(text: str) -> None:
    """Tell the user something that is not a message."""
    print(f"gmultisocket: {text}", file=sys.stderr, flush=True)


def read_input(size: int = 1 << 16) -> bytes:
    """Return what standard input has, ``b""`` at its end. Blocks this greenlet only.

    The descriptor is left in the mode in which it is: it belongs to the shell as well, and to others of its jobs.
    """
    descriptor = sys.stdin.fileno()
    wait_read(descriptor)
    try:
        return os.read(descriptor, size)
    except OSError as error:
        # A terminal that was hung up, seen from its last reader.
        if error.errno == errno.EIO:
            return b""
        raise


def read_all_input() -> bytes:
    """Return all of standard input. Blocks this greenlet only."""
    return b"".join(iter(read_input, b""))


def read_lines() -> Iterator[bytes]:
    """Yield the lines of standard input, without their ends, as they come. Blocks this greenlet only."""
    rest = b""
    for data in iter(read_input, b""):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest:
        yield rest


def is_greeting(message: Message) -> bool:
    """Tell whether a message only announces a raw pipe, or ends one: nothing that the peer has said."""
    return bool(message.flags & RAW) and not message.content


def _line(message: Message) -> bytes:
    return message.content + b"\n"


def _raw(message: Message) -> bytes:
    return message.content


def _quoted(message: Message) -> bytes:
    return ascii(message.content)[1:].encode() + b"\n"


def _hex(message: Message) -> bytes:
    return message.content.hex().encode() + b"\n"


def _json(message: Message) -> bytes:
    fields = {
        "content": message.content.decode(errors="backslashreplace"),
        "hops": message.hops,
        "send_type": ("one", "all", "destination")[message.send_type],
        "source": list(path_ids(message.source)),
        "ttl": message.ttl,
    }
    return json.dumps(fields).encode() + b"\n"


#: Name -> what turns a message into the bytes that are printed.
FORMATS: dict[str, Callable[[Message], bytes]] = {
    "line": _line,
    "raw": _raw,
    "quoted": _quoted,
    "hex": _hex,
    "json": _json,
}


def add_format(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that says how messages are printed."""
    parser.add_argument(
        "-f",
        "--format",
        choices=FORMATS,
        default="line",
        help="print contents as they are with a newline after each (line, the default) or nothing (raw), "
        "quoted as in Python, in hex digits, or whole messages as JSON, one a line",
    )


def write(data: bytes) -> None:
    """Write to standard output at once. May hold up the process: then our peers are to be held up too."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
