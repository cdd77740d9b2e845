"""The pictures of the pages: each can be drawn, described and read on a phone, and what they say of the code is so."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.pictures import draw
from gmultisocket.core.connecting.dialer import DialerState
from gmultisocket.core.connecting.listener import ListenerState
from gmultisocket.core.pipes.pipe import PipeState

ROOT = Path(__file__).resolve().parent.parent.parent
WIDEST = 62
_PICTURE = re.compile(r"^\.\. code-block:: picture\n    :caption: (.+)\n\n((?:    .*\n|\n)+)", re.MULTILINE)


def pictures() -> Iterator[tuple[str, str, str]]:
    """Yield the page, the caption and the drawing of each picture."""
    for page in sorted((ROOT / "docs").rglob("*.rst")):
        for caption, drawing in _PICTURE.findall(page.read_text()):
            yield str(page.relative_to(ROOT / "docs")), caption, textwrap.dedent(drawing).rstrip()


PICTURES = list(pictures())


def shapes(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(draw(textwrap.dedent(drawing).strip("\n"), "label"))


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter("text")]


def count(svg: ElementTree.Element) -> Counter[str]:
    return Counter(shape.tag for shape in svg)


def lines(svg: ElementTree.Element) -> list[tuple[float, ...]]:
    """Return where the lines begin and end: x, y, x, y."""
    return [tuple(map(float, re.split("[ ,]", line.attrib["points"]))) for line in svg.iter("polyline")]


def test_every_picture_has_a_caption() -> None:
    for page in (ROOT / "docs").rglob("*.rst"):
        text = page.read_text()
        assert text.count("\n.. code-block:: picture\n") == len(_PICTURE.findall(text)), page
    assert len(PICTURES) >= 25


@pytest.mark.parametrize(("page", "caption", "drawing"), PICTURES, ids=[page for page, _, _ in PICTURES])
def test_a_picture_is_drawn_whole(page: str, caption: str, drawing: str) -> None:
    assert max(map(len, drawing.split("\n"))) <= WIDEST
    assert caption.endswith(".")
    svg = ElementTree.fromstring(draw(drawing, "label"))
    # Every word is there, and nothing of a line is left over as text.
    words = r"[\w.]{2,}"
    assert Counter(re.findall(words, drawing)) == Counter(re.findall(words, " ".join(texts(svg))))
    assert [text for text in texts(svg) if re.search(r"--|==|\||^[+<>^v/\\]+$", text)] == []
    assert svg.attrib["aria-labelledby"] == "label"
    x, y, width, height = map(float, svg.attrib["viewBox"].split())
    for line in lines(svg):
        assert all(0 <= place <= width for place in line[::2]) and all(0 <= place <= height for place in line[1::2])


def test_a_box_is_one_rectangle_and_not_four_lines() -> None:
    svg = shapes("""
        +-----+
        | Req |
        +-----+
    """)
    assert count(svg) == {"rect": 1, "text": 1}
    (box,) = svg.iter("rect")
    assert (box.attrib["width"], box.attrib["height"]) == ("48", "34")
    assert texts(svg) == ["Req"]


def test_boxes_that_share_an_edge_are_boxes_of_their_own() -> None:
    svg = shapes("""
        +-----+-----+
        | a   | b   |
        +-----+-----+
        | c         |
        +-----------+
    """)
    assert count(svg) == {"rect": 3, "text": 3}


def test_an_arrow_reaches_from_box_to_box() -> None:
    svg = shapes("""
        +---+       +---+
        | a | ----> | b |
        +---+       +---+
    """)
    assert count(svg) == {"rect": 2, "text": 2, "polyline": 2, "polygon": 1}
    left, right = (float(box.attrib["x"]) for box in svg.iter("rect"))
    (head,) = svg.iter("polygon")
    assert min(line[0] for line in lines(svg)) == left + 32
    assert head.attrib["points"].startswith(f"{right:.0f},")


def test_a_line_up_and_down_reaches_the_boxes() -> None:
    svg = shapes("""
        +---+
        | a |
        +---+
          ^
          |
        +---+
        | b |
        +---+
    """)
    high, low = svg.iter("rect")
    (head,) = svg.iter("polygon")
    bottom = float(high.attrib["y"]) + float(high.attrib["height"])
    assert float(head.attrib["points"].split()[0].split(",")[1]) == pytest.approx(bottom, abs=0.1)
    assert max(max(line[1::2]) for line in lines(svg)) == pytest.approx(float(low.attrib["y"]), abs=0.1)


def test_lines_branch_cross_corners_and_may_be_thick() -> None:
    svg = shapes("""
        ==+==> a
          |
          +--> b
          |
          +--> c
    """)
    assert count(svg) == {"polyline": 7, "polygon": 3, "text": 3}
    assert sum(line.attrib["class"] == "thick" for line in svg.iter("polyline")) == 2
    diagonals = lines(shapes("""
        +
         \\
          \\
           +
    """))  # fmt: skip
    assert diagonals == [(4, 8.5, 28, 59.5)]


@pytest.mark.parametrize(
    "words",
    [
        "to-one, a - b, header + content",
        "ws://host/path and core/sending/",
        "a > b < c, rome.>, v ^ x",
        "a | b",
        'publish("rome.*", b"<3.10 & more>")',
    ],
)
def test_what_only_looks_like_a_line_stays_text(words: str) -> None:
    svg = shapes(words)
    assert count(svg) == {"text": 1}
    assert texts(svg) == [words]


def test_names_of_files_have_a_colour() -> None:
    svg = shapes("Socket.send     core/socket.py\ncli/    the kernel")
    assert [text.text for text in svg.iter("text") if text.get("class") == "file"] == ["core/socket.py", "cli/"]


@pytest.mark.parametrize(("states", "first"), [(DialerState, "idle"), (ListenerState, "new"), (PipeState, "open")])
def test_the_states_are_those_of_the_code(states: type[Enum], first: str) -> None:
    (drawing,) = [each for page, _, each in PICTURES if page == "design.rst" and re.search(rf"\|  +{first} ", each)]
    svg = shapes(drawing)
    boxes = set()
    for box in svg.iter("rect"):
        left, top, width, height = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        for text in svg.iter("text"):
            if left < float(text.attrib["x"]) < left + width and top < float(text.attrib["y"]) < top + height:
                boxes.add(text.text)
    # Every state of a dialer leads to "closed", which is not drawn there.
    assert boxes | {"closed"} == {state.value for state in states}
