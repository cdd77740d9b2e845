"""The arguments that commands share, in groups, and help that fits a screen of 80 by 24.

A command calls the functions of the groups that it needs, and :meth:`Parser.add` for its own. ``--help`` shows one line
for each, and then examples: whole command lines that work together.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

from ..errors import MultiSocketError, OptionError
from ..options import lookup
from .formats import FORMATS

__all__ = [
    "Parser",
    "WrongUsage",
    "add_addresses",
    "add_count_received",
    "add_data",
    "add_format",
    "add_pace",
    "add_socket_options",
    "add_source",
    "count",
    "seconds",
    "suggestion",
    "wait_time",
]

#: Columns of the left part of the help.
_LEFT = 24


class WrongUsage(MultiSocketError):
    """The arguments of the command are wrong."""


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return ", did you mean ...?" if one of the names is like the name, or ""."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Parser(argparse.ArgumentParser):
    """The arguments of one command.

    Args:
        name: the command.
    """

    def __init__(self, name: str) -> None:
        # argparse makes a formatter for each argument. Without a width it imports shutil, and asks for the terminal's.
        formatter = partial(argparse.HelpFormatter, width=80)
        super().__init__(prog=f"gmultisocket {name}", allow_abbrev=False, formatter_class=formatter)
        self._name = name
        self._summary = ""
        self._arguments = ""
        self._examples: Sequence[str] = ()
        self._rows: list[tuple[str, str]] = []
        self._last_rows: list[tuple[str, str]] = []

    def describe(self, summary: str, examples: Sequence[str], arguments: str = "") -> None:
        """Set what the help says beside the arguments.

        Args:
            summary: one or two lines.
            examples: command lines. Those of one command can run at once, and see each other.
            arguments: the positional arguments, for the first line.
        """
        self._summary = summary
        self._examples = examples
        self._arguments = arguments

    def add(self, *flags: str, shown: str = "", help: str = "", **options: Any) -> None:
        """Declare an argument, with a line of the help unless ``help`` is empty.

        Args:
            flags: names, as for ``add_argument``.
            shown: the left part of the line, instead of the short and the first long name.
            help: the right part of the line.
            options: as for ``add_argument``.
        """
        action = self.add_argument(*flags, **options)
        if help:
            short = [flag for flag in flags if len(flag) == 2][:1]
            long = [flag for flag in flags if len(flag) > 2][:1]
            value = f" {action.metavar}" if isinstance(action.metavar, str) and action.nargs != 0 else ""
            self._rows.append((shown or ", ".join(short + long) + value, help))

    def add_row(self, shown: str, help: str, *, last: bool = False) -> None:
        """Add a line to the help: after those before it, or among the last ones, which all commands share."""
        (self._last_rows if last else self._rows).append((shown, help))

    def format_help(self) -> str:
        """Return the help."""
        lines = [f"usage: {self.prog} [OPTION]..." + (f" {self._arguments}" if self._arguments else "")]
        lines += [*self._summary.splitlines(), ""]
        lines += [f"  {shown:{_LEFT - 2}}  {help}" for shown, help in [*self._rows, *self._last_rows]]
        if self._examples:
            lines += ["", "examples:", *(f"  {line}" for line in self._examples)]
        return "\n".join(lines) + "\n"

    def print_help(self, file: object = None) -> None:
        """Print the help. argparse would ignore that it cannot be written."""
        print(self.format_help(), end="")

    def error(self, message: str) -> NoReturn:
        """Raise WrongUsage."""
        raise WrongUsage(f"{self._name}: {message} ('{self.prog} --help' explains)")


# Types


def count(text: str) -> int:
    """Parse an argument that is a positive whole number."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def seconds(text: str) -> float:
    """Parse an argument that is a time in seconds."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        option = lookup(name)
        return option.name, option.parse(value)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:VALUE")
    return name.strip(), value.strip()


def _split(text: str) -> str | int:
    if text in ("lines", "whole", "prefixed", "json"):
        return text
    try:
        return count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither lines, whole, prefixed, json nor a number of bytes"
        ) from None


# Groups


def add_addresses(parser: Parser) -> None:
    """Declare the arguments of a command that connects to any number of addresses."""
    parser.add(
        "-l", "--listen", "--bind", metavar="ADDRESS", action="append", default=[],
        help="listen at an address, e.g. 'tcp://*:5555'; repeatable",
    )  # fmt: skip
    parser.add(
        "-d", "--dial", "--connect", metavar="ADDRESS", action="append", default=[],
        help="connect to an address; repeatable",
    )  # fmt: skip
    # As nngcat and macat have them. Not in the help, which has no place for two ways to say the same.
    parser.add("-X", "--bind-ipc", metavar="PATH", type=_ipc, action="append", dest="listen")
    parser.add("-x", "--connect-ipc", metavar="PATH", type=_ipc, action="append", dest="dial")
    parser.add("-L", "--bind-local", metavar="PORT", type=_local, action="append", dest="listen")
    parser.add("--connect-local", metavar="PORT", type=_local, action="append", dest="dial")
    add_socket_options(parser)


def _ipc(path: str) -> str:
    return f"ipc://{os.path.abspath(path)}"


def _local(port: str) -> str:
    return f"tcp://127.0.0.1:{port}"


def add_socket_options(parser: Parser) -> None:
    """Declare the arguments of every command with a socket: how connections are made, and other options."""
    parser.add("--async", action="store_true", dest="dial_async")
    parser.add_row("--async", "do not wait until a dial is connected; go on trying", last=True)
    parser.add("--cacert", metavar="FILE")
    parser.add("-E", "--cert", metavar="FILE")
    parser.add("--key", metavar="FILE")
    parser.add("-k", "--insecure", action="store_true")
    parser.add_row("--cacert --cert --key FILE, -k", "TLS; -k: do not check the peer", last=True)
    parser.add("-H", "--header", metavar="NAME:VALUE", type=_header, action="append", default=[])
    parser.add_row("-H NAME:VALUE", "ws: an HTTP header for dials; repeatable", last=True)
    parser.add("-o", "--option", metavar="NAME=VALUE", type=_option, action="append", default=[], dest="options")
    parser.add_row("-o NAME=VALUE", "set one of 'gmultisocket options'; repeatable", last=True)
    parser.add("-Z", "--max-size", "--recv-maxsz", metavar="BYTES", type=count, dest="max_size")
    parser.add("-v", "--verbose", action="count", default=0)
    parser.add("-q", "--quiet", "--silent", action="store_true")
    parser.add_row("-Z BYTES, -v, -vv, -q", "longest message; show connections, all; only errors", last=True)


def add_data(parser: Parser, help: str) -> None:
    """Declare the arguments that hold a message, or name its file."""
    parser.add("data", nargs="?", metavar="DATA")
    parser.add("-D", "--data", metavar="DATA", dest="more_data")
    parser.add("-F", "--file", metavar="FILE")
    parser.add_row("DATA, -D DATA, -F FILE", help)


def add_source(parser: Parser, split: str = "whole") -> None:
    """Declare the arguments that say what is sent.

    Args:
        parser: of the command.
        split: how an input is split unless the arguments say it.
    """
    add_data(parser, "what to send; otherwise standard input is sent")
    parser.add(
        "--split", metavar="HOW", type=_split, default=split, shown="--split HOW, --lines",
        help=f"into lines, whole, prefixed, json, N bytes ({split})",
    )  # fmt: skip
    parser.add("--lines", action="store_const", const="lines", dest="split")


def add_pace(
    parser: Parser, *, repeats: bool = True, answered: bool = False, peers: str = "peers", timeout: str = ""
) -> None:
    """Declare the arguments that say when something is sent, and how often.

    Args:
        parser: of the command.
        repeats: whether ``--count`` says how often.
        answered: whether the timeout is one for answers.
        peers: what the peers are called.
        timeout: what the timeout is for.
    """
    if repeats:
        parser.add("-n", "-C", "--count", metavar="N", type=count, help="send everything N times")
    parser.add("-i", "--interval", metavar="SECONDS", type=seconds)
    parser.add("--delay", metavar="SECONDS", type=seconds, default=0.0)
    parser.add_row("-i, --delay SECONDS", "pause after each message (DATA repeats), at the start")
    parser.add(
        "-t", "--timeout", "--send-timeout", *(["--recv-timeout"] if answered else []), metavar="SECONDS", type=seconds,
        help=timeout or "longest wait for peers, and to send a message",
    )  # fmt: skip
    parser.add("--peers", metavar="N", type=_peers, default=1, help=f"first wait for N {peers} (1)")


def _peers(text: str) -> int:
    return 0 if text == "0" else count(text)


def wait_time(text: str) -> float:
    """Parse an argument that is a time in seconds, or "inf"."""
    return float("inf") if text == "inf" else seconds(text)


def add_format(parser: Parser) -> None:
    """Declare the arguments that say how messages are printed."""
    parser.add("-f", "--format", metavar="HOW", choices=FORMATS, default="line", help=" ".join(FORMATS))
    for flags in (("--raw",), ("-Q", "--quoted"), ("-A", "--ascii"), ("--hex",), ("--json",), ("--msgpack",)):
        parser.add(*flags, action="store_const", const=flags[-1][2:], dest="format")


def add_count_received(parser: Parser) -> None:
    """Declare the arguments that say when a command has received enough."""
    parser.add("-n", "-C", "--count", metavar="N", type=count, help="end after N messages")
    parser.add(
        "-t", "--timeout", "--recv-timeout", metavar="SECONDS", type=seconds,
        help="end when none came for this time (status 1: too few)",
    )  # fmt: skip
