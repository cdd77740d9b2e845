"""The numbers of sockets and pipes, as plain dicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import get_hub

from gmultisocket import Pub, Rep, Req, Socket, Stream, Sub
from gmultisocket.core.stats import slowest_pipes
from gmultisocket.errors import ConnectionFailed
from gmultisocket.testing import wait_until
from tests.addresses import plain_connection
from tests.peers import only_pipe

COUNTED = (
    "messages_sent",
    "bytes_sent",
    "messages_received",
    "bytes_received",
    "messages_unconfirmed",
    "bytes_unconfirmed",
    "drops",
)
FULL = {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 8}


@pytest.fixture
def server() -> Iterator[Socket]:
    with Socket({"socket.name": "front", **FULL}) as sock:
        yield sock


def counted(sock: Socket) -> dict[str, Any]:
    return {name: getattr(sock.counters, name) for name in COUNTED}


def chosen(stats: dict[str, Any], names: tuple[str, ...] = COUNTED) -> dict[str, Any]:
    return {name: stats[name] for name in names}


def fill(sock: Socket, pipe_id: int, size: int = 100_000) -> None:
    """Send to one pipe, whose peer does not read, until it drops messages."""
    pipe = sock.pipes[pipe_id]
    while not pipe.counters.drops:
        sock.send_to(pipe.path, b"x" * size)
        gevent.sleep(0)


def test_a_socket_and_its_pipe_say_what_the_counters_say(address: str) -> None:
    with Socket({"socket.name": "front"}) as server, Socket() as client:
        client.dial(server.listen(address).address)
        for _ in range(3):
            client.send(b"to the server")
        server.recv(timeout=5)
        wait_until(lambda: server.queued == 2)
        found = server.stats()
        assert (found["kind"], found["name"], found["pipes"], found["recv_queue"]) == ("Socket", "front", 1, 2)
        assert chosen(found) == counted(server) and found["messages_received"] == 3
        assert (found["dialers"], found["listeners"], found["accepted"], found["refused"]) == (0, 1, 1, 0)
        found = client.stats()
        assert (found["dialers"], found["listeners"], found["attempts"], found["reconnects"]) == (1, 0, 1, 0)
        pipe = only_pipe(client)
        numbers = pipe.stats()
        assert chosen(numbers) == chosen(found) == counted(client)
        assert (numbers["id"], numbers["dialed"], numbers["state"]) == (pipe.id, True, "open")
        assert numbers["peer_address"] == pipe.peer_address and numbers["local_address"] == pipe.local_address
        pipe.close()
        assert pipe.stats()["state"] == "closed" and pipe.stats()["unacknowledged"] == 0
        json.dumps([server.stats(), client.stats(), numbers])


def test_queues_drops_and_full_pipes(server: Socket) -> None:
    address = server.listen("tcp://127.0.0.1:0").address
    with plain_connection(address), plain_connection(address):
        server.wait_pipes(2, 5)
        stuck, idle = server.pipes.values()
        fill(server, stuck.id)
        found, numbers = server.stats(), stuck.stats()
        assert found["full_pipes"] == 1 and numbers["full"] and not idle.stats()["full"]
        assert found["send_queue"] == found["longest_send_queue"] == numbers["send_queue"] == stuck.queued >= 8
        # The queue, and the rest of a frame of which the kernel has taken a part.
        assert found["send_queue_bytes"] == numbers["send_queue_bytes"] == stuck.queued_bytes
        assert 8 * 100_000 < stuck.queued_bytes <= stuck.queued * 100_100
        assert numbers["unacknowledged"] > 0 == idle.stats()["unacknowledged"]
        assert found["drops"] == numbers["drops"] == {"overflow": 1}
        assert slowest_pipes(server.pipes, 5) == [stuck]


def test_the_bytes_that_wait_for_a_peer_in_this_process() -> None:
    with Socket({"socket.recv_queue_size": 1}) as server, Socket() as client:
        client.dial(server.listen("inproc://numbers").address)
        for _ in range(4):
            client.send(b"12345")
        assert (client.stats()["send_queue"], client.stats()["send_queue_bytes"]) == (3, 15)
        for _ in range(4):
            server.recv(timeout=5)
        assert (client.stats()["send_queue"], client.stats()["send_queue_bytes"]) == (0, 0)


def test_a_pipe_in_step_has_what_its_fan_out_has(server: Socket) -> None:
    with Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        server.wait_pipes(1, 5)
        server.send_all(b"at once")
        gevent.sleep(0)
        server.send_all(b"at once")
        server.send_all(b"later")
        server.send_all(b"later")
        assert (server.stats()["send_queue"], server.stats()["send_queue_bytes"]) == (2, 2 * (8 + 5))
        assert [client.recv(timeout=5) for _ in range(4)][-1] == b"later"
        assert (server.stats()["send_queue"], server.stats()["send_queue_bytes"]) == (0, 0)


def test_what_closed_dialers_and_listeners_have_counted_stays() -> None:
    with Socket() as server, Socket({"connector.dialer.min_reconnect_time": 0.01}) as client:
        listener = server.listen("tcp://127.0.0.1:0")
        client.dial(listener.address)
        server.wait_pipes(1, 5)
        only_pipe(server).close()
        wait_until(lambda: client.reconnects == 1)
        wait_until(lambda: server.stats()["accepted"] == 2)
        attempts = client.stats()["attempts"]
        client.stop_dial(listener.address)
        listener.close()
        assert (client.reconnects, client.stats()["reconnects"], client.stats()["attempts"]) == (0, 1, attempts)
        assert (server.stats()["listeners"], server.stats()["accepted"]) == (0, 2)
        with pytest.raises(ConnectionFailed):
            client.dial(listener.address)
        assert client.stats()["attempts"] == attempts + 1 and client.stats()["dialers"] == 0


def test_a_refused_peer_is_counted() -> None:
    with Socket({"connector.pipe_limit": 1, "connector.listener.over_limit": "refuse"}) as server, ExitStack() as stack:
        address = server.listen("tcp://127.0.0.1:0").address
        for _ in range(3):
            stack.enter_context(plain_connection(address))
        wait_until(lambda: server.stats()["refused"] == 2)
        assert server.stats()["accepted"] == 3


def test_messages_that_wait_for_any_peer_are_in_the_send_queue() -> None:
    with Socket() as server, Socket() as client:
        dialer = client.dial(server.listen("tcp://127.0.0.1:0").address)
        client.wait_pipes(1, 5)
        dialer.close()
        pipe = only_pipe(client)
        for _ in range(3):
            client.send(b"12345")
        # The first has left, the others are in the queue until the turn ends.
        pipe.close()
        assert (client.stats()["pipes"], client.stats()["send_queue"], client.stats()["send_queue_bytes"]) == (0, 2, 10)
        client.close(0)


def test_any_thread_may_ask(server: Socket) -> None:
    with Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"
        wait_until(lambda: server.stats()["loop_lag"])
        here, there = server.stats(), get_hub().threadpool.apply(server.stats)
        assert {**here, "loop_lag": 0} == {**there, "loop_lag": 0}
        assert set(there["loop_lag"]) == {"last", "p50", "p99", "max"}


def test_the_pipes_that_are_most_behind_come_first() -> None:
    class Behind(SimpleNamespace):
        closed = False

    behind = [(0, 5), (7, 0), (0, 0), (0, 90), (7, 3), (1, 10**6)]
    pipes: Any = {number: Behind(id=number, queued=one, unacknowledged=two) for number, (one, two) in enumerate(behind)}
    assert [pipe.id for pipe in slowest_pipes(pipes, 10)] == [4, 1, 5, 3, 0]
    assert [pipe.id for pipe in slowest_pipes(pipes, 2)] == [4, 1]
    pipes[4].closed = True
    assert [pipe.id for pipe in slowest_pipes(pipes, 2)] == [1, 5]
    many: Any = {number: Behind(id=number, queued=number, unacknowledged=0) for number in range(5000)}
    others_ran = []
    gevent.spawn(others_ran.append, True)
    assert [pipe.id for pipe in slowest_pipes(many, 3)] == [4999, 4998, 4997] and others_ran


def test_each_protocol_adds_what_it_has() -> None:
    with Pub() as pub, Sub() as sub:
        sub.dial(pub.listen("inproc://pub").address)
        sub.subscribe("a", 5)
        sub.subscribe("b", 5)
        for each in (pub, sub):
            assert (each.stats()["kind"], each.stats()["subscriptions"]) == (type(each).__name__, 2)
        assert pub.socket.stats()["kind"] == "Socket" and "subscriptions" not in pub.socket.stats()
    going_on = gevent.event.Event()
    with Rep(lambda content: going_on.wait() and b"", concurrency=2) as rep, Req() as req:
        req.dial(rep.listen("inproc://rep").address)
        rep.start()
        requests = [req.request_async(b""), req.request_async(b"")]
        wait_until(lambda: rep.stats()["running"] == 2)
        assert req.stats()["in_flight"] == 2
        going_on.set()
        for request in requests:
            request.get(5)
        assert req.stats()["in_flight"] == 0
    with Stream() as one, Stream() as other:
        one.dial(other.listen("inproc://stream").address)
        with one.connect(5):
            assert (one.stats()["connections"], other.stats()["connections"]) == (1, 1)
