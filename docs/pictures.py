"""Pictures of the pages: ``.. code-block:: picture`` holds a drawing made of characters, and HTML shows it as SVG.

::

    +-------+   request    +-------+
    |  Req  | -----------> |  Rep  |
    +-------+              +-------+

``+``, ``-`` and ``|`` make boxes and lines, ``=`` thick lines, ``/`` and ``\\`` diagonals, and ``< > ^ v`` at the end
of a line are heads of arrows. Everything else is text. So a page can also be read where nothing draws it: in an editor,
in a terminal, or on the site of a repository. Colours come from the theme, so a picture fits into light and dark pages.

The caption is required. It is shown below the picture, and tells those who cannot see the picture what it shows. A line
has at most 62 characters: then it can be read on a phone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

__all__ = ["FILE", "draw"]

#: The size of a character in the picture, in pixels.
_WIDTH, _HEIGHT = 8, 17
#: The names of files and folders, which have a colour.
FILE = r"[a-z_/]*[a-z_](?:\.py\b|/(?=\s|$))"


class _Cell(NamedTuple):
    """A place of the drawing."""

    row: int
    column: int

    def to(self, rows: int, columns: int) -> _Cell:
        return _Cell(self.row + rows, self.column + columns)


_LEFT, _RIGHT, _UP, _DOWN = (0, -1), (0, 1), (-1, 0), (1, 0)
#: Where the heads of arrows point to.
_HEADS = {"<": _LEFT, ">": _RIGHT, "^": _UP, "v": _DOWN}
_DIAGONALS = {"\\": (1, 1), "/": (1, -1)}


class _Drawing:
    """Finds the boxes, lines, heads and texts in a drawing."""

    def __init__(self, text: str) -> None:
        self.rows = text.rstrip().split("\n")
        self.columns = max(map(len, self.rows))
        #: The cells that belong to a line, and the directions in which each of them has a half of the line.
        self.ends = {cell: ends for cell in self._cells() if (ends := set(self._ends(cell)))}
        self.boxes = list(self._find_boxes())

    def _cells(self) -> Iterator[_Cell]:
        for row, line in enumerate(self.rows):
            for column, character in enumerate(line):
                if character != " ":
                    yield _Cell(row, column)

    def at(self, cell: _Cell) -> str:
        row, column = cell
        return self.rows[row][column] if 0 <= row < len(self.rows) and 0 <= column < len(self.rows[row]) else " "

    def _ends(self, cell: _Cell) -> Iterator[tuple[int, int]]:
        """Yield the directions into which a cell's line goes; none for text."""
        character = self.at(cell)
        left, right, above, below = (self.at(cell.to(*way)) for way in (_LEFT, _RIGHT, _UP, _DOWN))
        if character in "-=":
            if left in "-=+<" or right in "-=+>":
                yield from (_LEFT, _RIGHT)
        elif character == "|":
            if above in "|+^" or below in "|+v":
                yield from (_UP, _DOWN)
        elif character in _DIAGONALS:
            if not re.search(r"[\w./:]", left + right):
                rows, columns = _DIAGONALS[character]
                yield from ((rows, columns), (-rows, -columns))
        elif character == "+":
            yield from (way for way in (_LEFT, _RIGHT) if self.at(cell.to(*way)) in "-=")
            yield from (way for way, ends in ((_UP, "|^"), (_DOWN, "|v")) if self.at(cell.to(*way)) in ends)
            for mark, (rows, columns) in _DIAGONALS.items():
                yield from (way for way in ((rows, columns), (-rows, -columns)) if self.at(cell.to(*way)) == mark)
        elif character in _HEADS:
            rows, columns = _HEADS[character]
            lines = "-=" if columns else "|+"
            if self.at(cell.to(-rows, -columns)) in lines and not (rows and re.search(r"\w", left + right)):
                yield (-rows, -columns)

    def _find_boxes(self) -> Iterator[tuple[_Cell, _Cell]]:
        """Yield the upper left and the lower right corner of each box."""
        for cell, ends in self.ends.items():
            if self.at(cell) == "+" and {_RIGHT, _DOWN} <= ends:
                corner = next(self._corners(cell), None)
                if corner:
                    yield cell, corner

    def _corners(self, cell: _Cell) -> Iterator[_Cell]:
        """Yield the lower right corners of the boxes that begin at a cell, the nearest first."""
        for right in self._along(cell, _RIGHT):
            for corner in self._along(right, _DOWN):
                low = _Cell(corner.row, cell.column)
                if low in self._along(cell, _DOWN) and corner in self._along(low, _RIGHT):
                    yield corner

    def _along(self, cell: _Cell, way: tuple[int, int]) -> list[_Cell]:
        """Return the corners on a straight line that begins at a cell."""
        found = []
        back = (-way[0], -way[1])
        while way in self.ends.get(cell, ()):
            cell = cell.to(*way)
            if back not in self.ends.get(cell, ()):
                break
            if self.at(cell) == "+":
                found.append(cell)
        return found

    def on_box(self, cell: _Cell, way: tuple[int, int] = (0, 0)) -> bool:
        """Return whether a cell, and its neighbour, are on the edge of one box."""
        other = cell.to(*way)
        return any(
            high.row <= min(cell.row, other.row) <= max(cell.row, other.row) <= low.row
            and high.column <= min(cell.column, other.column) <= max(cell.column, other.column) <= low.column
            and (
                (cell.row == other.row and cell.row in (high.row, low.row))
                or (cell.column == other.column and cell.column in (high.column, low.column))
            )
            for high, low in self.boxes
        )

    def reach(self, cell: _Cell, way: tuple[int, int]) -> float:
        """Return how far a line goes on from the middle of a cell, in cells: to the box in front of it, if any."""
        neighbour = cell.to(*way)
        if way[0] and way[1]:
            return 0.5 if self.at(neighbour) != "+" else 1
        if -way[0] in {end[0] for end in self.ends.get(neighbour, ())} and way[0]:
            return 1
        for distance in (1, 2):
            if self.on_box(cell.to(way[0] * distance, way[1] * distance)):
                return distance
            if way[0] or self.at(neighbour) != " ":
                break
        return 1 if neighbour in self.ends else 0.5

    def texts(self) -> Iterator[tuple[_Cell, str]]:
        """Yield the texts, and where they begin."""
        for row, line in enumerate(self.rows):
            plain = "".join("\t" if _Cell(row, column) in self.ends else mark for column, mark in enumerate(line))
            for found in re.finditer(r"\S+(?: \S+)*", plain):
                yield _Cell(row, found.start()), found.group()


def _place(cell: _Cell, way: tuple[int, int] = (0, 0), distance: float = 0) -> tuple[float, float]:
    """Return a point in pixels: the middle of a cell, moved by so many cells."""
    return (cell.column + 0.5 + way[1] * distance) * _WIDTH, (cell.row + 0.5 + way[0] * distance) * _HEIGHT


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _points(*points: tuple[float, float]) -> str:
    return " ".join(",".join(map(_number, point)) for point in points)


def _lines(drawing: _Drawing) -> Iterator[str]:
    """Yield the lines that are no edges of boxes, each from where it begins to where it ends."""
    for cell, ends in drawing.ends.items():
        for way in ((0, 1), (1, 0), (1, 1), (1, -1)):
            back = (-way[0], -way[1])
            before = cell.to(*back)
            if way not in ends and back not in ends:
                continue
            if back in ends and way in drawing.ends.get(before, ()) and not drawing.on_box(before, way):
                continue  # in the middle of a line
            yield from _line(drawing, cell, way)


def _line(drawing: _Drawing, cell: _Cell, way: tuple[int, int]) -> Iterator[str]:
    """Yield the line that begins at a cell and goes one way, unless it is the edge of a box."""
    back = (-way[0], -way[1])
    if drawing.on_box(cell) and (way not in drawing.ends[cell] or drawing.on_box(cell, way)):
        return
    start = _place(cell, back, drawing.reach(cell, back)) if back in drawing.ends[cell] else _place(cell)
    last, thick = cell, False
    while True:
        thick |= drawing.at(last) == "="
        following = last.to(*way)
        if way not in drawing.ends[last] or back not in drawing.ends.get(following, ()) or drawing.on_box(last, way):
            break
        last = following
    end = _place(last, way, drawing.reach(last, way)) if way in drawing.ends[last] else _place(last)
    if start != end:
        yield f'<polyline class="{"thick" if thick else "thin"}" points="{_points(start, end)}"/>'


def _heads(drawing: _Drawing) -> Iterator[str]:
    for cell in drawing.ends:
        way = _HEADS.get(drawing.at(cell))
        if way:
            x, y = _place(cell, way, drawing.reach(cell, way))
            down, right = way
            sides = [(x - 8 * right - 4 * down * side, y - 8 * down - 4 * right * side) for side in (1, -1)]
            thick = "thick" if drawing.at(cell.to(-down, -right)) == "=" else "thin"
            # From the middle of the cell to the head, which may be at a box.
            yield f'<polyline class="{thick}" points="{_points(_place(cell), (x - 4 * right, y - 4 * down))}"/>'
            yield f'<polygon points="{_points((x, y), *sides)}"/>'


def draw(text: str, label: str) -> str:
    """Return a drawing as an SVG element, which takes its colours from the page.

    Args:
        text: the drawing.
        label: the id of the element that describes it.
    """
    drawing = _Drawing(text)
    width, height = drawing.columns * _WIDTH, len(drawing.rows) * _HEIGHT
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-labelledby="{label}">']
    for high, low in drawing.boxes:
        (left, top), (right, bottom) = _place(high), _place(low)
        place = (left, top, right - left, bottom - top)
        parts.append('<rect x="{}" y="{}" width="{}" height="{}" rx="4"/>'.format(*map(_number, place)))
    parts += _lines(drawing)
    parts += _heads(drawing)
    for cell, words in drawing.texts():
        kind = ' class="file"' if re.fullmatch(FILE, words) else ""
        x, y = cell.column * _WIDTH, _number((cell.row + 0.75) * _HEIGHT)
        parts.append(f'<text x="{x}" y="{y}" textLength="{len(words) * _WIDTH}"{kind}>{escape(words)}</text>')
    return "\n".join([*parts, "</svg>"])
