"""The programs of the how-to pages run, and print what stands there."""

from __future__ import annotations

import os
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
from gevent import subprocess

from gmultisocket import Backplane, Sub
from gmultisocket.errors import RequestRefused, SubscriptionRefused
from gmultisocket.testing import wait_until
from tests.backplane.hubs import hub
from tests.browser.chromium import chromium
from tests.contrib.gunicorns import running
from tests.faults.process import needs

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 50
_PROGRAM = re.compile(
    r"^\.\. code-block:: python\n    :caption: (\w+\.py)\n\n((?:    .*\n|\n)+)"
    r"(?:\.\. code-block:: text\n    :caption: It prints\n\n((?:    .*\n|\n)+))?",
    re.MULTILINE,
)


def programs(page: str) -> dict[str, tuple[str, str]]:
    """Return what a page shows: the code and what it prints, by the names of the files."""
    found = _PROGRAM.findall((ROOT / f"docs/{page}.rst").read_text())
    return {name: (textwrap.dedent(code), textwrap.dedent(printed).strip()) for name, code, printed in found}


def run(folder: Path, name: str, code: str, *arguments: str) -> str:
    """Run a program that stands in a file of its own."""
    (folder / name).write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", *arguments, name],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return str(done.stdout)


PRINTING = [
    (page, name) for page in ("threads", "migrating") for name, (_, printed) in programs(page).items() if printed
]


@pytest.mark.parametrize(("page", "name"), PRINTING, ids=[name for _, name in PRINTING])
def test_a_program_prints_what_stands_below_it(page: str, name: str, tmp_path: Path) -> None:
    code, printed = programs(page)[name]
    assert run(tmp_path, name, code).strip() == printed


def test_all_programs_are_run() -> None:
    assert len(PRINTING) == 6
    assert {name for page in ("threads", "migrating") for name in programs(page)} - {name for _, name in PRINTING} == {
        "tasks.py"
    }


def test_the_two_programs_of_the_quick_start(tmp_path: Path) -> None:
    shown = programs("quickstart")
    server, client = (
        shown[name][0].replace("tcp://127.0.0.1:30001", f"ipc://{tmp_path}/quick")
        for name in ("server.py", "client.py")
    )
    with subprocess.Popen([sys.executable, "-c", server], stdin=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            wait_until((tmp_path / "quick").exists, timeout=PATIENCE)
            assert run(tmp_path, "client.py", client).strip() == shown["client.py"][1]
        finally:
            process.kill()
            (tmp_path / "quick").unlink()


def test_the_tests_that_the_page_shows_pass(tmp_path: Path) -> None:
    ((name, (code, _)),) = programs("testing").items()
    assert "2 passed" in run(tmp_path, name, code, "-m", "pytest", "-q", "-p", "no:cacheprovider")


_POOL = """
import os
from tasks import report

for user in ("ann", "bob"):
    child = os.fork()
    if not child:
        report(user)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
_CELERY = """
class Celery:
    def __init__(self, name, broker): pass
    def task(self, function): return function
"""


def test_a_plane_that_was_made_before_the_pool_forked_publishes_from_each_process(tmp_path: Path) -> None:
    """The pool is made as Celery's prefork pool is: it is the fork that matters, and Celery needs a broker."""
    code, _ = programs("threads")["tasks.py"]
    address = f"ipc://{tmp_path}/hub"
    assert "ipc:///run/app/hub" in code
    (tmp_path / "tasks.py").write_text(code.replace("ipc:///run/app/hub", address))
    (tmp_path / "celery.py").write_text(_CELERY)
    with hub(address), Backplane(address) as plane:
        subscription = plane.subscribe("users.>", PATIENCE)
        run(tmp_path, "pool.py", _POOL)
        assert [subscription.recv(PATIENCE) for _ in range(2)] == [
            ("users.ann.reports", b"ready"), ("users.bob.reports", b"ready"),
        ]  # fmt: skip


@needs("chromium --version")
def test_the_program_for_browsers_shows_the_present_values_and_refuses_what_it_should(tmp_path: Path) -> None:
    code, _ = programs("browsers")["news.py"]
    (tmp_path / "news.py").write_text(code)
    (command,) = re.findall(r"^    gunicorn (.+)$", (ROOT / "docs/browsers.rst").read_text(), re.MULTILINE)
    *arguments, application = shlex.split(command)
    with running(tmp_path, *arguments, "--pythonpath", str(tmp_path), app=application) as server:
        with chromium() as browser, browser.tab(server.address.replace("ws:", "http:").removesuffix("ws")) as tab:
            wait_until(lambda: tab.evaluate("return news.textContent") == "news.weather: rain", PATIENCE)
        with Sub() as stranger, pytest.raises(RequestRefused, match="401"):
            stranger.dial(server.address)
        with Sub({"transport.ws.headers": {"Cookie": "session=c00c1e"}}) as ann:
            ann.dial(server.address)
            ann.subscribe("users.ann.*", PATIENCE)
            with pytest.raises(SubscriptionRefused, match="not yours"):
                ann.subscribe("users.*.inbox", PATIENCE)
