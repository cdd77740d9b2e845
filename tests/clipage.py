"""Writes what ``--help`` prints into ``docs/cli.rst``: ``python3 -m tests.clipage``.

A comment ``.. help: COMMAND`` stands in front of each block. Without a command it is the help of all.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from gmultisocket.cli import HELP
from tests.cli.command import help_of

__all__ = ["PAGE", "blocks", "filled"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.rst"
_BLOCK = re.compile(r"^(\.\. help:(.*)\n\n\.\. code-block:: text\n\n)((?:   .*\n|\n)*)", re.M)


def blocks(page: str) -> list[str]:
    """Return the commands whose help is in the page."""
    return [match[2].strip() for match in _BLOCK.finditer(page)]


def filled(page: str) -> str:
    """Return the page with the help as it is now."""

    def fill(match: re.Match[str]) -> str:
        text = help_of(match[2].strip()) if match[2].strip() else HELP
        return match[1] + textwrap.indent(text, "   ") + "\n"

    return _BLOCK.sub(fill, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
