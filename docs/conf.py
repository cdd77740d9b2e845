"""How Sphinx builds these pages: ``python3 -m sphinx -W -b html docs docs/_build``."""

from __future__ import annotations

import configparser
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from pygments.lexer import RegexLexer
from pygments.token import Name, Text
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs import pictures  # noqa: E402 - it needs the path

_setup = configparser.ConfigParser()
_setup.read(ROOT / "setup.cfg")

project = "gmultisocket"
author = "The gmultisocket authors"
copyright = f"2026, {author}"
release = version = _setup["metadata"]["version"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
exclude_patterns = ["_build"]
highlight_language = "python"
#: Only dashes: texts of programs, such as "", are shown with their own quotes.
smartquotes_action = "D"
pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = f"gmultisocket {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]


#: The page says this once.
DURATION = " (in an address also like 100ms, 5s, 2m or 1h)"


class OptionList(SphinxDirective):
    """``.. option-list:: socket``: the options whose names begin with ``socket.``.

    The search finds those of the page "options", where each option stands once.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from gmultisocket.options import describe

        prefix = f"{self.arguments[0]}."
        options = [option for option in describe() if option.name.startswith(prefix)]
        if not options:
            raise self.error(f"no option begins with {prefix}")
        lines = [line for option in options for line in self._lines(option)]
        (shown,) = self.parse_text_to_nodes(StringList(lines, "options"))
        shown["classes"].append("options")
        for option, item in zip(options, shown.findall(nodes.definition_list_item), strict=True):
            (term,) = item.findall(nodes.term)
            term["ids"].append(option.name)
            if self.env.docname == "options":
                self.env.domains.standard_domain.note_object("confval", option.name, option.name, location=term)
        return [shown]

    def _lines(self, option: Any) -> list[str]:
        default = oct(option.default) if option.name.endswith(".mode") else repr(option.default)
        unit = f" {option.unit}" if option.unit and option.default else ""
        expected = option.expected[0].upper() + option.expected[1:].replace(DURATION, "")
        return [f"``{option.name}``, by default ``{default}``{unit}", f"   {option.doc} *{expected}.*", ""]


class Pictures(SphinxPostTransform):
    """Shows each ``.. code-block:: picture`` as SVG, with its caption below."""

    default_priority = 400
    formats = ("html",)

    def run(self, **options: Any) -> None:
        for number, block in enumerate(list(self.document.findall(nodes.literal_block))):
            if block.get("language") != "picture":
                continue
            label = f"picture-{number}"
            around = block.parent
            assert isinstance(around, nodes.container), f"a picture in {self.env.docname} has no caption"
            (caption,) = around.findall(nodes.caption)
            around.replace_self(
                nodes.raw(
                    "",
                    f'<figure class="picture">\n{pictures.draw(block.astext(), label)}\n'
                    f'<figcaption id="{label}">{escape(caption.astext())}</figcaption>\n</figure>\n',
                    format="html",
                )
            )


class Tables(SphinxPostTransform):
    """Makes tables of two to four columns fit on a phone: pages.css shows their cells one below the other there.

    With three or four columns, each cell but the first begins with the head of its column, which only phones show. A
    table of the class "faults" has too much text for columns even on a wide screen, and becomes a list.
    """

    default_priority = 400
    formats = ("html",)
    #: Where a long name may be broken, and the name of a test.
    _in_name = re.compile(r"(?<=[./])(?=\w)")
    _in_test = re.compile(r"(?<=[./_])(?=\w)|(?<=::)")

    def run(self, **options: Any) -> None:
        for table in list(self.document.findall(nodes.table)):
            for literal in list(table.findall(nodes.literal)):
                self._allow_breaks(literal)
            (group,) = table.findall(nodes.tgroup)
            heads = [entry.astext() for head in group.findall(nodes.thead) for entry in head.findall(nodes.entry)]
            (body,) = group.findall(nodes.tbody)
            rows = [list(row.findall(nodes.entry)) for row in body.findall(nodes.row)]
            if "faults" in table["classes"]:
                self._name_cells(heads, rows, first=2)
                table.replace_self(nodes.definition_list("", *map(self._item, rows), classes=["faults"]))
            elif group["cols"] <= 4:
                table["classes"].append("stacked")
                if group["cols"] > 2:
                    self._name_cells(heads, rows, first=1)

    def _allow_breaks(self, literal: nodes.literal) -> None:
        """Allow line breaks in a long name, between its parts."""
        text = literal.astext()
        parts = (self._in_test if "::" in text else self._in_name).split(text)
        if len(text) < 20 or len(parts) == 1:
            return
        literal.clear()
        for part in parts:
            literal += [nodes.Text(part), nodes.raw("", "<wbr>", format="html")]

    def _name_cells(self, heads: list[str], rows: list[list[nodes.entry]], first: int) -> None:
        """Put the heads of the columns into the cells, from a column on."""
        for row in rows:
            for head, entry in list(zip(heads, row, strict=False))[first:]:
                for paragraph in list(entry.findall(nodes.paragraph))[:1]:
                    paragraph.insert(0, nodes.inline("", f"{head}: ", classes=["of-column"]))

    def _item(self, row: list[nodes.entry]) -> nodes.definition_list_item:
        term, *cells = row
        (name,) = term.children
        return nodes.definition_list_item(
            "",
            nodes.term("", "", *name.children),
            nodes.definition("", *[child for cell in cells for child in cell.children]),
        )


class PictureLexer(RegexLexer):
    """For pages that are not HTML, where a picture stays text: the names of files have a colour."""

    name = "picture"
    tokens = {"root": [(pictures.FILE, Name.Function), (r"[a-z]+|.|\n", Text)]}


def hide_private(
    app: Any, kind: str, name: str, thing: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave parameters that begin with an underscore out of a signature, and what is not Python."""
    # Each is the last one, and keyword-only.
    return re.sub(r", \*, _\w+(?::|=).*\)$", ")", signature or "").replace("<factory>", "...") or None, returns


def name_types_of_attributes(app: Any, kind: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Show the type of an attribute beside its name; napoleon makes a list of it, below the text.

    A property and a result have their type in the signature. There napoleon takes the words before a colon for the
    type: put them back.
    """
    for field, text in ((":type: ", "" if kind in ("property", "attribute") else None), (":rtype: ", ":returns: ")):
        types = [line for line in lines if line.startswith(field)]
        if types and text is not None:
            lines.remove(types[0])
            (number, line) = next((number, line) for number, line in enumerate(lines) if line.startswith(text))
            lines[number] = f"{text}{types[0].removeprefix(field)}: {line.removeprefix(text)}"
    attribute = 0
    for number, line in enumerate(lines):
        if line.startswith(".. attribute:: "):
            attribute = number
        elif line.startswith("   :type: ") and attribute:
            lines.insert(attribute + 1, re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", lines.pop(number)))
            attribute = 0


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", hide_private)
    app.connect("autodoc-process-docstring", name_types_of_attributes, priority=600)  # after napoleon
    app.add_directive("option-list", OptionList)
    app.add_lexer("picture", PictureLexer)
    app.add_post_transform(Pictures)
    app.add_post_transform(Tables)
