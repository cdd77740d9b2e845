"""The package's own names: what is there after ``import gmultisocket``, and what that imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gmultisocket
from gmultisocket import protocol

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = "Bus Pair Pub Pull Push Rep Req Respondent Stream StreamProxy Sub Surveyor".split()


def run(program: str) -> str:
    """Return what a program prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_name_in_all_is_there_and_in_dir() -> None:
    for name in gmultisocket.__all__:
        assert getattr(gmultisocket, name) is not None
    assert set(gmultisocket.__all__) <= set(dir(gmultisocket))
    assert sorted(gmultisocket.__all__) == gmultisocket.__all__, "sorted, and each name once"


def test_the_classes_of_all_protocols_are_names_of_the_package() -> None:
    for name in PROTOCOLS:
        assert name in gmultisocket.__all__
        assert getattr(gmultisocket, name) is getattr(protocol, name)


@pytest.mark.parametrize(
    "program",
    [
        "import gmultisocket; print(gmultisocket.protocol.Pub.__name__)",
        "import gmultisocket; print(gmultisocket.Pub.__name__)",
        "from gmultisocket import Pub; print(Pub.__name__)",
        "from gmultisocket import protocol; print(protocol.Pub.__name__)",
        "from gmultisocket import *; print(Pub.__name__)",
        "import gmultisocket.protocol; print(gmultisocket.Pub.__name__)",
    ],
)
def test_protocols_are_there_without_an_import_of_their_own(program: str) -> None:
    assert run(program) == "Pub"


def test_importing_the_package_imports_no_protocol_and_nothing_for_type_checkers() -> None:
    program = """
import sys, gmultisocket
dir(gmultisocket)
for name in ("protocol", "options.names", "options.values", "transport.tls", "transport.ws"):
    assert "gmultisocket." + name not in sys.modules, name
"""
    run(program)


def test_a_name_that_is_not_there_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'gmultisocket' has no attribute 'Pubb'"):
        gmultisocket.Pubb  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Pubb'"):
        from gmultisocket import Pubb  # noqa: F401
