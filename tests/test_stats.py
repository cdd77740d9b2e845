"""The numbers of a whole process, by what its sockets are for."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gmultisocket import Pub, Pull, Push, Socket, Sub, stats
from gmultisocket.loop.lag import BUCKETS
from gmultisocket.protocol import ProtocolBase
from gmultisocket.stats import add_lags, add_up, log_stats, process_stats
from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from tests.addresses import plain_connection
from tests.faults.process import run_script


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """Other tests of this process have closed sockets."""
    gc.collect()
    stats._forget()
    yield
    stats._forget()


def groups() -> dict[tuple[str, str], dict[str, Any]]:
    return {(group["kind"], group["name"]): group for group in process_stats()["groups"]}


def exchange(count: int, name: str = "jobs") -> None:
    """Send some messages from a Push to a Pull, and close both."""
    with Push({"socket.name": name}) as push, Pull() as pull:
        push.dial(pull.listen("inproc://exchange").address)
        for _ in range(count):
            push.send(b"12345")
            assert pull.recv(5) == b"12345"


def test_sockets_of_a_kind_and_name_are_added_up() -> None:
    with Pub({"socket.name": "orders"}) as pub, Sub() as one, Sub() as two, Sub({"socket.name": "other"}) as other:
        address = pub.listen("inproc://orders").address
        for sub in (one, two, other):
            sub.dial(address)
            sub.subscribe("a", 5)
        pub.publish("a", b"")
        found = groups()
        assert list(found) == [("Pub", "orders"), ("Sub", ""), ("Sub", "other")]
        assert [group["sockets"] for group in found.values()] == [1, 2, 1]
        assert [group["pipes"] for group in found.values()] == [3, 2, 1]
        assert [group["subscriptions"] for group in found.values()] == [3, 2, 1]
        sent, received = found["Pub", "orders"]["messages_sent"], found["Sub", ""]["messages_received"]
        assert received + found["Sub", "other"]["messages_received"] == sent


def test_what_closed_sockets_have_counted_stays() -> None:
    exchange(3)
    first = groups()["Push", "jobs"]
    assert (first["sockets"], first["pipes"], first["messages_sent"], first["attempts"]) == (0, 0, 3, 1)
    # Also if it was never seen while it was open, and what is open is added.
    with Push({"socket.name": "jobs"}) as push, Pull() as pull:
        push.dial(pull.listen("inproc://more").address)
        push.send(b"")
        assert pull.recv(5) == b""
        second = groups()["Push", "jobs"]
        assert (second["sockets"], second["messages_sent"], second["bytes_sent"]) == (1, 4, 15)
    third = groups()["Push", "jobs"]
    assert (third["sockets"], third["messages_sent"]) == (0, 4)


def test_a_seen_socket_that_is_collected_leaves_its_counts() -> None:
    with Pull() as pull:
        push = Push({"socket.name": "jobs"})
        dialer = push.dial(pull.listen("inproc://collected").address)
        push.send(b"")
        assert pull.recv(5) == b""
        dialer.close()
        for pipe in [*pull.pipes.values()]:
            pipe.close()
        while push.pipes:
            gevent.sleep(0)
        assert groups()["Push", "jobs"]["sockets"] == 1
        del push, dialer, pipe
        gc.collect()
        for _ in range(2):
            left = groups()["Push", "jobs"]
            assert (left["sockets"], left["messages_sent"]) == (0, 1)


def test_drops_are_added_up_by_reason() -> None:
    with Socket({"socket.send_overflow": "drop_newest", "socket.send_queue_size": 4}) as sock:
        address = sock.listen("tcp://127.0.0.1:0").address
        with plain_connection(address), plain_connection(address):
            sock.wait_pipes(2, 5)
            while len([pipe for pipe in sock.pipes.values() if pipe.counters.drops]) < 2:
                sock.send_all(b"x" * 100_000)
            drops = groups()["Socket", ""]["drops"]
            assert drops == sock.counters.drops and drops["overflow"] >= 2


def test_processes_are_added_up() -> None:
    def report(*groups: dict[str, Any]) -> dict[str, Any]:
        return {"groups": groups}

    pub = {"kind": "Pub", "name": ""}
    one = {**pub, "messages_sent": 5, "pipes": 2, "longest_send_queue": 3, "drops": {"ttl": 1}}
    two = {**pub, "messages_sent": 7, "pipes": 0, "longest_send_queue": 2, "drops": {"ttl": 2, "x": 9}}
    ended = {**pub, "messages_sent": 1, "drops": {}}
    (found,) = add_up([report(one), report(two), report(ended)])
    assert (found["messages_sent"], found["pipes"], found["longest_send_queue"]) == (13, 2, 3)
    assert found["drops"] == {"ttl": 3, "x": 9} and found["bytes_sent"] == 0
    assert one["drops"] == {"ttl": 1}


def test_loops_are_added_up() -> None:
    one = {"count": 10, "sum": 0.5, "buckets": [[0.1, 7], [1.0, 9]], "max": 3}
    assert add_lags([]) is None and add_lags([None]) is None
    assert add_lags([one, None, one]) == {"count": 20, "sum": 1.0, "buckets": [[0.1, 14], [1.0, 18]]}


def test_the_loops_numbers_go_with_it() -> None:
    def lag() -> dict[str, Any]:
        found = process_stats()["loop_lag"]
        assert isinstance(found, dict)
        return found

    wait_until(lambda: lag()["count"] > 0)
    found = json.loads(json.dumps(lag()))
    assert [end for end, _ in found["buckets"]] == list(BUCKETS)
    assert found["count"] >= found["buckets"][-1][1] and found["max"] >= found["p99"] >= found["p50"]
    assert stats.loop_lag().looks >= found["count"]


def test_a_forked_child_begins_with_nothing() -> None:
    exchange(1)
    with Socket() as sock:
        sock.listen("tcp://127.0.0.1:0")
        assert len(groups()) == 3

        def in_child(report: int) -> None:
            assert process_stats()["groups"] == []

        in_forked_child(in_child)


def test_nothing_is_remembered_before_somebody_asks() -> None:
    run_script(
        """
import sys
from gmultisocket import Socket
with Socket() as sock:
    sock.listen("tcp://127.0.0.1:0")
assert "gmultisocket.stats" not in sys.modules and "gmultisocket.loop.lag" not in sys.modules
from gmultisocket.stats import process_stats
assert process_stats()["groups"] == []
with Socket() as sock:
    sock.listen("tcp://127.0.0.1:0")
assert [group["kind"] for group in process_stats()["groups"]] == ["Socket"]
assert "gevent.monkey" not in sys.modules
"""
    )


def test_the_numbers_of_a_protocol_of_the_program_are_added_up_while_it_is_open() -> None:
    class Queue(ProtocolBase):
        def _own_stats(self) -> dict[str, int]:
            return {"waiting": 2}

    with Queue() as one, Queue():
        assert one.stats()["waiting"] == 2
        assert groups()["Queue", ""]["waiting"] == 4
    assert "waiting" not in groups()["Queue", ""]


def test_a_protocol_that_waits_for_its_numbers_holds_up_nobody() -> None:
    waiting, go_on = Event(), Event()

    class Slow(ProtocolBase):
        def _own_stats(self) -> dict[str, int]:
            waiting.set()
            go_on.wait()
            return {}

    with Slow() as slow, Socket():
        first = gevent.spawn(process_stats)
        waiting.wait()
        second = gevent.spawn(process_stats)
        slow.close()
        go_on.set()
        for report in (first.get(5), second.get(5), process_stats()):
            found = {group["kind"]: group["sockets"] for group in report["groups"]}
            assert found == {"Slow": 0, "Socket": 1}


def test_threads_that_close_sockets_and_ask_meanwhile_count_each_one_once() -> None:
    hub = gevent.get_hub()
    asked = [hub.threadpool.spawn(lambda: [process_stats() for _ in range(100)]) for _ in range(2)]
    for _ in range(100):
        exchange(2)
    for each in asked:
        sent = [
            sum(group["messages_sent"] for group in report["groups"] if group["kind"] == "Push")
            for report in each.get()
        ]
        # A pipe that closes at this moment may be missing. Nothing is there twice, and nothing is lost.
        assert max(sent) <= 200
    assert groups()["Push", "jobs"]["messages_sent"] == 200


# The log


def test_a_line_says_what_has_happened_since_the_one_before(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gmultisocket.stats"), Pull({"socket.name": "in"}) as pull, Push() as push:
        push.dial(pull.listen("inproc://logged").address)
        push.send(b"before")
        assert pull.recv(5) == b"before"
        stop = log_stats(0.05)
        for _ in range(3):
            push.send(b"12345")
            assert pull.recv(5) == b"12345"

        def lines(name: str) -> list[Any]:
            return [record for record in caplog.records if record.getMessage().startswith(name)]

        wait_until(lambda: len(lines("Pull in: ")) >= 2 and lines("Push: "))
        stop()
        first, second = lines("Pull in: ")[:2]
        assert round(first.stats["rates"]["messages_received"] * first.stats["seconds"]) == 3
        assert round(first.stats["rates"]["bytes_received"] * first.stats["seconds"]) == 15
        assert second.stats["rates"]["messages_received"] == 0 and first.stats["messages_received"] == 4
        assert "1 pipes, 0 full; sent 0.0 msg/s" in first.getMessage() and "loop lag p99" in first.getMessage()
        assert first.name == "gmultisocket.stats" and first.levelno == logging.INFO
        json.dumps(first.stats)
    gevent.sleep(0)


def test_a_line_names_what_was_dropped(caplog: pytest.LogCaptureFixture) -> None:
    log = stats._StatsLog(logging.INFO)
    with caplog.at_level(logging.INFO, "gmultisocket.stats"), Socket() as sock:
        sock._receiver.counters.drop("ttl", 3)
        sock._receiver.counters.drop("closed", 1)
        log.write(60.0, 0.0)
        log.write(60.0, 0.0)
        wait_until(lambda: len(caplog.records) == 2)
    first, second = caplog.messages
    assert "dropped 1 closed, 3 ttl;" in first and "dropped" not in second


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_must_be_one(interval: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        log_stats(interval)
