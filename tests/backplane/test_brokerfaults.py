"""What planes over NATS and Redis do when the real server refuses them, cuts them off or dies under load."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import subprocess

from gmultisocket.backplane import Backplane, PlaneEvent
from gmultisocket.errors import EngineRefused, PublicationTooLong
from gmultisocket.testing import wait_until
from gmultisocket.testing.engines import check_sum
from tests.backplane.kills import check_rows, measure
from tests.backplane.servers import SAVED, BrokerServer, JetStreamServer, RedisServer
from tests.faults.process import ROOT

PATIENCE = 20.0


def protected(server: BrokerServer, password: str) -> None:
    """Start a server again that wants a password."""
    server.kill()
    server.extra = ["--user", "u", "--pass", password] if server.scheme == "nats" else ["--requirepass", password]
    server.start()


def with_password(server: BrokerServer, password: str) -> str:
    return server.url_with(f"{'u' if server.scheme == 'nats' else ''}:{password}")


def test_a_wrong_password_is_an_error_at_once_and_is_not_shown(server: BrokerServer) -> None:
    protected(server, "right")
    with Backplane(with_password(server, "s3cret")) as plane:
        with pytest.raises(EngineRefused) as caught:
            plane.connect(PATIENCE)
        assert "s3cret" not in str(caught.value) + repr(plane)
        plane.publish("a", b"kept")
        assert plane.counters.buffered == 1
    # Nothing could leave, so closing did not wait.
    assert plane.counters.dropped == {"closed": 1}


def test_a_password_that_changes_is_down_until_it_is_the_old_one_again(server: BrokerServer) -> None:
    protected(server, "old")
    url = with_password(server, "old")
    with Backplane(url, {"plane.hold": 0.1}) as plane, Backplane(url) as other:
        subscription = other.subscribe("a", PATIENCE)
        plane.connect(PATIENCE)
        events: list[PlaneEvent] = []
        plane.on_event(events.append)
        protected(server, "new")
        wait_until(lambda: not plane.healthy and not other.healthy, PATIENCE)
        plane.publish("a", b"waits")
        with pytest.raises(EngineRefused):
            wait_until(lambda: plane._link.last_error.__class__ is EngineRefused, PATIENCE)  # type: ignore[union-attr]
            plane.connect(PATIENCE)
        protected(server, "old")
        # connect() would raise the last refusal at once.
        wait_until(lambda: plane.healthy and other.healthy, PATIENCE)
        plane.flush(PATIENCE)
        check_sum(plane)
        assert [event.kind for event in events] == ["down", "up"]
        plane.publish("a", b"last")
        while subscription.recv(PATIENCE) != ("a", b"last"):
            pass


def test_a_content_over_the_limit_names_both(server: BrokerServer) -> None:
    with Backplane(server.url) as plane:
        plane.connect(PATIENCE)
        limit = 1048576 - 52 if server.scheme == "nats" else 8 * 1048576 - 44
        with pytest.raises(PublicationTooLong, match=f"{limit + 1} bytes is over the limit of {limit} bytes"):
            plane.publish("a", bytes(limit + 1))
        assert plane.counters.sent == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_is_killed_again_and_again_under_load_loses_nothing_uncounted(
    server: BrokerServer, seed: int
) -> None:
    """Bursts, kills at random moments: the sums are exact, nothing comes twice, local subscribers miss nothing."""
    chance = random.Random(seed)
    options: dict[str, Any] = {"plane.hold": 0.3, "plane.buffer_messages": 2000}
    with Backplane(server.url, options) as one, Backplane(server.url, options) as other:
        for plane in (one, other):
            plane.connect(PATIENCE)
        far = other.subscribe("n.>", PATIENCE, queue_size=1_000_000)
        here = one.subscribe("n.>", PATIENCE, queue_size=1_000_000)
        running = True
        sent = 0

        def publish() -> None:
            nonlocal sent
            while running:
                for _ in range(chance.randint(1, 300)):
                    one.publish(f"n.{sent % 5}", b"%d" % sent + b"x" * chance.choice([0, 10, 5000]))
                    sent += 1
                gevent.sleep(chance.random() * 0.01)

        publisher = gevent.spawn(publish)
        for _ in range(3):
            before = one.counters.confirmed
            wait_until(lambda: one.counters.confirmed > before + 500, PATIENCE)  # noqa: B023
            server.kill()
            wait_until(lambda: not one.healthy and not other.healthy, PATIENCE)
            wait_until(lambda: sum(one.counters.dropped.values()) or one.counters.buffered > 1000, PATIENCE)
            server.start()
            for plane in (one, other):
                plane.connect(PATIENCE)
            check_sum(one)
        running = False
        publisher.join()
        one.flush(PATIENCE)
        check_sum(one)
        one.publish("n.end", b"end")
        got = []
        while (received := far.recv(PATIENCE)) != ("n.end", b"end"):
            got.append(int(received[1].rstrip(b"x")))
        assert got == sorted(set(got)), "a publication came twice, or in the wrong order"
        counters = one.counters
        assert counters.sent == sent + 1
        assert here.waiting == sent + 1
        assert other.counters.gaps == 3
        assert other.counters.duplicates == 0


@pytest.mark.parametrize("fate", ["killed", "emptied"])
@pytest.mark.parametrize("make", [JetStreamServer, partial(RedisServer, extra=SAVED)], ids=["nats", "redis"])
def test_of_topics_with_history_all_that_was_confirmed_comes_or_a_gap_is_told(
    make: Callable[[Path], BrokerServer], fate: str, tmp_path: Path
) -> None:
    """The server is killed while two planes publish 2,000 messages a second. It comes back with or without data."""
    with make(tmp_path) as server:
        rows = measure(server, server.url, fate, 0.5, 0.5, {"plane.hold": 0.5})
    check_rows(rows)
    assert rows["plain"]["gaps"] == 1
    if fate == "killed":
        assert rows["history"]["gaps"] == rows["history"]["missed"] == 0
    else:
        assert rows["history"]["gaps"] > 0


SUBSCRIBER = """
import json, os, sys
import gevent
from gmultisocket.backplane import Backplane

with Backplane(sys.argv[1]) as plane:
    subscription = plane.subscribe("a", 20, queue_size=1_000_000)
    plane.connect(20)
    events = []
    plane.on_event(lambda event: events.append(event.kind))
    print(os.getpid(), flush=True)
    numbers = []
    while True:
        content = subscription.recv(40)[1]
        if content == b"last":
            break
        if content == b"again?":
            print("again", flush=True)
        else:
            numbers.append(int(content[:10]))
    print(json.dumps([numbers, events, plane.counters.gaps]), flush=True)
"""


def test_a_process_that_stands_still_is_cut_off_and_has_one_gap(strict_server: tuple[BrokerServer, str]) -> None:
    """Its process is stopped until the server has cut it off, and then goes on."""
    server, logged = strict_server
    child = subprocess.Popen(
        [sys.executable, "-c", SUBSCRIBER, server.url], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        with Backplane(server.url) as plane:
            plane.connect(PATIENCE)
            pid = int(child.stdout.readline())
            os.kill(pid, signal.SIGSTOP)
            sent = 0
            while logged not in server.log():
                for _ in range(20):
                    plane.publish("a", b"%010d" % sent + bytes(50_000))
                    sent += 1
                plane.flush(PATIENCE)
            os.kill(pid, signal.SIGCONT)
            listening = gevent.spawn(child.stdout.readline)
            while not listening.ready():
                plane.publish("a", b"again?")
                gevent.sleep(0.01)
            plane.publish("a", b"last")
            while (line := child.stdout.readline()) == b"again\n":
                pass
            numbers, events, gaps = json.loads(line)
            assert numbers == [*range(len(numbers))]
            assert len(numbers) < sent
            assert events == ["down", "gap", "up"]
            assert gaps == 1
            plane.flush(PATIENCE)
            assert plane.counters.confirmed == plane.counters.sent
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
