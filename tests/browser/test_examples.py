"""The examples with pages, as somebody uses them: with gunicorn and a browser."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gmultisocket.testing import wait_until
from tests.browser.agents import PATIENCE, ROOT
from tests.browser.chromium import Chromium, Tab, chromium
from tests.contrib.gunicorns import Gunicorn, running, standing_still
from tests.contrib.test_gunicorn_plane import hub_of
from tests.faults.process import needs

pytestmark = [needs("chromium --version"), pytest.mark.timeout(180)]

_UNTIL = """
const until = async condition => { while (!condition()) await new Promise(resolve => setTimeout(resolve, 10)); };
const find = selector => document.querySelector(selector), text = selector => find(selector)?.textContent;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running_browser:
        yield running_browser


@contextmanager
def serve(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gunicorn]:
    """Serve an example. A connection serves one request."""
    monkeypatch.setenv("PLANE", f"ipc://{folder}/hub")
    configuration = ROOT / "examples" / name / "gunicorn.conf.py"
    with running(folder, "-c", str(configuration), "--keep-alive", "0", app="") as server:
        yield server


@contextmanager
def one_at_each_worker(server: Gunicorn, browser: Chromium, come_in: str) -> Iterator[list[Tab]]:
    """Two tabs with the page, each at another worker. ``come_in`` waits until a tab has its WebSocket."""
    with ExitStack() as stack:
        tabs = []
        pids = server.workers()
        for number, other in enumerate(reversed(pids)):
            with standing_still(other):
                # A connection from before may be at the worker that stands still, and a request by it would wait.
                tab = stack.enter_context(browser.tab(page_of(server), own_connections=True))
                tab.evaluate(_UNTIL + f"const number = {number};" + come_in)
                tabs.append(tab)
        yield tabs


def page_of(server: Gunicorn) -> str:
    return server.address.replace("ws:", "http:").removesuffix("ws")


@pytest.mark.skipif(importlib.util.find_spec("flask") is None, reason="flask is not installed")
def test_in_the_dashboard_everybody_sees_and_sets_what_is_his_own(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = "await until(() => text('#state') === 'live' && text('#temperature').includes('°C'));"
    with serve("dashboard", tmp_path, monkeypatch) as server:
        with browser.tab(page_of(server)) as tab:
            # Who has not logged in gets no WebSocket.
            assert tab.evaluate("""
                const {Client} = await import("/ws/gmultisocket.js"), client = new Client("/ws");
                return await new Promise(resolve => client.addEventListener("close", event => resolve(event.code)));
            """) == 1006  # fmt: skip
            tab.evaluate("await fetch('/login', {method: 'POST', body: new URLSearchParams({name: 'Ada'})})")
        with one_at_each_worker(server, browser, "await until(() => text('#state') === 'live')") as tabs:
            for tab in tabs:
                tab.evaluate(_UNTIL + live)
                assert tab.evaluate(_UNTIL + "return text('h1')") == "Ada’s greenhouse"
            set_target = "find('#target').value = %d; find('#target').onchange();"
            for here, there, target in ((tabs[0], tabs[1], 30), (tabs[1], tabs[0], 25)):
                here.evaluate(_UNTIL + set_target % target)
                there.evaluate(_UNTIL + f"await until(() => text('output') === '{target} °C')")
            here.evaluate(_UNTIL + set_target % 0 + "await until(() => text('#note').includes('between 5 and 35'))")
            assert here.evaluate(_UNTIL + "return text('output')") == "25 °C"
            assert here.evaluate("""
                const {Client} = await import("/ws/gmultisocket.js"), client = new Client("/ws");
                const kind = error => error.message;
                return Promise.all(["users.bob.*", ">", "users.*.*", "users.ada.*"].map(pattern =>
                  client.subscribe(pattern).ready.then(() => "allowed", kind)));
            """) == [*["refused: not yours"] * 3, "allowed"]  # fmt: skip
            assert here.evaluate("""
                const {Client} = await import("/ws/gmultisocket.js"), client = new Client("/ws");
                return Promise.all([{user: "bob", target: 20}, "nonsense", {user: "ada"}].map(request =>
                  client.request(request).catch(error => error.message)));
            """) == ["refused: not yours", *["refused: that is no request"] * 2]  # fmt: skip
            server.stop()
            for tab in tabs:
                tab.evaluate(_UNTIL + "await until(() => text('#state').startsWith('again'))")
        server.wait_ended()


def test_in_the_chat_a_room_hears_what_is_said_and_sees_who_is_there(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    come_in = """
        find('#join input').value = ["Ada", "Bob"][number]; find('#join').requestSubmit();
        await until(() => find("#state").className === "open");
    """
    with (
        serve("chat", tmp_path, monkeypatch) as server,
        one_at_each_worker(server, browser, come_in) as tabs,
    ):  # fmt: skip
        for tab in tabs:
            tab.evaluate(_UNTIL + "await until(() => text('#present') === 'AdaBob')")
        say = "find('#say input').value = '%s'; find('#say').requestSubmit();"
        tabs[0].evaluate(_UNTIL + say % "<b>hello</b>")
        for tab, mine in zip(tabs, (True, False), strict=True):
            tab.evaluate(_UNTIL + "await until(() => text('.line')?.includes('<b>hello</b>'))")
            assert tab.evaluate(_UNTIL + "return find('.line').classList.contains('mine')") is mine
        enter = "[...document.querySelectorAll('nav button')].find(each => each.dataset.room === '%s').click();"
        tabs[1].evaluate(_UNTIL + enter % "garden" + "await until(() => text('#present') === 'Bob')")
        assert tabs[1].evaluate(_UNTIL + "return find('.line')") is None
        tabs[0].evaluate(_UNTIL + "await until(() => text('#present') === 'Ada')")
        # After a reload of the server both have all lines, each once and in their order; so has who comes in now.
        tabs[0].evaluate(_UNTIL + say % "and more" + "await until(() => find('#said').children.length === 2)")
        server.stop(signal.SIGHUP)
        tabs[0].evaluate(_UNTIL + "await until(() => find('#state').className !== 'open')")
        tabs[0].evaluate(_UNTIL + "await until(() => find('#state').className === 'open')")
        tabs[0].evaluate(_UNTIL + say % "the end" + "await until(() => find('#said').children.length === 3)")
        tabs[1].evaluate(_UNTIL + enter % "lobby" + "await until(() => find('#said').children.length === 3)")
        for tab in tabs:
            lines = tab.evaluate("return [...document.querySelectorAll('.line')].map(each => each.lastChild.data)")
            assert lines == ["<b>hello</b>", "and more", "the end"]
        server.stop()
        tabs[0].evaluate(_UNTIL + "await until(() => text('#state').startsWith('again'))")
        server.wait_ended()


def test_the_pages_of_all_workers_go_on_when_the_hub_was_killed(
    browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serve("gunicorn_fanout", tmp_path, monkeypatch) as server,
        one_at_each_worker(server, browser, "await until(() => text('#state') === 'live')") as tabs,
    ):
        said: list[str] = []

        def lines(tab: Tab) -> list[str]:
            return list(tab.evaluate("return [...document.querySelectorAll('li')].map(each => each.textContent)"))

        def everybody_hears(what: str) -> bool:
            """Post a text from one of the pages. Return whether both pages show one of these texts."""
            said.append(f"{what} {len(said)}")
            tabs[len(said) % 2].evaluate(f"await fetch('/', {{method: 'POST', body: '{said[-1]}'}})")
            return all(any(f": {what}" in line for line in lines(tab)) for tab in tabs)

        wait_until(lambda: everybody_hears("before"), PATIENCE)
        hub = hub_of(server)
        os.kill(hub, signal.SIGKILL)
        wait_until(lambda: hub_of(server) not in (0, hub), PATIENCE)
        wait_until(lambda: everybody_hears("after"), PATIENCE)
        for tab in tabs:
            heard = lines(tab)
            assert len(heard) == len({*heard}), "something came twice"
            assert {line.partition(": ")[2] for line in heard} <= {*said}
            assert tab.evaluate(_UNTIL + "return text('#state')") == "live"
        server.stop()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
        assert server.process.returncode == 0, server.log


def test_the_page_of_the_documentation_is_live(browser: Chromium, tmp_path: Path) -> None:
    page = (ROOT / "docs/javascript.rst").read_text()
    code = page.split("``live.py``:")[1].split(".. code-block:: python\n")[1].split("\n.. code-block:: shell")[0]
    (tmp_path / "live.py").write_text(textwrap.dedent(code))
    hooks = ["-c", "python:gmultisocket.contrib.gunicorn", "-k", "gevent", "--pythonpath", str(tmp_path)]
    with running(tmp_path, *hooks, app="live:application") as server, browser.tab(page_of(server)) as tab:
        first = "await until(() => text('#clock') !== '?'); return text('#clock');"
        before = tab.evaluate(_UNTIL + first)
        tab.evaluate(_UNTIL + f"await until(() => text('#clock') !== {json.dumps(before)})")
        asked = "window.alert = said => { kept.said = said; }; find('#ask').click(); await until(() => kept.said);"
        assert tab.evaluate(_UNTIL + asked + "return kept.said") == "HELLO"
        server.stop()
        server.wait_ended()
