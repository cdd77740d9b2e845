"""The examples of the pages about protocols and transports of one's own pass the library's checks, as the pages say."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from pathlib import Path

import pytest

from gmultisocket import protocol
from gmultisocket.protocol import ProtocolBase
from tests.pages.test_howto import ROOT, programs, run

JOBS = ROOT / "examples/jobs"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_the_queue_of_jobs_passes_the_checks_and_keeps_its_promises(tmp_path: Path) -> None:
    shutil.copy(JOBS / "jobs.py", tmp_path)
    name = "test_jobs.py"
    assert re.search(r"^\d+ passed", run(tmp_path, name, (JOBS / name).read_text(), *PYTEST).splitlines()[-1])


def test_the_queue_of_jobs_shows_what_it_does(tmp_path: Path) -> None:
    printed = run(tmp_path, "jobs.py", (JOBS / "jobs.py").read_text())
    assert textwrap.indent(printed, "    ") in (ROOT / "docs/writing-protocols.rst").read_text()
    assert printed.endswith("10 jobs done, 1 of them given again\n")


def test_the_transport_passes_the_checks_that_the_page_shows(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples/custom_transport.py", tmp_path)
    ((name, (code, _)),) = programs("writing-transports").items()
    assert re.search(r"^\d+ passed", run(tmp_path, name, code, *PYTEST).splitlines()[-1])


def test_the_librarys_own_protocols_use_no_more_than_the_page_describes() -> None:
    (line,) = re.findall(r"ProtocolBase\n   :members: (.*)", (ROOT / "docs/writing-protocols.rst").read_text())
    described = {*line.split(", ")}
    theirs = {name for name in dir(ProtocolBase) if re.match("_[a-z]", name)} - {"_abc_impl"}
    found = []
    for name in protocol.__all__:
        kind = getattr(protocol, name)
        if isinstance(kind, type) and issubclass(kind, ProtocolBase) and kind is not ProtocolBase:
            used = {*re.findall(r"\bself\.(_[a-z]\w*)", inspect.getsource(kind)), *vars(kind)}
            found += [f"{name} uses {each}" for each in used & theirs - described - {"_abc_impl"}]
    assert not found


@pytest.mark.parametrize(
    ("page", "example"), [("writing-protocols", "jobs/jobs.py"), ("writing-transports", "custom_transport.py")]
)
def test_what_a_page_shows_is_in_the_example(page: str, example: str) -> None:
    """Sphinx fails if a part is missing; here without Sphinx."""
    text, source = (ROOT / f"docs/{page}.rst").read_text(), (ROOT / "examples" / example).read_text()
    source += (JOBS / "test_jobs.py").read_text()
    shown = re.findall(r":(?:pyobject|start-at|end-at|end-before): (.+)", text)
    assert page != "writing-protocols" or len(shown) > 10
    for part in shown:
        assert part.rpartition(".")[2] in source
