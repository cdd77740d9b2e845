"""Draw the plots of the documentation: ``python3 -m benchmarks.plots RUN.json FOLDER``.

``RUN.json`` is what ``python3 -m benchmarks --json`` prints. Each plot is an SVG file with a panel for each row that
was measured. A panel has a bar for each library, and a scale of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from .report import number

__all__ = ["main"]

#: The file of a plot, and the rows that it shows.
_PLOTS = {
    "throughput": ("oneway-tcp-64", "oneway-tcp-1024", "oneway-tcp-65536", "oneway-ipc-64", "pipeline"),
    "switch": ("switch-64", "switch-1024", "switch-65536"),
    "latency": ("roundtrip-tcp", "roundtrip-ipc", "roundtrip-ws", "reqrep-single", "pubsub-100-patterns"),
    "fanout": ("fanout-single", "fanout-burst", "fanout-ws", "fanout-10000", "pubsub-1-pattern"),
    "browsers": ("browsers-single", "browsers-burst"),
    "memory": ("memory-tcp", "memory-ws", "memory-tls", "memory-socket"),
}

_WIDTH = 720
#: Where bars begin, and how long the longest one is.
_LEFT, _LONGEST = 190, 400
_LINE, _GAP = 20, 16
_OURS, _OTHERS = "#2f6db5", "#b4bcc6"


def main() -> None:
    """Draw all plots of which the run has at least one row."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.plots", description="Draw a run as SVG files.")
    parser.add_argument("run", type=Path, metavar="RUN.json", help="what python3 -m benchmarks --json has printed")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write the files; made if missing")
    arguments = parser.parse_args()
    run = json.loads(arguments.run.read_text())
    rows = {row["name"]: row for row in run["rows"]}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, wanted in _PLOTS.items():
        found = [rows[row] for row in wanted if row in rows]
        if found:
            (arguments.folder / f"{name}.svg").write_text(_draw(found, run["machine"]))


def _draw(rows: Sequence[dict[str, Any]], machine: str) -> str:
    """Return a plot."""
    lines: list[str] = []
    top = _LINE
    for row in rows:
        lines += _panel(row, top)
        top += _LINE * (1 + len(_measured(row))) + _GAP
    lines.append(_text(0, top, machine, "small"))
    return "\n".join(
        [
            # A page in dark colours cannot change those of an image, so it has a background.
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 {_WIDTH + 20} {top + _LINE // 2}" '
            'style="background: white" role="img">',
            "<style>text { font: 13px sans-serif; fill: #333 } .head { font-weight: bold }",
            ".name, .unit { text-anchor: end } .small, .unit { font-size: 10px; fill: #777 }</style>",
            *lines,
            "</svg>\n",
        ]
    )


def _measured(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [result for result in row["results"] if result["values"]]


def _panel(row: dict[str, Any], top: int) -> Iterable[str]:
    """Yield the elements of one row."""
    results = _measured(row)
    longest = max((result["median"] for result in results), default=1)
    better = "more is better" if row["more_is_better"] else "less is better"
    yield _text(0, top, row["title"], "head")
    yield _text(_WIDTH, top, f"{row['unit']}, {better}", "unit")
    for line, result in enumerate(results, 1):
        base = top + line * _LINE
        width = round(_LONGEST * result["median"] / longest, 1)
        color = _OURS if result["name"].startswith("gmultisocket") else _OTHERS
        yield _text(_LEFT - 6, base, result["name"], "name")
        yield f'<rect x="{_LEFT}" y="{base - 12}" width="{width}" height="14" fill="{color}"/>'
        yield _text(_LEFT + width + 6, base, number(result["median"]))


def _text(x: float, y: float, text: str, kind: str = "value") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
