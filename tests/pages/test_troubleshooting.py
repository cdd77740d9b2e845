"""What docs/troubleshooting.rst says that one sees is what the library says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs/troubleshooting.rst").read_text()


def texts(source: str) -> Iterator[str]:
    """Yield the texts of a program, with "..." where something is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sdr]|%\.\df", "...", node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)


def rows() -> list[str]:
    """Return the first cell of each row, without the heads."""
    cells = re.findall(r"^   \* - ((?:.|\n(?!     - ))*)", PAGE, re.MULTILINE)
    return [cell for cell in cells if cell not in ("You see", "The server answers")]


def test_each_text_of_the_page_is_in_the_library() -> None:
    said = "\n".join(text for file in ROOT.glob("gmultisocket/**/*.py") for text in texts(file.read_text()))
    shown = [text for row in rows() for text in re.findall(r"``([^`]{12,})``", row)]
    assert len(shown) >= 20
    pieces = [(text, [piece.strip(": ") for piece in text.split("...")]) for text in shown]
    assert [text for text, parts in pieces if not all(part in said for part in parts)] == []


def test_each_option_of_the_page_exists() -> None:
    from gmultisocket.options import describe

    known = {option.name for option in describe()}
    named = set(re.findall(r"``((?:socket|connector|transport|plane|protocol)\.[a-z_.]+)``", PAGE))
    assert len(named) >= 8 and named - known == {"plane.healthy"}  # this is an attribute
