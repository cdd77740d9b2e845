"""What docs/monitoring.rst and docs/logging.rst say is so, and their programs work."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Pub, Rep, Req, Respondent, Socket, Stream, Sub
from gmultisocket.errors import HandlerFailed
from gmultisocket.stats import _forget
from tests.faults.process import run_script
from tests.peers import only_pipe

DOCS = Path(__file__).resolve().parent.parent / "docs"
MONITORING = (DOCS / "monitoring.rst").read_text()
LOGGING = (DOCS / "logging.rst").read_text()


def block(page: str, contains: str) -> str:
    """Return the block of Python that has a certain text."""
    found = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", page, re.M)
    (program,) = [textwrap.dedent(each) for each in found if contains in each]
    return program


def keys(title: str) -> set[str]:
    """Return the keys of a table: what is in double backquotes in its first column."""
    table = MONITORING.split(f".. list-table:: ``{title}``")[1].split("\n\n", 2)[1]
    rows = re.findall(r"^   \* - ((?:.|\n(?!     - ))*)", table, re.M)
    return set(re.findall(r"``(\w+)``", "\n".join(rows)))


def test_the_tables_have_all_keys_and_no_others() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("inproc://keys").address)
        known = set(server.stats())
        assert set(only_pipe(client).stats()) == keys("Pipe.stats()")
    for kind in (Pub, Sub, Req, Rep, Respondent, Stream):
        with kind() as protocol:
            known |= set(protocol.stats())
    assert known == keys("Socket.stats()")


def test_the_metrics_that_the_page_names_are_those_that_there_are() -> None:
    pytest.importorskip("prometheus_client", reason="the extra prometheus is not installed")
    from gmultisocket.contrib.prometheus import Collector

    counted = {"counter": "_total"}
    collector: Any = Collector()
    real = {metric.name + counted.get(metric.type, "") for metric in collector.describe()}
    table = MONITORING.split("* - Metric")[1].split("All but the last")[0]
    names = re.findall(r"``(?:gmultisocket)?(_\w+)``", table)
    named = {f"gmultisocket{name}" for name in names}
    assert named == real
    rules = MONITORING.split(".. code-block:: yaml")[1].split("\nA single")[0]
    assert {name.removesuffix("_bucket") for name in re.findall(r"gmultisocket_\w+", rules)} <= real


def test_the_opentelemetry_example_exports_the_numbers() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    program = f"""
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from gmultisocket import Pull, Push
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
{block(MONITORING, "opentelemetry")}
with Push({{"socket.name": "jobs"}}) as push, Pull() as pull:
    push.dial(pull.listen("inproc://jobs").address)
    push.send(b"12345")
    assert pull.recv(5) == b"12345"
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            labels = point.attributes
            print(metric.name, type(metric.data).__name__, labels["kind"], labels["name"], point.value)
"""
    printed = run_script(program).splitlines()
    assert "gmultisocket.messages_sent Sum Push jobs 1" in printed
    assert "gmultisocket.bytes_received Sum Pull  5" in printed
    assert "gmultisocket.pipes Gauge Push jobs 1" in printed and len(printed) == 16


def test_the_password_example_lets_in_who_knows_it() -> None:
    names: dict[str, Any] = {"PASSWORD": "geheim"}
    exec(block(MONITORING, "PASSWORD"), names)
    from gmultisocket.contrib.monitor import Monitor

    monitor = Monitor(authorize=names["is_admin"])
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/monitor/", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "x"}
    for given, expected in (({}, 401), ({"HTTP_AUTHORIZATION": "Basic ü"}, 401), ({"HTTP_AUTHORIZATION": "x"}, 401)):
        told: list[Any] = []
        monitor({**environ, **given}, lambda *answer, told=told: told.append(answer))
        assert int(told[0][0][:3]) == expected and ("WWW-Authenticate", 'Basic realm="monitor"') in told[0][1]
    told = []
    monitor({**environ, "HTTP_AUTHORIZATION": names["EXPECTED"]}, lambda *answer: told.append(answer))
    assert told[0][0] == "200 OK"


def test_the_lines_of_the_log_are_as_the_page_shows_them() -> None:
    _forget()
    program = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from gmultisocket import Pub
from gmultisocket.stats import log_stats
import gevent
with Pub({"socket.name": "orders"}) as pub:
    stop = log_stats(interval=0.2)
    gevent.sleep(0.3)
    stop()
"""
    shape = re.sub(r"\d+(?:\.\d+)?", "N", " ".join(re.search(r"Pub orders: .*\n.*\n.*", MONITORING)[0].split()))  # type: ignore[index]
    line = re.sub(r"\d+(?:\.\d+)?", "N", run_script(program).strip())
    assert line == shape.replace("; dropped N overflow", "")


def test_the_json_example_names_the_request_at_both_ends() -> None:
    program = f"""
import sys
sys.stderr = sys.stdout
{block(LOGGING, "class AsJSON")}
import gevent
from gmultisocket import Req
from gmultisocket.errors import HandlerFailed
with rep, Req() as req:
    req.dial(rep.listen("tcp://127.0.0.1:0").address)
    rep.start()
    logging.info("before")
    asked = req.request_async(b"bread")
    assert asked.get(5) == b"BREAD"
    print(asked.id)
    failing = req.request_async(bytes([255]))
    try:
        failing.get(5)
    except HandlerFailed:
        print(failing.id)
    gevent.sleep(0)
    (pipe,) = rep.pipes.values()
    print(pipe.id, pipe.peer_address)
"""
    before, line, asked, error, failing, pipe = run_script(program).splitlines()
    assert "request_id" not in json.loads(before)
    assert json.loads(line).items() >= {"message": "asked for bread", "level": "INFO", "request_id": asked}.items()
    found = json.loads(error)
    pipe_id, peer = pipe.split()
    assert (found["level"], found["logger"], found["request_id"]) == ("ERROR", "gmultisocket.protocol", failing)
    assert (found["pipe_id"], found["peer"]) == (int(pipe_id), peer)
    assert "UnicodeDecodeError" in found["traceback"] and asked != failing
    assert set(found) == {"time", "level", "logger", "message", "pipe_id", "peer", "request_id", "traceback"}


def test_a_greenlet_outside_of_handlers_has_no_request() -> None:
    seen: list[str | None] = []

    def handler(content: bytes) -> bytes:
        current = rep.current
        assert current is not None and current.content == content
        gevent.spawn(lambda: seen.append(rep.current and rep.current.id)).join()
        seen.append(current.id)
        return b""

    with Rep(handler, concurrency=3) as rep, Req() as req:
        req.dial(rep.listen("inproc://current").address)
        rep.start()
        requests = [req.request_async(b"%d" % number) for number in range(5)]
        for request in requests:
            request.get(5)
        assert rep.current is None
    assert {each for each in seen if each} == {request.id for request in requests} and seen.count(None) == 5
    # Or without a handler.
    with Rep() as rep, Req() as req:
        req.dial(rep.listen("inproc://current").address)
        request = req.request_async(b"")
        for received in rep:
            assert rep.current is received and received.id == request.id
            received.fail("why")
            break
        assert rep.current is None
        with pytest.raises(HandlerFailed):
            request.get(5)


def test_the_page_names_every_logger() -> None:
    sources = "\n".join(file.read_text() for file in DOCS.parent.glob("gmultisocket/**/*.py"))
    used = set(re.findall(r'\b(?:get_logger|report)\(\s*"gmultisocket(\.[\w.]+)"', sources))
    sentence = LOGGING.split("Its loggers are")[1].split("\n\n")[0]
    assert set(re.findall(r"``(?:gmultisocket)?(\.[\w.]+)``", sentence)) == used
