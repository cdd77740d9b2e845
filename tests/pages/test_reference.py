"""Everything that programs may import is in the reference."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

#: The modules that programs import names from; every name in their ``__all__`` is public.
MODULES = (
    "gmultisocket",
    "gmultisocket.backplane",
    "gmultisocket.contrib.monitor",
    "gmultisocket.contrib.prometheus",
    "gmultisocket.contrib.gunicorn",
    "gmultisocket.contrib.systemd",
    "gmultisocket.errors",
    "gmultisocket.options",
    "gmultisocket.protocol",
    "gmultisocket.protocol.jsoncodec",
    "gmultisocket.switch",
    "gmultisocket.testing",
    "gmultisocket.testing.engines",
    "gmultisocket.testing.protocols",
    "gmultisocket.transport",
)
#: Names that a page describes in its text, or that are not for programs.
ELSEWHERE = {
    "gmultisocket": {"options": "api", "protocol": "protocols/index"},
    "gmultisocket.errors": {
        # For the library's own messages.
        "hide_values": "",
        "printable": "",
        "snippet": "",
    },
    "gmultisocket.options": {
        **dict.fromkeys(("connector", "plane", "protocol", "socket", "transport"), "options"),
        **dict.fromkeys(("DialerOptions", "ListenerOptions", "PipeOptions", "PlaneOptions", "OptionValues"), "api"),
        "Kind": "api",
        # A check of the library's own options.
        "is_header": "",
    },
}
_DIRECTIVE = re.compile(r"^\.\. auto(class|data|exception|function|module):: ([\w.]+)\n((?:   :.*\n)*)", re.MULTILINE)


def _object(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        module, _, attribute = name.rpartition(".")
        return getattr(import_module(module), attribute)


@pytest.fixture(scope="module")
def described() -> set[int]:
    """The identities of all objects that the pages describe from their docstrings."""
    pytest.importorskip("prometheus_client", reason="the extra prometheus is not installed")
    found = set()
    for page in (ROOT / "docs").rglob("*.rst"):
        for kind, name, options in _DIRECTIVE.findall(page.read_text()):
            thing = _object(name)
            found.add(id(thing))
            if kind == "module" and ":members:" in options:
                left_out = re.search(":exclude-members: (.*)", options)
                names = {*thing.__all__} - {*(left_out[1].split(", ") if left_out else ())}
                found |= {id(getattr(thing, each)) for each in names}
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_the_reference(name: str, described: set[int]) -> None:
    module, elsewhere = import_module(name), ELSEWHERE.get(name, {})
    missing = [each for each in module.__all__ if id(getattr(module, each, None)) not in described]
    assert sorted(missing) == sorted(elsewhere)
    for each, page in elsewhere.items():
        assert not page or re.search(rf"\b{each}\b", (ROOT / f"docs/{page}.rst").read_text())


def test_the_packages_of_programs_are_listed_here() -> None:
    """A name that the guides import comes from a module of this list, or from one whose names are described singly."""
    singly = {"address", "wire", "stats", "contrib.wsgi", "contrib.reports", "transport.stream", "loop.lag", "log"}
    imported = set()
    for page in [*(ROOT / "docs").rglob("*.rst"), ROOT / "README.rst", *(ROOT / "examples").rglob("*.py")]:
        imported |= {*re.findall(r"^ *from (gmultisocket[\w.]*) import", page.read_text(), re.MULTILINE)}
    assert imported - {*MODULES} <= {f"gmultisocket.{each}" for each in singly}
