"""``gmultisocket options``: list the options that ``--option`` or an address can set."""

from __future__ import annotations

import argparse

from ..options import describe
from .common import Subparsers

__all__ = ["add"]


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "options",
        help="list the options of sockets, dialers, listeners, pipes and transports",
        description="List every option with its default. --option NAME=VALUE sets an option for everything, "
        "tcp://127.0.0.1:5555?NAME=VALUE for one address.",
    )
    parser.add_argument("part", nargs="?", default="", help="list only options whose name contains this")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the options. Returns 1 if none was found."""
    found = [option for option in describe() if arguments.part.lower() in option.name]
    for option in found:
        print(f"{option.name} = {option.default}")
        print(f"    {option.expected}\n    {option.doc}\n")
    return 0 if found else 1
