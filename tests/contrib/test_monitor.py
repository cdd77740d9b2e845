"""The live page: what it answers, and what somebody sees who looks at it in a real Chromium."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer

pytest.importorskip("prometheus_client", reason="the extra prometheus is not installed")

from prometheus_client import CollectorRegistry, Counter

from gmultisocket import Pub, Pull, Push, Sub
from gmultisocket.contrib.monitor import Monitor
from gmultisocket.contrib.monitor.samples import Sampler, _Rates
from gmultisocket.contrib.reports import reports_in
from gmultisocket.errors import OptionError, RequestRefused
from gmultisocket.stats import COUNTERS, _forget
from gmultisocket.testing import wait_until
from tests.addresses import plain_connection
from tests.browser.chromium import Tab, chromium
from tests.contrib.gunicorns import running
from tests.faults.process import needs

HOOKS = ("-c", "python:gmultisocket.contrib.gunicorn")
PLAIN = {"SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "x", "REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "5"}


def call(monitor: Monitor, path: str, **changes: str) -> tuple[int, dict[str, str], str]:
    """Call the application as a server does. Return status, headers and body."""
    told: list[Any] = []
    environ = {**PLAIN, "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", **changes}
    body = b"".join(monitor(environ, lambda *answer: told.append(answer)))
    ((status, headers),) = told
    return int(status[:3]), dict(headers), body.decode()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"the application at ", environ["PATH_INFO"].encode()]


# What it answers


def test_the_page_and_its_files_come_from_below_the_path_and_all_else_from_the_application() -> None:
    monitor = Monitor("/a/monitor", app, authorize=None)
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, body = call(monitor, f"/a/monitor{path}")
        assert status == 200 and body and headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert headers["Content-Length"] == str(len(body.encode()))
        assert call(monitor, f"/a/monitor{path}", REQUEST_METHOD="HEAD") == (200, headers, "")
    assert call(monitor, "/a/monitor/ws/gmultisocket.js")[0] == 200
    for path in ("/", "/a", "/a/monitors", "/a/monitorpage.js", "/b/a/monitor"):
        assert call(monitor, path)[2] == f"the application at {path}"
    for path in ("/nothing", "/../page.css", "/page.html", "//", "/samples.py", "/ws"):
        assert call(monitor, f"/a/monitor{path}")[0] == 404
    status, headers, _ = call(monitor, "/a/monitor/", REQUEST_METHOD="POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert call(Monitor(authorize=None), "/elsewhere")[0] == 404


@pytest.mark.parametrize(
    ("path", "environ", "place"),
    [
        ("/monitor", {"PATH_INFO": "/monitor"}, "monitor/"),
        ("/a/monitor/", {"PATH_INFO": "/a/monitor"}, "monitor/"),
        ("", {"PATH_INFO": "", "SCRIPT_NAME": "/below/here"}, "here/"),
        ("/ü", {"PATH_INFO": "/ü".encode().decode("latin-1")}, "%C3%BC/"),
    ],
)
def test_without_the_slash_it_leads_to_the_page(path: str, environ: dict[str, str], place: str) -> None:
    status, headers, _ = call(Monitor(path, authorize=None), **{"path": "", **environ})
    assert (status, headers["Location"]) == (308, place)


def test_a_dispatcher_may_take_the_path_off() -> None:
    monitor = Monitor("", authorize=None)
    assert call(monitor, "/", SCRIPT_NAME="/deep/below")[0] == 200
    assert call(monitor, "/healthz", SCRIPT_NAME="/deep/below")[2] == "ok\n"
    assert call(monitor, "/nothing")[0] == 404


def test_nothing_from_elsewhere_may_run_load_or_frame_it() -> None:
    _, headers, body = call(Monitor(authorize=None), "/monitor/")
    policy = dict(each.split(" ", 1) for each in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "://" not in body and "style=" not in body and "onclick" not in body


def test_authorize_decides_about_everything_but_the_health_checks() -> None:
    asked = []

    def authorize(request: Any) -> Any:
        asked.append(request)
        if request.headers.get("Authorization") == "Basic secret":
            return {"user": "anna"}
        raise RequestRefused(401, headers={"WWW-Authenticate": 'Basic realm="monitor"'})

    monitor = Monitor(authorize=authorize)
    for path in ("", "/", "/page.js", "/page.css", "/metrics", "/nothing"):
        status, headers, body = call(monitor, f"/monitor{path}", QUERY_STRING="a=1")
        assert status == 401 and headers["WWW-Authenticate"] == 'Basic realm="monitor"' and "html" not in body
        assert call(monitor, f"/monitor{path}", HTTP_AUTHORIZATION="Basic secret")[0] in (200, 308, 404)
    assert (asked[0].path, asked[0].query, asked[0].peer_address) == ("/monitor", "a=1", "192.0.2.7:5")
    assert asked[0].environ["REMOTE_ADDR"] == "192.0.2.7"
    for host, peer in (("2001:db8::7", "[2001:db8::7]:5"), ("", "")):
        call(monitor, "/monitor/", REMOTE_ADDR=host)
        assert asked[-1].peer_address == peer
    count = len(asked)
    assert call(monitor, "/monitor/healthz")[0] == call(monitor, "/monitor/readyz")[0] == 200
    assert len(asked) == count


@pytest.mark.parametrize(("verdict", "status"), [(None, 200), (True, 200), ("anna", 200), (False, 403), (429, 429)])
def test_authorize_may_answer_in_every_way_that_it_may_elsewhere(verdict: Any, status: int) -> None:
    assert call(Monitor(authorize=lambda request: verdict), "/monitor/")[0] == status


def test_an_authorize_that_fails_shows_nothing_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert call(Monitor(authorize=lambda request: 1 / 0), "/monitor/")[0] == 500
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.peer == "192.0.2.7:5"  # type: ignore[attr-defined]


def test_wrong_arguments_are_errors_at_once() -> None:
    with pytest.raises(TypeError):
        Monitor()  # type: ignore[call-arg]
    with pytest.raises(OptionError):
        Monitor(authorize=None, options={"transport.ws.listener.origins": 7})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="slash"):
        Monitor("monitor", authorize=None)


def test_readiness_is_the_programs_until_it_stops(caplog: pytest.LogCaptureFixture) -> None:
    verdict: Any = True
    monitor = Monitor(authorize=None, ready=lambda: verdict() if callable(verdict) else verdict)

    def ready() -> tuple[int, str]:
        status, _, body = call(monitor, "/monitor/readyz")
        return status, body

    assert ready() == (200, "ready\n")
    verdict = False
    assert ready() == (503, "not ready\n")
    verdict = "the database\r\nis away"
    assert ready() == (503, "the database\\r\\nis away\n")
    verdict = lambda: 1 / 0  # noqa: E731
    assert ready() == (503, "not ready\n")
    assert "the ready function failed" in caplog.text
    verdict = True
    monitor.stop()
    assert ready() == (503, "stopping\n") and call(monitor, "/monitor/healthz")[0] == 200
    monitor.stop()


def test_metrics_are_those_of_the_library_or_of_a_registry() -> None:
    with Pub({"socket.name": "orders"}):
        status, headers, body = call(Monitor(authorize=None), "/monitor/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=")
        assert 'gmultisocket_sockets{kind="Pub",name="orders"} 1.0' in body
        wanted = {"HTTP_ACCEPT": "application/openmetrics-text; version=1.0.0"}
        assert call(Monitor(authorize=None), "/monitor/metrics", **wanted)[2].endswith("# EOF\n")
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", registry=registry).inc()
    assert "jobs_total 1.0" in call(Monitor(authorize=None, registry=registry), "/monitor/metrics")[2]


# Samples


def report(process: str, time: float, sent: int, drops: int = 0) -> dict[str, Any]:
    counters = dict.fromkeys(COUNTERS, 0) | {"messages_sent": sent}
    return {"id": process, "time": time, "groups": [{"kind": "Pub", "name": "", "drops": {"ttl": drops}, **counters}]}


def test_rates_are_those_of_each_process_at_its_own_times() -> None:
    rates = _Rates()
    key = ("Pub", "")
    assert not rates.update([report("a", 100.0, 1000)]) and rates.of(key)[0]["messages_sent"] == 0
    assert rates.update([report("a", 101.0, 1010, 3), report("b", 101.0, 10**6)])
    assert rates.of(key)[0]["messages_sent"] == 10 and rates.of(key)[1] == {"ttl": 3}
    # One has not reported again: it goes on as it did. A new one begins.
    rates.update([report("a", 101.0, 1010, 3), report("b", 103.0, 10**6 + 10)])
    assert rates.of(key)[0]["messages_sent"] == 15
    # One has ended.
    rates.update([report("b", 104.0, 10**6 + 30)])
    assert rates.of(key)[0]["messages_sent"] == 20 and rates.of(key)[1] == {"ttl": 0}
    assert rates.of(("Pub", "other"))[0]["messages_sent"] == 0


def test_what_waits_for_the_page_itself_is_no_part_of_what_it_shows_of_a_process() -> None:
    groups = [{"name": name, "pipes": 2, "send_queue": 3} for name in ("orders", "monitor", "")]
    shown = Sampler(None, None)._process({"pid": 1, "time": 0.0, "groups": groups, "loop_lag": None})
    assert (shown["pipes"], shown["send_queue"]) == (4, 6)


def test_nothing_is_measured_unless_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    from gmultisocket.contrib.monitor import samples

    now = [1000.0]
    monkeypatch.setattr(samples, "monotonic", lambda: now[0])
    sampler = Sampler(None, None)
    with sampler.pub() as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://samples").address)
        wait_until(lambda: pub.pipes)
        assert not sampler._watched
        sub.subscribe("now", 5)
        wait_until(lambda: sampler._samples._greenlet and sampler._finder._greenlet)
        assert sub.recv(5)[0] == "now"
        sub.close()
        wait_until(lambda: not pub.pipes)
        now[0] += 29.0
        assert sampler._watched
        now[0] += 2.0
        wait_until(lambda: not sampler._samples._greenlet and not sampler._finder._greenlet)
        # Nobody is shown what is old.
        now[0] += 60.0
        assert sampler._slot > 0
        sampler._interest("now", True)
        assert not any([pub.unretain(f"plot.{slot}") for slot in range(120)])
        sampler.close()
        wait_until(lambda: pub.closed)


# In a browser


@contextmanager
def serving(monitor: Monitor) -> Iterator[str]:
    """Serve a monitor in this process. Yields the address of its page."""
    server = WSGIServer(("127.0.0.1", 0), monitor, log=None, error_log=None)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/monitor/"
    finally:
        monitor.stop()
        server.stop(timeout=5)


def sees(page: Tab, table: str, *words: str) -> None:
    """Wait until a table shows some words."""
    for word in words:
        page.wait(f"document.querySelector('#{table}').innerText.includes({word!r})")


@needs("chromium --version")
@pytest.mark.timeout(180)
def test_somebody_looks_at_a_program_that_works(tmp_path: Path) -> None:
    # Sockets of other tests have counted, too.
    _forget()
    evil = "<img src=x onerror=document.title=1>"
    options = {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 8, "socket.name": "orders"}
    monitor = Monitor("/monitor", authorize=None, peer_names=lambda pipe: f"{evil}{pipe.id}")
    with ExitStack() as stack:
        pub = stack.enter_context(Pub(options))
        sub = stack.enter_context(Sub({"socket.name": evil}))
        push, pull = stack.enter_context(Push()), stack.enter_context(Pull())
        address = pub.listen("tcp://127.0.0.1:0").address
        stuck = stack.enter_context(plain_connection(address))
        stuck.sendall(bytes([0x21, 16, 0, 0, 0, 0, 0, 2, 1]) + b">")
        sub.dial(address)
        sub.subscribe("orders", 5)
        push.dial(pull.listen("inproc://jobs").address)
        reading = gevent.spawn(lambda: [None for _ in sub])

        def work() -> None:
            while True:
                pub.publish("orders", b"x" * 50_000)
                push.send(b"job")
                pull.recv()
                gevent.sleep(0.005)

        working = gevent.spawn(work)
        page = stack.enter_context(stack.enter_context(chromium()).tab())
        url = stack.enter_context(serving(monitor))
        page.look_as(1280, "light")
        page.open(url)
        page.wait("document.getElementById('state')?.className === 'live'")
        sees(page, "groups", "Pub orders", f"Sub {evil}", "Push", "Pull")
        sees(page, "drops", "overflow", "Pub orders")
        sees(page, "slowest", evil, "tcp://127.0.0.1:", "Pub orders")
        sees(page, "processes", "now")
        assert "monitor" not in page.text("#groups")
        # Lines that move: each has several points, and the values are there.
        lines = "[...document.querySelectorAll('.line')].map(line => line.getAttribute('d'))"
        page.wait(f"{lines}.every(path => path && path.split('L').length > 3)")
        before = page.value(lines)
        page.wait(f"JSON.stringify({lines}) !== {str(before)!r} && {lines}[0].length > {len(before[0])}")
        assert page.value("document.querySelectorAll('.plot').length") == 6
        assert all(page.value("[...document.querySelectorAll('output')].map(each => each.innerText)"))
        # What a name says is text, and nothing was blocked, because nothing was tried.
        assert page.value("document.querySelectorAll('main img, main script').length") == 0
        assert page.value("document.title") == "Sockets"
        # One group alone.
        choose = (
            "const chooser = document.getElementById('group'); chooser.value = '%s';"
            "chooser.dispatchEvent(new Event('change'));"
        )
        page.evaluate(choose % "Push")
        page.wait("document.querySelectorAll('#groups tbody tr').length === 1")
        assert page.text("#groups tbody td") == "Push" and page.text("#drops") == "Nothing was dropped."
        page.evaluate(choose % "")
        # Nothing is cut off, and the two schemes differ.
        pictures = set()
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                page.look_as(width, scheme)
                page.wait(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
                assert page.value("document.documentElement.scrollWidth <= innerWidth")
                pictures.add((page.value("getComputedStyle(document.body).backgroundColor"), width))
                (tmp_path / f"{width}-{scheme}.png").write_bytes(page.picture())
        assert len(pictures) == 4
        assert page.complaints == []
        working.kill()
        monitor.stop()
        page.wait("document.getElementById('state').className === 'lost'")
        sub.close()
        reading.join()


@needs("chromium --version")
@pytest.mark.timeout(180)
def test_it_comes_back_when_the_server_does(tmp_path: Path) -> None:
    with chromium() as browser, browser.tab() as page, Pub({"socket.name": "first"}):
        server = WSGIServer(("127.0.0.1", 0), Monitor(authorize=None), log=None, error_log=None)
        server.start()
        port = server.server_port
        page.open(f"http://127.0.0.1:{port}/monitor/")
        sees(page, "groups", "Pub first")
        server.application.stop()
        server.stop(timeout=5)
        page.wait("document.getElementById('state').className === 'lost'")
        monitor = Monitor(authorize=None, folder=tmp_path / "stats")
        server = WSGIServer(("127.0.0.1", port), monitor, log=None, error_log=None)
        server.start()
        with Pub({"socket.name": "second"}):
            sees(page, "groups", "Pub first", "Pub second")
            sees(page, "processes", str(os.getpid()))
            page.wait("document.getElementById('state').className === 'live'")
            monitor.stop()
            server.stop(timeout=5)
            reports_in(tmp_path / "stats").stop()


@needs("chromium --version")
@pytest.mark.timeout(180)
def test_who_may_not_look_sees_nothing() -> None:
    asked = []

    def authorize(request: Any) -> Any:
        asked.append(request.path)
        expected = "Basic " + base64.b64encode(b"anna:secret").decode()
        if request.headers.get("Authorization") == expected:
            return "anna"
        raise RequestRefused(401, headers={"WWW-Authenticate": 'Basic realm="monitor"'})

    with chromium() as browser, browser.tab() as page, serving(Monitor(authorize=authorize)) as url:
        page.open(url)
        wait_until(lambda: asked)
        page.wait("document.readyState === 'complete' && document.getElementById('state') === null")
        page.open(url.replace("//", "//anna:secret@"))
        # The browser sends the password with the WebSocket's request as well.
        page.wait("document.getElementById('state')?.className === 'live'")
        assert "/monitor/ws" in asked


@needs("chromium --version")
@pytest.mark.timeout(180)
def test_under_gunicorn_the_page_shows_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATS", str(tmp_path / "stats"))
    arguments = ["-k", "gevent", "-w", "3", *HOOKS]
    with running(tmp_path, *arguments, app="tests.contrib.measured:application") as server, ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(server.peer())
        page = stack.enter_context(stack.enter_context(chromium()).tab())
        page.open(server.address.replace("ws:", "http:").removesuffix("/ws") + "/monitor")
        page.wait("document.querySelectorAll('#processes tbody tr').length === 3")
        page.wait("[...document.querySelectorAll('#processes tbody tr')]"
                  ".reduce((all, row) => all + Number(row.cells[1].innerText), 0) === 9")
        page.wait("document.querySelector('#groups tbody tr')?.innerText.startsWith('Pub news')")
        assert page.complaints == []
        # Nothing of it keeps a worker from ending.
        server.stop()
        server.wait_ended()
        page.wait("document.getElementById('state').className === 'lost'")
