"""The examples with pages, as somebody uses them: with gunicorn and a browser."""

from __future__ import annotations

import importlib.util
import json
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.browser.agents import ROOT, Chromium, Tab, chromium
from tests.contrib.gunicorns import Gunicorn, running
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


def serve(name: str, folder: Path) -> object:
    return running(folder, "-c", str(ROOT / "examples" / name / "gunicorn.conf.py"), app="")


def page_of(server: Gunicorn) -> str:
    return server.address.replace("ws:", "http:").removesuffix("ws")


@pytest.mark.skipif(importlib.util.find_spec("flask") is None, reason="flask is not installed")
def test_in_the_dashboard_everybody_sees_and_sets_what_is_his_own(browser: Chromium, tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serve("dashboard", tmp_path))  # type: ignore[arg-type]
        page = page_of(server)
        tab: Tab = stack.enter_context(browser.tab(page))
        # Who has not logged in gets no WebSocket.
        assert tab.evaluate("""
            const {Client} = await import("/ws/gmultisocket.js"), client = new Client("/ws");
            return await new Promise(resolve => client.addEventListener("close", event => resolve(event.code)));
        """) == 1006  # fmt: skip
        tab.evaluate("await fetch('/login', {method: 'POST', body: new URLSearchParams({name: 'Ada'})})")
        tab.visit(page)
        tab.evaluate(_UNTIL + "await until(() => text('#state') === 'live' && text('#temperature').includes('°C'))")
        assert tab.evaluate(_UNTIL + "return text('h1')") == "Ada’s greenhouse"
        set_target = "find('#target').value = %d; find('#target').onchange();"
        tab.evaluate(_UNTIL + set_target % 30 + "await until(() => text('output').startsWith('30'))")
        tab.evaluate(_UNTIL + set_target % 0 + "await until(() => text('#note').includes('between 5 and 35'))")
        assert tab.evaluate("""
            const {Client} = await import("/ws/gmultisocket.js"), client = new Client("/ws");
            const kind = error => error.message;
            return Promise.all(["users.bob.*", ">", "users.*.*", "users.ada.*"].map(pattern =>
              client.subscribe(pattern).ready.then(() => "allowed", kind)));
        """) == [*["refused: not yours"] * 3, "allowed"]  # fmt: skip
        assert tab.evaluate("""
            const {Client} = await import("/ws/gmultisocket.js"), client = new Client("/ws");
            return Promise.all([{user: "bob", target: 20}, "nonsense", {user: "ada"}].map(request =>
              client.request(request).catch(error => error.message)));
        """) == ["refused: not yours", *["refused: that is no request"] * 2]  # fmt: skip
        server.stop()
        tab.evaluate(_UNTIL + "await until(() => text('#state').startsWith('again'))")
        server.wait_ended()


def test_in_the_chat_a_room_hears_what_is_said_and_sees_who_is_there(browser: Chromium, tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serve("chat", tmp_path))  # type: ignore[arg-type]
        tabs = [stack.enter_context(browser.tab(page_of(server))) for _ in range(2)]
        for tab, name in zip(tabs, ("Ada", "Bob"), strict=True):
            tab.evaluate(_UNTIL + f"find('#join input').value = '{name}'; find('#join').requestSubmit();")
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
        tabs[1].evaluate(_UNTIL + enter % "lobby" + "await until(() => text('.line')?.includes('hello'))")
        server.stop()
        tabs[0].evaluate(_UNTIL + "await until(() => text('#state').startsWith('again'))")
        server.wait_ended()


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
