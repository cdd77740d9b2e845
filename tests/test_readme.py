"""What the README tells people to do works as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from docs.recording import FILE, draw, record
from gmultisocket import Backplane
from gmultisocket.contrib.wsgi import mount
from gmultisocket.testing import wait_until
from tests.backplane.hubs import hub
from tests.browser.chromium import chromium
from tests.contrib.gunicorns import running
from tests.faults.process import needs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.rst").read_text()
PATIENCE = 50


def blocks(heading: str, language: str = "python") -> list[str]:
    """Return the code of a section."""
    section = re.split(rf"^{re.escape(heading)}\n-+\n", README, flags=re.M)[1]
    section = re.split(r"^.+\n-+\n", section, maxsplit=1, flags=re.M)[0]
    found = re.findall(rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", section, re.M)
    return [textwrap.dedent(block) for block in found]


@contextmanager
def running_block(program: str) -> Iterator[subprocess.Popen[str]]:
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
    with running_block(server):
        wait_for(address)
        with running_block(client) as process:
            out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("b'Hello, world'\n", "")
    Path(address.removeprefix("ipc://")).unlink()


@needs("chromium --version")
def test_a_page_gets_what_is_published_to_browsers(tmp_path: Path) -> None:
    (program,), (commands,) = blocks("Publish to browsers"), blocks("Publish to browsers", "shell")
    _, command = commands.strip().splitlines()
    name, *arguments, application = shlex.split(command)
    assert name == "gunicorn"
    (tmp_path / "live.py").write_text(program)
    with running(tmp_path, *arguments, "--pythonpath", str(tmp_path), app=application) as server, chromium() as browser:
        with browser.tab(server.address.replace("ws:", "http:").removesuffix("ws")) as tab:
            wait_until(lambda: ":" in tab.evaluate("return clock.textContent"), PATIENCE)
        server.stop()
        server.wait_ended()


def test_the_figures_are_those_of_the_benchmarks() -> None:
    measured = (ROOT / "benchmarks/README.rst").read_text()
    figures = re.findall(r"^     - ([\d,]+)/s$", README, re.MULTILINE)
    assert len(figures) == 9
    assert [figure for figure in figures if not re.search(rf"- {figure} (messages|deliveries)/s", measured)] == []


def test_the_pages_of_the_links_are_there() -> None:
    links = re.findall(r"``((?:docs|examples|benchmarks)/[\w./]*)``", README)
    assert len(links) >= 20 and all((ROOT / link).exists() for link in links)


def test_the_terminal_session_prints_what_stands_there(tmp_path: Path) -> None:
    """Ten commands and more start one after the other, so it takes some seconds."""
    (session,) = blocks("A terminal session", "console")
    for port in range(30003, 30007):
        session = session.replace(f"tcp://127.0.0.1:{port}", f"ipc://{tmp_path}/{port}")
    command = tmp_path / "gmultisocket"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gmultisocket "$@"\n')
    command.chmod(0o755)
    steps = re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:[^$>].*\n)*)", session, re.M)
    assert sum(line.count("gmultisocket") for line, _ in steps) == 10
    settings = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings,
        start_new_session=True,
    ) as shell:  # fmt: skip
        assert shell.stdin is not None and shell.stdout is not None
        try:
            for line, printed in steps:
                shell.stdin.write(line.replace("\n> ", "\n"))
                shell.stdin.flush()
                for wanted in printed.splitlines():
                    got = shell.stdout.readline().rstrip("\n")
                    assert re.fullmatch(re.escape(wanted).replace(r"\.\.\.", ".*"), got), (line, got, wanted)
        finally:
            # The Rep goes on for ever.
            os.killpg(shell.pid, signal.SIGTERM)
            shell.kill()
    wait_until(lambda: not list(tmp_path.glob("3*")), PATIENCE)


def test_the_fan_out_works_and_clients_may_come_first(address: str) -> None:
    feed, client = (block.replace("tcp://127.0.0.1:30002", address) for block in blocks("A fan-out in ten minutes"))
    assert address in feed and address in client
    with running_block(client) as first, running_block(feed) as feeding, running_block(client) as second:
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


def test_the_recording_shows_what_the_commands_print() -> None:
    lines = record()
    assert [line.text for line in lines if line.shell == 0 and not line.typed] == [
        "prices.eur 1.09", "prices.usd 0.92", "prices.gbp 0.86", "prices.chf 0.94",
    ]  # fmt: skip
    assert draw(lines) == FILE.read_text(), "make it again: python3 -m docs.recording"
    svg = ElementTree.fromstring(FILE.read_text())
    assert [text.text for text in svg.findall("{*}text") if text.attrib["class"] != "title"] == [
        line.text for shell in (0, 1) for line in lines if line.shell == shell
    ]
