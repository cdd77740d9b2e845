"""The client in a real browser, through a gunicorn with two workers. All tests share both.

``GMULTISOCKET_TEST_TABS`` is the number of tabs that have a hundred connections together; 5 without it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gmultisocket import Pub, Session
from gmultisocket.protocol.memoryhistory import MemoryHistory
from gmultisocket.testing import wait_until
from tests.browser.agents import PATIENCE, PRELUDE
from tests.browser.chromium import Chromium, Tab, chromium
from tests.contrib.gunicorns import Gunicorn, running
from tests.faults.process import needs

_TABS = int(os.environ.get("GMULTISOCKET_TEST_TABS", "5"))

pytestmark = [needs("chromium --version"), pytest.mark.timeout(180)]

_SETUP = 'const {Client} = await import("/ws/gmultisocket.js");' + PRELUDE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    arguments = ["-c", "python:gmultisocket.contrib.gunicorn", "-k", "gevent", "-w", "2", "--graceful-timeout", "2"]
    with running(tmp_path_factory.mktemp("gunicorn"), *arguments, app="tests.browser.served:application") as gunicorn:
        yield gunicorn


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running_browser:
        yield running_browser


@pytest.fixture
def tab(server: Gunicorn, browser: Chromium) -> Iterator[Tab]:
    """A tab with a page of the server."""
    with new_tab(server, browser) as made:
        yield made


@contextmanager
def new_tab(server: Gunicorn, browser: Chromium) -> Iterator[Tab]:
    page = server.address.replace("ws:", "http:").replace("/ws", "/")
    with browser.tab(page) as tab:
        tab.evaluate(_SETUP)
        yield tab


def follow_state(tab: Tab, options: str = "{}") -> int:
    """Subscribe to what the page's worker retains. Return the process of the worker."""
    # When it is ready, nothing is on its way that nobody has asked for.
    tab.evaluate(f"await kept.make('/ws', {options}).subscribe('state.>', m => kept.seen.push(Number(m.text()))).ready")
    return worker_of(tab)


def worker_of(tab: Tab) -> int:
    """Return the process of the worker that a page is connected to, when it is."""
    tab.evaluate("await kept.until(() => kept.seen.length)")
    return int(tab.evaluate("return (await kept.client.request('', {timeout: 30000})).text()"))


def test_a_page_needs_nothing_but_the_module_that_the_server_serves(tab: Tab) -> None:
    worker = follow_state(tab)
    assert tab.evaluate("return kept.seen") == [worker]
    tab.evaluate("await kept.client.request('state.x 7'); await kept.until(() => kept.seen.length === 2)")
    assert tab.evaluate("return [kept.seen[1], kept.client.state]") == [7, "open"]
    large = "return (await kept.client.request('state.y ' + '7'.repeat(100000))).text()"
    assert int(tab.evaluate(large)) == worker
    tab.evaluate("await kept.until(() => kept.seen.length === 3)")


def test_a_page_goes_on_with_another_worker_when_its_own_was_killed(tab: Tab) -> None:
    worker = follow_state(tab)
    tab.evaluate("kept.seen = []")
    os.kill(worker, signal.SIGKILL)
    other = worker_of(tab)
    assert other != worker
    assert tab.evaluate("return kept.seen") == [other]
    assert tab.evaluate("return kept.events.map(({type}) => type)[1]") == "close"
    tab.evaluate("await kept.client.request('state.x 7'); await kept.until(() => kept.seen.includes(7))")


def test_a_reload_of_the_server_is_a_short_pause(server: Gunicorn, tab: Tab) -> None:
    worker = follow_state(tab)
    before = re.findall("Booting worker with pid: ([0-9]+)", server.log)
    tab.evaluate("kept.seen = []")
    server.stop(signal.SIGHUP)
    assert worker_of(tab) != worker
    assert tab.evaluate("return kept.events.find(({type}) => type === 'close').code") == 1001
    # Pages of the tests that follow must not come to the other old worker, which is about to end.
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), PATIENCE)


def test_a_page_that_has_to_log_in_first_is_let_in_afterwards(tab: Tab) -> None:
    tab.evaluate("""
        kept.make("/private").subscribe("state.>", m => kept.seen.push(Number(m.text())));
        await kept.until(() => kept.events.length >= 2);
    """)
    closed: list[dict[str, Any]] = tab.evaluate("return kept.events")
    # A browser tells a page no more than this of an HTTP answer.
    assert {event["code"] for event in closed} == {1006}
    tab.evaluate("await fetch('/login')")
    assert worker_of(tab)
    tab.evaluate("document.cookie = 'user=; Max-Age=0; path=/'")


def test_tabs_do_not_disturb_each_other(server: Gunicorn, browser: Chromium) -> None:
    with ExitStack() as stack:
        tabs = [stack.enter_context(new_tab(server, browser)) for _ in range(4)]
        workers = [follow_state(tab) for tab in tabs]
        for number, tab in enumerate(tabs):
            tab.evaluate(f"await kept.client.request('state.x {number}')")
        for tab, worker in zip(tabs, workers, strict=True):
            mine = [number for number, other in enumerate(workers) if other == worker]
            tab.evaluate(f"await kept.until(() => kept.seen.length === {1 + len(mine)})")
            assert tab.evaluate("return kept.seen") == [worker, *mine]


@pytest.mark.timeout(120 + 3 * _TABS)
def test_a_hundred_connections_of_some_tabs_come_back_after_a_reload(server: Gunicorn, browser: Chromium) -> None:
    follow = """
        const {Client} = await import("/ws/gmultisocket.js");
        kept.got = Array.from({length: share}, () => []);
        kept.clients = kept.got.map(got => {
          const client = new Client("/ws", {minDelay: 20, maxDelay: 200});
          client.subscribe("state.>", message => got.push(message.text()));
          return client;
        });
    """
    connected = """
        await kept.until(() => kept.got.every(got => got.length));
        return Promise.all(kept.clients.map(client =>
          client.request("", {timeout: 30000}).then(answer => Number(answer.text()), () => 0)));
    """
    with ExitStack() as stack:
        tabs = [stack.enter_context(new_tab(server, browser)) for _ in range(_TABS)]
        for tab in tabs:
            tab.evaluate(f"const share = {100 // _TABS};" + follow)
        # 0: its worker ended before it answered.
        gone = {0}
        workers: list[list[int]] = []

        def all_connected() -> bool:
            """Ask who serves each client. Return whether that is a worker of this turn."""
            workers[:] = [tab.evaluate(connected) for tab in tabs]
            return not gone & {worker for each in workers for worker in each}

        for turn in range(2):
            wait_until(all_connected, PATIENCE)
            for worker in {worker for each in workers for worker in each}:
                tab, pids = next((tab, pids) for tab, pids in zip(tabs, workers, strict=True) if worker in pids)
                tab.evaluate(f"await kept.clients[{pids.index(worker)}].request('state.x {worker} {turn}')")
            for tab, pids in zip(tabs, workers, strict=True):
                tab.evaluate(f"await kept.until(() => kept.got.every(got => got.at(-1).endsWith(' {turn}')))")
                assert tab.evaluate("return kept.got.map(got => got.at(-1))") == [f"{worker} {turn}" for worker in pids]
            gone |= {worker for each in workers for worker in each}
            if not turn:
                for tab in tabs:
                    tab.evaluate("kept.got.forEach(got => got.splice(0))")
                server.stop(signal.SIGHUP)


def test_a_frozen_page_catches_up(tab: Tab) -> None:
    follow_state(tab)
    tab.evaluate("""
        kept.seen = [];
        // What the page has asked for comes while it is frozen.
        for (let n = 0; n < 500; n++) kept.client.request(`state.n ${n}`);
    """)
    tab.inspector.call("Page.setWebLifecycleState", state="frozen")
    tab.inspector.call("Page.setWebLifecycleState", state="active")
    tab.evaluate("await kept.until(() => kept.seen.at(-1) === 499 || kept.events.length > 1)")


@pytest.mark.parametrize(("kept", "missing"), [(10_000, False), (3, True)])
def test_a_frozen_page_that_the_server_has_cut_off_recovers(
    server: Gunicorn, tab: Tab, kept: int, missing: bool
) -> None:
    """Chromium answers the server's pings for a frozen page, until that has not read for too long."""
    options = {
        "transport.ws.ping_interval": 0.2,
        "transport.ws.ping_timeout": 0.5,
        "transport.ws.listener.origins": [server.address.replace("ws:", "http:").removesuffix("/ws")],
    }
    with Pub(history=MemoryHistory("a", max_entries=kept)) as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws", options).address
        tab.evaluate(f"""
            await kept.make("{address}").subscribe("a", m => kept.seen.push(Number(m.text().trimEnd()))).ready;
        """)
        numbers = count()
        tab.inspector.call("Page.setWebLifecycleState", state="frozen")
        # Until the buffers on the way are full, and the page is gone.
        wait_until(lambda: not session.pipes or not pub.publish("a", (b"%d" % next(numbers)).ljust(50_000)), PATIENCE)
        wait_until(lambda: not session.pipes, PATIENCE)
        for _ in range(2 * kept if missing else 5):
            pub.publish("a", b"%d" % next(numbers))
        tab.inspector.call("Page.setWebLifecycleState", state="active")
        pub.wait_subscribers("a", timeout=PATIENCE)
        last = next(numbers)
        pub.publish("a", b"%d" % last)
        tab.evaluate(f"await kept.until(() => kept.seen.at(-1) === {last})")
        seen = tab.evaluate("return kept.seen")
        events = tab.evaluate("return kept.events.map(({type, topic, reason}) => [type, topic, reason])")
    assert [kind for kind, _, _ in events if kind != "gap"] == ["open", "close", "open"]
    gaps = [each[1:] for each in events if each[0] == "gap"]
    if missing:
        assert gaps == [[None, "history"]]
        assert seen == sorted({*seen}) and len(seen) < last
    else:
        assert (gaps, seen) == ([], [*range(last + 1)])


def test_a_page_does_not_wait_when_the_network_has_come_back(tab: Tab) -> None:
    def network(offline: bool) -> None:
        tab.inspector.call(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    tab.inspector.call("Network.enable")
    network(True)
    tab.evaluate("""
        kept.make("/ws", {minDelay: 1e9, maxDelay: 1e9}).subscribe("state.>", m => kept.seen.push(Number(m.text())));
        await kept.until(() => kept.events.length);
    """)
    assert tab.evaluate("return [kept.client.state, navigator.onLine]") == ["waiting", False]
    network(False)
    assert worker_of(tab)


@pytest.mark.parametrize("is_hidden", [True, False])
def test_a_connection_that_has_died_is_found_when_the_page_is_seen_again(
    browser: Chromium, tab: Tab, is_hidden: bool
) -> None:
    """Or when the network changes, while the page is seen."""
    worker = follow_state(tab, "{timeout: 500}")
    with browser.tab("about:blank") as other:
        (other if is_hidden else tab).inspector.call("Page.bringToFront")
        assert tab.evaluate("return document.hidden") is is_hidden
        os.kill(worker, signal.SIGSTOP)
        try:
            if is_hidden:
                tab.inspector.call("Page.bringToFront")
            else:
                tab.evaluate("dispatchEvent(new Event('offline'))")
            tab.evaluate("await kept.until(() => kept.events.length > 1)")
        finally:
            os.kill(worker, signal.SIGCONT)
    assert tab.evaluate("return kept.events[1].code") == 1006
    # If it is the same worker again, the page has missed nothing, and nothing of the state comes again.
    assert worker_of(tab)


def test_ten_thousand_patterns_in_a_page(tab: Tab) -> None:
    tab.evaluate("""
        const client = kept.make("/ws");
        for (let n = 0; n < 10000; n++) client.subscribe(`t.${n}`, m => kept.seen.push(m.topic));
        await client.subscribe("t.last").ready;
        for (const n of [0, 5000, 9999]) await client.request(`t.${n} x`);
        await kept.until(() => kept.seen.length === 3);
    """)
    assert tab.evaluate("return kept.seen") == ["t.0", "t.5000", "t.9999"]


def test_all_workers_end_in_order(server: Gunicorn, tab: Tab) -> None:
    follow_state(tab)
    server.stop()
    wait_until(lambda: server.process.poll() is not None, PATIENCE)
    assert server.process.returncode == 0
    tab.evaluate("await kept.until(() => kept.events.length > 1)")
