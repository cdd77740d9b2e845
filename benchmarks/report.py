"""Write the results: a table for people, reStructuredText for the README, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .harness import Figure, Result, Row

__all__ = ["Measured", "machine", "number", "to_json", "to_rst", "to_text"]

_LIBRARIES = ("gmultisocket", "gevent", "greenlet", "pyzmq", "pynng", "python-socketio")


@dataclass(frozen=True)
class Measured:
    """A row, and the results of its entries."""

    row: Row
    results: Sequence[Result]

    @property
    def title(self) -> str:
        """The row's title, with the content size that the receivers counted."""
        sizes = {result.size for result in self.results if result.size}
        return self.row.title.format(size=" and ".join(_size(size) for size in sorted(sizes)) or "no messages")

    def value(self, name: str) -> float | None:
        """Return the median of an entry, by its name."""
        return next((result.median for result in self.results if result.entry.name == name), None)

    def verdicts(self) -> Iterable[tuple[Figure, float | None]]:
        """Yield each figure, and the measured ratio or value."""
        for figure in self.row.figures:
            value, by = self.value(figure.entry), self.value(figure.by)
            if not figure.by:
                yield figure, value
            else:
                yield figure, value / by if value is not None and by else None


def _size(size: int) -> str:
    return f"{size // 1024} KiB" if size >= 1024 and size % 1024 == 0 else f"{size} B"


def number(value: float) -> str:
    """Return a value with three significant digits: the noise hides the others."""
    if value >= 1000:
        return f"{round(value, 3 - len(str(int(value)))):,.0f}"
    return f"{value:.3g}"


def reached(figure: Figure, measured: float) -> bool:
    """Return whether a ratio or value meets its goal."""
    least = figure.at_least if figure.floor is None else figure.floor
    if least is not None:
        return measured >= least
    most = figure.at_most if figure.limit is None else figure.limit
    return most is not None and measured <= most


def machine() -> str:
    """Return the names of the system and of the libraries, with their versions."""
    libraries = []
    for name in _LIBRARIES:
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            # The library is not installed, or is a checkout.
            continue
    cores = len(os.sched_getaffinity(0))
    return f"CPython {platform.python_version()}, Linux {platform.release()}, {cores} cores; {', '.join(libraries)}"


def _goal(figure: Figure, unit: str) -> str:
    if figure.limit is not None:
        return f"<= {figure.limit:g} {unit}"
    if figure.floor is not None:
        return f">= {figure.floor:,.0f} {unit}"
    return f">= {figure.at_least:g}" if figure.at_least is not None else f"<= {figure.at_most:g}"


def _cells(measured: Measured) -> Iterable[tuple[str, str, str, str]]:
    """Yield name, value, ratio and remark of each entry. The ratio says how much better the row's first entry is."""
    row = measured.row
    first = measured.results[0].median
    for index, result in enumerate(measured.results):
        value = result.median
        ratio = ""
        if index and value and first and measured.results[0].entry.contestant == "gmultisocket":
            ratio = f"{first / value if row.more_is_better else value / first:.2f}x"
        yield result.entry.name, "" if value is None else f"{number(value)} {row.unit}", ratio, result.remark


def _verdict_lines(measured: Measured) -> Iterable[tuple[str, str, str, str]]:
    """Yield the names of the entries, the measured ratio or value, the goal, and whether it is reached."""
    for figure, value in measured.verdicts():
        what = f"{figure.entry} / {figure.by}" if figure.by else figure.entry
        if value is None:
            yield what, "", _goal(figure, measured.row.unit), "not measured"
        else:
            yield what, f"{value:.3g}", _goal(figure, measured.row.unit), "yes" if reached(figure, value) else "NO"


def to_text(measured: Measured) -> str:
    """Return the lines for one row on a terminal."""
    lines = [f"{measured.title}   [{measured.row.name}]"]
    for name, value, ratio, remark in _cells(measured):
        lines.append(f"  {name:<30}{value:>24}{ratio:>10}  {remark}".rstrip())
    for what, value, goal, verdict in _verdict_lines(measured):
        lines.append(f"    {what:<52}{value:>8}  {goal:<12} {verdict}")
    return "\n".join(lines)


def to_rst(table: Sequence[Measured]) -> str:
    """Return the tables of a whole run as reStructuredText: the figures, and then all values."""
    figures = [(measured.title, *line) for measured in table for line in _verdict_lines(measured)]
    values = [(measured.title, *cells) for measured in table for cells in _cells(measured)]
    lines = [
        f"Measured with {machine()}.",
        "",
        *_list_table(("work", "what", "measured", "figure", "reached"), figures),
        "",
        *_list_table(("work", "who", "median", "gmultisocket is better by", "remark"), values),
    ]
    return "\n".join(lines) + "\n"


def _list_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterable[str]:
    yield from (".. list-table::", "   :header-rows: 1", "")
    work = None
    for line in (head, *lines):
        # The first line of a work names it, the next ones do not.
        first, work = "" if line[0] == work else line[0], line[0]
        for index, cell in enumerate((first, *line[1:])):
            yield f"   {'  -' if index else '* -'} {cell}".rstrip()


def to_json(table: Sequence[Measured]) -> str:
    """Return all results as JSON."""
    return json.dumps({"machine": machine(), "rows": [_as_dict(measured) for measured in table]}, indent=2)


def _as_dict(measured: Measured) -> dict[str, Any]:
    row = measured.row
    return {
        "name": row.name,
        "title": measured.title,
        "unit": row.unit,
        "more_is_better": row.more_is_better,
        "results": [
            {
                "name": result.entry.name,
                "median": result.median,
                "values": result.values,
                "spread": round(result.spread, 3),
                "size": result.size,
                "note": result.note,
            }
            for result in measured.results
        ],
        "figures": [
            {
                "entry": figure.entry,
                "by": figure.by,
                "goal": _goal(figure, row.unit),
                "measured": value,
                "reached": None if value is None else reached(figure, value),
            }
            for figure, value in measured.verdicts()
        ],
    }
