"""Record the terminals that the README shows: ``python3 -m docs.recording``.

Runs the commands in two shells, and draws what they print, in its order, into ``docs/recording.svg``.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from html import escape
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

__all__ = ["FILE", "Line", "draw", "record"]

FILE = Path(__file__).resolve().parent / "recording.svg"

#: What waits in the first shell.
SUBSCRIBER = "gmultisocket sub -q --topics -s 'prices.>' -n 4 \\\n    -l tcp://127.0.0.1:5555 -l ipc:///tmp/prices"
#: What is run in the second one, and how many lines the first one then prints.
PUBLISHERS = (
    ("gmultisocket pub -q -d tcp://127.0.0.1:5555 -T prices.eur 1.09", 1),
    ("cat today", 0),
    ("gmultisocket pub -q -d ipc:///tmp/prices --lines < today", 2),
    ("gmultisocket pub -q -d tcp://127.0.0.1:5555 -T prices.chf 0.94", 1),
)
TODAY = "prices.usd 0.92\nweather.de rain\nprices.gbp 0.86\n"

SHELLS = ("one shell", "another shell")
#: Pixels, and seconds between two lines.
_WIDTH, _LINE, _MARGIN, _PAUSE = 552, 20, 14, 0.7
_STYLE = """\
.back { fill: #1b2028 } .bar { fill: #2a313c }
text { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d7dde5; white-space: pre }
.title { fill: #98a3b1 } .typed { fill: #8fc7ff }
@media (prefers-reduced-motion: no-preference) { .line { animation: appear .2s both } }
@keyframes appear { from { opacity: 0 } }"""


class Line(NamedTuple):
    """A line that appeared in one of the shells."""

    shell: int
    text: str
    typed: bool = False


def record() -> list[Line]:
    """Run the commands, and return the lines of both shells in the order in which they appeared.

    The addresses are others than those that the recording shows, so that it disturbs nothing and nothing disturbs it.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "today").write_text(TODAY)
        lines = [*_typed(0, SUBSCRIBER)]
        with _start(SUBSCRIBER, folder) as subscriber:
            try:
                assert subscriber.stdout is not None
                for command, printed in PUBLISHERS:
                    lines += _typed(1, command)
                    with _start(command, folder) as publisher:
                        out, _ = publisher.communicate(timeout=30)
                    lines += [Line(1, line) for line in out.splitlines()]
                    lines += [Line(0, subscriber.stdout.readline().rstrip("\n")) for _ in range(printed)]
                if subscriber.wait(30) or subscriber.stdout.read():
                    raise RuntimeError("the subscriber printed more than it should, or failed")
            finally:
                subscriber.kill()
    return lines


def _typed(shell: int, command: str) -> Iterable[Line]:
    for prompt, line in zip(chain("$", repeat(">")), command.split("\n"), strict=False):
        yield Line(shell, f"{prompt} {line}", typed=True)


def _start(command: str, folder: str) -> subprocess.Popen[str]:
    """Start a command of a shell. A command that dials may come before the one that listens."""
    program = f"{shlex.quote(sys.executable)} -m gmultisocket"
    for shown, run in (
        ("ipc:///tmp/prices", f"ipc://{folder}/prices"),
        ("tcp://127.0.0.1:5555", f"ipc://{folder}/instead-of-tcp"),
        ("gmultisocket pub", f"{program} pub --async"),
        ("gmultisocket sub", f"{program} sub"),
    ):
        command = command.replace(shown, run)
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def draw(lines: Iterable[Line]) -> str:
    """Return the recording: an SVG file in which the lines appear one after the other.

    Where nothing moves, all lines are there from the beginning.
    """
    lines = list(lines)
    parts = []
    top = 0
    for shell, title in enumerate(SHELLS):
        rows = [(number, line) for number, line in enumerate(lines) if line.shell == shell]
        height = (len(rows) + 2) * _LINE
        parts.append(f'<rect class="back" y="{top}" width="{_WIDTH}" height="{height}" rx="6"/>')
        parts.append(f'<rect class="bar" y="{top}" width="{_WIDTH}" height="{_LINE + 4}" rx="6"/>')
        parts.append(f'<text class="title" x="{_MARGIN}" y="{top + 17}">{title}</text>')
        for row, (number, line) in enumerate(rows, 1):
            kind = "line typed" if line.typed else "line"
            parts.append(
                f'<text class="{kind}" style="animation-delay: {number * _PAUSE:.1f}s" x="{_MARGIN}" '
                f'y="{top + row * _LINE + 22}">{escape(line.text, quote=False)}</text>'
            )
        top += height + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top - 10}" width="{_WIDTH}" role="img">'
    described = "Two shells: one subscribes to prices over two transports, the other publishes, and the prices appear."
    return "\n".join([head, f"<title>{described}</title>", f"<style>{_STYLE}</style>", *parts, "</svg>\n"])


if __name__ == "__main__":
    FILE.write_text(draw(record()))
