"""How Sphinx builds these pages: ``python3 -m sphinx -W -b html docs docs/_build``."""

from __future__ import annotations

import configparser
from pathlib import Path

_setup = configparser.ConfigParser()
_setup.read(Path(__file__).resolve().parent.parent / "setup.cfg")

project = "gmultisocket"
author = "The gmultisocket authors"
copyright = f"2026, {author}"
release = version = _setup["metadata"]["version"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
highlight_language = "python"

html_theme = "furo"
html_title = f"gmultisocket {release}"
