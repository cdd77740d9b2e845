"""Metrics, as Prometheus scrapes them."""

from __future__ import annotations

import os
import signal
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

pytest.importorskip("prometheus_client", reason="the extra prometheus is not installed")

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from websockets.frames import Opcode

from gmultisocket import Backplane, Message, Pub, Rep, Req, Socket, Sub
from gmultisocket.backplane import totals
from gmultisocket.contrib.prometheus import Collector
from gmultisocket.loop.lag import BUCKETS
from gmultisocket.protocol import ProtocolBase
from gmultisocket.stats import _forget
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, encode
from tests.contrib.gunicorns import PATIENCE, Gunicorn, Peer, running, standing_still
from tests.transport.wspeers import frame

HOOKS = ("-c", "python:gmultisocket.contrib.gunicorn")

#: By the name of a sample and its labels: the value.
Samples = dict[tuple[str, ...], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def registry() -> CollectorRegistry:
    _forget()
    registry = CollectorRegistry()
    registry.register(Collector())
    return registry


def test_a_scrape_has_the_numbers_of_all_sockets(registry: CollectorRegistry) -> None:
    with Pub({"socket.name": "orders"}) as pub, Sub() as sub, Rep(bytes) as rep, Req() as req:
        sub.dial(pub.listen("inproc://orders").address)
        req.dial(rep.listen("inproc://rep").address)
        rep.start()
        sub.subscribe("a", 5)
        assert req.request(b"12345", 5) == b"12345"
        pub.socket._receiver.counters.drop('a "reason"\n', 3)
        found = parsed(generate_latest(registry).decode())
        assert found["gmultisocket_pipes", "Pub", "orders"] == 1
        assert found["gmultisocket_subscriptions", "Pub", "orders"] == 1
        assert ("gmultisocket_subscriptions", "Rep", "") not in found
        assert found["gmultisocket_messages_sent_total", "Req", ""] == 1
        assert found["gmultisocket_sent_bytes_total", "Req", ""] == req.counters.bytes_sent
        assert found["gmultisocket_connections_accepted_total", "Rep", ""] == 1
        assert found["gmultisocket_messages_dropped_total", "Pub", "orders", 'a "reason"\n'] == 3
        assert found["gmultisocket_processes",] == 1
        before = found
    found = parsed(generate_latest(registry).decode())
    assert found["gmultisocket_sockets", "Req", ""] == 0
    assert all(found[key] >= value for key, value in before.items() if key[0].endswith("_total"))


def test_a_scrape_has_the_numbers_of_a_protocol_of_the_program(registry: CollectorRegistry) -> None:
    class Queue(ProtocolBase):
        def _own_stats(self) -> dict[str, int]:
            return {"waiting": 2}

    with Queue(), Queue(), Pub():
        found = parsed(generate_latest(registry).decode())
    assert {key: value for key, value in found.items() if key[0] == "gmultisocket_protocol_numbers"} == {
        ("gmultisocket_protocol_numbers", "Queue", "", "waiting"): 4
    }


def test_the_loops_lag_is_a_histogram(registry: CollectorRegistry) -> None:
    generate_latest(registry)
    wait_until(lambda: parsed(generate_latest(registry).decode())["gmultisocket_loop_lag_seconds_count",])
    found = parsed(generate_latest(registry).decode())
    buckets = [found["gmultisocket_loop_lag_seconds_bucket", str(end)] for end in BUCKETS]
    assert buckets == sorted(buckets)
    assert found["gmultisocket_loop_lag_seconds_bucket", "+Inf"] == found["gmultisocket_loop_lag_seconds_count",]
    assert found["gmultisocket_loop_lag_max_seconds",] >= 0


def test_a_scrape_has_the_numbers_of_planes_by_their_url(registry: CollectorRegistry) -> None:
    totals._forget()
    url = "memory://metrics"

    def value(name: str, *labels: str) -> float:
        return parsed(generate_latest(registry).decode())[f"gmultisocket_plane_{name}", *labels]

    assert not [key for key in parsed(generate_latest(registry).decode()) if key[0].startswith("gmultisocket_plane")]
    with Backplane(url) as unused, Backplane(url) as one, Backplane(url) as other:
        heard = iter(other.subscribe("news.>"))
        for number in range(3):
            one.publish("news.a", b"%d" % number)
        assert [next(heard)[1] for _ in range(3)] == [b"0", b"1", b"2"]
        assert value("open", url) == value("healthy", url) == 2
        assert value("messages_sent_total", url) == value("messages_confirmed_total", url) == 3
        assert value("messages_received_total", url) == 3
        assert value("messages_buffered", url) == value("messages_unconfirmed", url) == value("gaps_total", url) == 0
        assert unused.healthy
    assert value("open", url) == value("healthy", url) == 0
    assert value("messages_sent_total", url) == value("messages_received_total", url) == 3
    # An engine that is away: what is not sent is not lost in silence, and no password is shown.
    with Backplane("redis://:secret@127.0.0.1:1", {"plane.buffer_messages": 1}) as away:
        for number in range(4):
            away.publish("news.a", b"%d" % number)
        url = "redis://127.0.0.1:1"
        assert value("healthy", url) == 0 and value("messages_buffered", url) == 1
        assert value("messages_dropped_total", "overflow", url) == 3
        away.close(0)
    assert value("messages_dropped_total", "closed", url) == 1 and value("messages_buffered", url) == 0


def test_a_second_collector_with_the_same_names_is_refused(registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="gmultisocket_pipes"):
        registry.register(Collector())
    registry.register(Collector(prefix="other"))


def test_the_servers_thread_of_the_client_library_may_scrape(registry: CollectorRegistry) -> None:
    with Socket({"socket.name": "front"}) as sock:
        sock.listen("tcp://127.0.0.1:0")
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:

            def scrape() -> Samples:
                def get() -> bytes:
                    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=20) as answer:
                        return bytes(answer.read())

                return parsed(gevent.get_hub().threadpool.apply(get).decode())

            assert scrape()["gmultisocket_listeners", "Socket", "front"] == 1
            # The measuring begins in the thread of the socket.
            wait_until(lambda: scrape().get(("gmultisocket_loop_lag_seconds_count",), 0) > 0)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


# gunicorn


def get(server: Gunicorn, path: str) -> str:
    """Ask the worker that accepts first."""
    place = server.address.removeprefix("ws://").removesuffix("/ws")
    with urllib.request.urlopen(f"http://{place}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def scrape(server: Gunicorn) -> Samples:
    return parsed(get(server, "/metrics"))


def subscribed(server: Gunicorn, stack: ExitStack) -> Peer:
    peer = stack.enter_context(server.peer())
    peer.send(frame(Opcode.BINARY, encode(Message(flags=CONTROL | TO_ALL, content=b"\x01news.>"))))
    return peer


def counters(found: Samples) -> Samples:
    return {key: value for key, value in found.items() if key[0].endswith(("_total", "_count", "_bucket", "_sum"))}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("more", [[], ["--preload"]], ids=["", "preload"])
def test_one_scrape_shows_all_workers_and_no_counter_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    folder = tmp_path / "stats"
    monkeypatch.setenv("STATS", str(folder))
    news = ("gmultisocket_pipes", "Pub", "news")
    arguments = ["-k", "gevent", "-w", "3", *HOOKS, *more]
    with running(tmp_path, *arguments, app="tests.contrib.measured:application") as server, ExitStack() as stack:
        wait_until(lambda: scrape(server)["gmultisocket_processes",] == 3, PATIENCE)
        for _ in range(12):
            subscribed(server, stack)
        # Before a worker has reported a Pub there is no such number.
        wait_until(lambda: scrape(server).get(news) == 12, PATIENCE)
        before = scrape(server)

        def look() -> Samples:
            nonlocal before
            found = scrape(server)
            fallen = {key: (value, found.get(key)) for key, value in counters(before).items() if found[key] < value}
            assert not fallen
            before = found
            return found

        sent = "gmultisocket_messages_sent_total", "Pub", "news"
        begin = before[sent]
        wait_until(lambda: look()[sent] > begin + 100, PATIENCE)
        victim = int(get(server, "/"))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: look()[news] < 12, PATIENCE)
        wait_until(lambda: look()["gmultisocket_processes",] == 3, PATIENCE)
        reached = before[sent]
        wait_until(lambda: look()[sent] > reached + 100, PATIENCE)
        assert not list(folder.glob("*.new")) and len(list(folder.glob("*.json"))) == 4


def test_what_a_worker_does_not_answer_for_shows_as_an_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATS", str(tmp_path / "stats"))
    with running(tmp_path, "-k", "gevent", "-w", "2", *HOOKS, app="tests.contrib.measured:application") as server:
        wait_until(lambda: scrape(server)["gmultisocket_processes",] == 2, PATIENCE)
        with standing_still(int(get(server, "/"))):
            # It still counts, and is seen to hang.
            wait_until(lambda: scrape(server)["gmultisocket_oldest_report_seconds",] > 2.5, PATIENCE)
            assert scrape(server)["gmultisocket_processes",] == 2
        wait_until(lambda: scrape(server)["gmultisocket_oldest_report_seconds",] < 2.5, PATIENCE)


def test_values_are_those_of_the_registry() -> None:
    collector: Any = Collector()
    assert {metric.name for metric in collector.describe()} == {metric.name for metric in collector.collect()}
