"""The tutorial works for somebody who copies its files and commands, and does nothing else."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess

from gmultisocket.testing import wait_until
from tests.backplane.hubs import listens
from tests.browser.agents import PATIENCE, ROOT
from tests.browser.chromium import Tab, chromium
from tests.contrib.gunicorns import QUIET
from tests.faults.peers import free_port
from tests.faults.process import needs

PAGE = (ROOT / "docs/tutorial.rst").read_text()
FEED, WEB = "127.0.0.1:5601", "127.0.0.1:8000"
_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n(?:    :caption: (.+)\n)?\n((?:    .*\n|\n)+)", re.MULTILINE)
_UNTIL = """
const until = async condition => { while (!condition()) await new Promise(resolve => setTimeout(resolve, 10)); };
const find = selector => document.querySelector(selector), shown = () => find("#rooms")?.innerText ?? "";
"""
_ROOMS = _UNTIL + r"await until(() => /^rooms\.cellar: [-\d.]+$/m.test(shown())); return shown();"


class Reader:
    """Somebody who does in a folder what the page says. Programs run on until their terminal gets another command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "board"
        for made in re.findall(r"mkdir -p (\S+)", PAGE):
            (folder / made).mkdir(parents=True)
        self._ports = {address: f"127.0.0.1:{free_port()}" for address in (FEED, WEB)}
        self._terminals: dict[str, Any] = {}
        commands = folder / "bin"
        commands.mkdir()
        for name, module in (("gmultisocket", "gmultisocket"), ("gunicorn", "gunicorn")):
            (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        (commands / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        for command in commands.iterdir():
            command.chmod(0o755)
        self._settings = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "GUNICORN_CMD_ARGS": " ".join(QUIET),
        }  # fmt: skip

    @property
    def url(self) -> str:
        """Where the page of the application is."""
        return f"http://{self._ports[WEB]}/"

    def follow(self, step: int) -> None:
        """Do what a step says."""
        section = re.split(r"^\d\. .+\n-+\n", PAGE, flags=re.MULTILINE)[step].split("\nWhere to go on\n")[0]
        for written, real in self._ports.items():
            section = section.replace(written, real)
        blocks = [(caption, textwrap.dedent(code).strip() + "\n") for _, caption, code in _BLOCK.findall(section)]
        for number, (caption, code) in enumerate(blocks):
            if caption == "It prints":
                continue
            elif caption.startswith("Terminal"):
                following = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
                self._type(caption, code, following[1] if following[0] == "It prints" else None)
            else:
                name, _, where = caption.partition(", ")
                file = self._folder / name
                assert where in ("", "at the end")
                file.write_text((file.read_text() + "\n" if where else "") + code)

    def _type(self, terminal: str, command: str, printed: str | None) -> None:
        self.interrupt(terminal)
        output = self._output(terminal)
        with output.open("w") as file:
            process = self._terminals[terminal] = subprocess.Popen(
                ["bash", "-c", command if printed is not None else f"exec {command}"], stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, cwd=self._folder, env=self._settings, start_new_session=True,
            )  # fmt: skip
        if printed is not None:
            process.wait(PATIENCE)
            # The order of retained values is not promised.
            got, wanted = ("".join(sorted(text.splitlines(keepends=True))) for text in (output.read_text(), printed))
            assert re.fullmatch(re.escape(wanted).replace(r"\.\.\.", ".*"), got), (command, got)
        elif command == "gunicorn\n":
            wait_until(lambda: self._is_up(process, WEB), PATIENCE)
        elif command.startswith("kill -HUP"):
            self._wait_reloaded()
        elif "pub.listen" in (self._folder / "feed.py").read_text():
            wait_until(lambda: self._is_up(process, FEED), PATIENCE)

    def _wait_reloaded(self) -> None:
        """Look at the second terminal until both workers of gunicorn have been replaced."""
        log = self._output("Terminal 2")
        wait_until(lambda: log.read_text().count("Worker exiting") == 2, PATIENCE)
        wait_until(lambda: log.read_text().count("Booting worker") == 4, PATIENCE)

    def kill_workers(self) -> None:
        """Kill those that were started by the reload; gunicorn starts others."""
        booted = re.findall(r"Booting worker with pid: (\d+)", self._output("Terminal 2").read_text())
        for pid in booted[2:]:
            os.kill(int(pid), signal.SIGKILL)

    def _output(self, terminal: str) -> Path:
        return self._folder.with_name(terminal)

    def _is_up(self, process: Any, address: str) -> bool:
        assert process.poll() is None
        return listens(f"tcp://{self._ports[address]}")

    def interrupt(self, terminal: str) -> None:
        """Press Ctrl-C, and wait until the program has ended."""
        process = self._terminals.pop(terminal, None)
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.wait(PATIENCE)

    def leave(self) -> None:
        """Close the terminals."""
        for process in self._terminals.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    reader = Reader(folder)
    try:
        yield reader
    finally:
        reader.leave()


def log_in(tab: Tab, url: str, user: str, password: str) -> None:
    """Fill in the form, in a browser that knows nobody."""
    tab.inspector.call("Network.clearBrowserCookies")
    tab.visit(url)
    tab.evaluate(
        _UNTIL + f"find('[name=user]').value = '{user}'; find('[name=password]').value = '{password}'; "
        "find('form').requestSubmit();"
    )
    wait_until(lambda: tab.evaluate(_UNTIL + "return find('h1')?.innerText") == f"The rooms of {user}", PATIENCE)


def test_what_the_tutorial_installs_is_there() -> None:
    (command,) = re.findall(r"pip install (.*)", PAGE)
    names = [name.partition("[")[0] for name in shlex.split(command)]
    assert names == ["gmultisocket", "gunicorn", "flask"]
    for name in names[1:]:
        assert version(name)


@needs("chromium --version", "curl --version")
@pytest.mark.timeout(180)
def test_each_step_works_by_copy_and_paste(tmp_path: Path) -> None:
    """It starts a dozen programs, one after the other, so it takes some ten seconds."""
    with reading(tmp_path) as reader, chromium() as browser, ExitStack() as stack:
        reader.follow(1)
        reader.follow(2)
        reader.follow(3)
        with browser.tab(reader.url) as tab:
            assert tab.evaluate(_ROOMS).count("rooms.") == 2
            reader.interrupt("Terminal 2")
            tab.evaluate(_UNTIL + "await until(() => find('#state').innerText === 'not connected')")

        reader.follow(4)
        ann, bob = (stack.enter_context(browser.tab(reader.url)) for _ in range(2))
        for tab, user, password, count in ((ann, "ann", "apple", 2), (bob, "bob", "berry", 1)):
            log_in(tab, reader.url, user, password)
            assert tab.evaluate(_ROOMS).count("rooms.") == count
        assert bob.evaluate("""
            const {Client} = await import("/ws/gmultisocket.js");
            return new Client("/ws").subscribe("rooms.*").ready.catch(error => error.message);
        """) == "refused: not yours"  # fmt: skip

        reader.follow(5)
        bob.visit(reader.url)
        told = "await until(() => shown().includes('%s')); return shown();"
        tabs = [ann, bob, *(stack.enter_context(browser.tab(reader.url)) for _ in range(3))]
        for number in range(4):
            note = f"note {number}"
            bob.evaluate(_UNTIL + f"find('[name=text]').value = '{note}'; find('#write').requestSubmit();")
            # Ann's page is that of the step before. It gets what it may see now when it is loaded again.
            for tab in tabs[1:]:
                assert re.search(rf"note: {note} \(bob, by worker \d+\)", tab.evaluate(_UNTIL + told % note))

        reader.follow(6)
        log_in(ann, reader.url, "ann", "apple")
        assert ann.evaluate(_ROOMS).count("rooms.") == 2
        opened = "const answer = await fetch('/monitor/'); return answer.status;"
        assert ann.evaluate(opened) == 200
        log_in(bob, reader.url, "bob", "berry")
        assert bob.evaluate(opened) == 403
        reader.kill_workers()
        # Ann's page comes back with the cookie of the browser, which is Bob's now.
        bob.evaluate(_UNTIL + "const before = shown(); await until(() => shown() !== before)")
