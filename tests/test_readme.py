"""What the README tells people to do works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gmultisocket import Backplane
from gmultisocket.contrib.wsgi import mount
from gmultisocket.testing import wait_until
from tests.backplane.hubs import hub

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.rst").read_text()
PATIENCE = 50


def blocks(heading: str) -> list[str]:
    """Return the Python of a section."""
    section = re.split(rf"^{re.escape(heading)}\n-+\n", README, flags=re.M)[1]
    section = re.split(r"^.+\n-+\n", section, maxsplit=1, flags=re.M)[0]
    found = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", section, re.M)
    return [textwrap.dedent(block) for block in found]


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    """A block of the README as a process of its own, until the body has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None and process.stderr is not None
    return process.stdout.readline() or process.stderr.read()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/readme"


def wait_for(address: str) -> None:
    """Wait until somebody listens."""
    path = Path(address.removeprefix("ipc://"))
    wait_until(path.exists, PATIENCE)


def test_the_two_commands_stand_there_as_they_are_to_be_typed() -> None:
    commands = re.findall(r"::\n\n    (python3 .*)\n", README)
    assert commands == [
        "python3 -m pip install . && gmultisocket demo",
        "python3 -m pip install '.[test]' && python3 -m pytest",
    ]


def test_the_quick_start_works(address: str) -> None:
    server, client = (block.replace("tcp://127.0.0.1:30001", address) for block in blocks("Quick start"))
    assert address in server and address in client
    with running(server):
        wait_for(address)
        with running(client) as process:
            out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("b'Hello, world'\n", "")
    Path(address.removeprefix("ipc://")).unlink()


def test_the_fan_out_works_and_clients_may_come_first(address: str) -> None:
    feed, client = (block.replace("tcp://127.0.0.1:30002", address) for block in blocks("A fan-out in ten minutes"))
    assert address in feed and address in client
    with running(client) as first, running(feed) as feeding, running(client) as second:
        for process in (first, second):
            ticks = [int(read_line(process).removeprefix("tick ")) for _ in range(3)]
            assert ticks == list(range(ticks[0], ticks[0] + 3))
        assert read_line(feeding).startswith("add ipc://")
    Path(address.removeprefix("ipc://")).unlink()


def test_the_backplane_between_workers_works(tmp_path: Path) -> None:
    (worker,) = (block.replace("ipc:///run/app", f"ipc://{tmp_path}") for block in blocks("gunicorn"))
    *making, publishing = worker.strip().splitlines()
    names: dict[str, Any] = {"Backplane": Backplane, "mount": mount, "application": None}
    exec("\n".join(making), names)
    with hub(f"ipc://{tmp_path}/hub"), Backplane(f"ipc://{tmp_path}/hub") as other, names["plane"]:
        subscription = other.subscribe("orders.>", PATIENCE)
        exec(publishing, names)
        assert subscription.recv(PATIENCE) == ("orders.eu.created", b"for the browsers of every worker")
