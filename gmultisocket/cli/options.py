"""``gmultisocket options``: list the options that ``--option`` or an address can set."""

from __future__ import annotations

from argparse import Namespace

from ..options import describe
from .arguments import Parser

__all__ = ["options"]

_EXAMPLES = ("gmultisocket options", "gmultisocket options send_queue")


def options(parser: Parser) -> None:
    """Declare the command."""
    parser.describe(
        "List every option with its default. -o NAME=VALUE sets one for all addresses,\n"
        "tcp://127.0.0.1:5555?NAME=VALUE for that address.",
        _EXAMPLES,
        "[PART]",
    )
    parser.add("part", nargs="?", default="", metavar="PART")
    parser.add_row("PART", "list only options whose name contains this")
    parser.set_defaults(run=_options)


def _options(arguments: Namespace) -> int:
    """Print the options. Returns 1 if none was found."""
    found = [option for option in describe() if arguments.part.lower() in option.name]
    for option in found:
        print(f"{option.name} = {option.default}")
        print(f"    {option.expected}\n    {option.doc}\n")
    return 0 if found else 1
