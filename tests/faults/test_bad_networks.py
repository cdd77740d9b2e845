"""Slow, lossy of connections, cut into pieces: what a network does between two Sockets that are both well."""

from __future__ import annotations

import random
from typing import Any

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.testing import wait_until
from tests.faults.proxy import Proxy

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}


@pytest.mark.parametrize(
    "faults",
    [
        {"slice": 1},
        {"slice": 7, "slice_pause": 0.0001},
        {"latency": 0.05},
        {"bandwidth": 2_000_000},
        {"slow_close": 0.05},
    ],
    ids=str,
)
def test_messages_arrive_as_they_were_sent_by_whatever_way(faults: dict[str, Any]) -> None:
    """Contents of all sizes both ways, and everything that is queued when the sender closes."""
    generator = random.Random(7)
    largest = 300 if "slice" in faults else 20_000
    contents = [generator.randbytes(generator.randrange(largest)) for _ in range(50)]
    with Socket() as server, Proxy(server.listen("tcp://127.0.0.1:0")) as proxy, Socket() as client:
        for direction in (proxy.to_server, proxy.to_client):
            for name, value in faults.items():
                setattr(direction, name, value)
        client.dial(proxy.address)
        server.wait_pipes(1, timeout=5)
        for content in contents:
            client.send(content, timeout=10)
            server.send(content, timeout=10)
        assert [client.recv(timeout=10) for _ in contents] == contents
        assert client.close() == 0
        assert [server.recv(timeout=10) for _ in contents] == contents


def test_connections_that_are_cut_again_and_again_bring_no_message_twice_and_none_out_of_order() -> None:
    with Socket() as server, Proxy(server.listen("tcp://127.0.0.1:0")) as proxy, Socket(QUICKLY) as client:
        dialer = client.dial(proxy.address)
        received: list[int] = []

        def receive() -> None:
            for message in server:
                received.append(int(message.content.rstrip(b".")))

        receiver = gevent.spawn(receive)
        sent = 0
        for round in range(30):
            wait_until(lambda: client.pipes and proxy.connections)
            for _ in range(20):
                client.send(b"%d" % sent + b"." * 3000, timeout=10)
                sent += 1
            # Cut while some have arrived and others are on their way.
            wait_until(lambda sent=sent: received and received[-1] >= sent - 15)
            before = dialer.attempts
            (proxy.reset_all if round % 2 else proxy.cut_all)()
            wait_until(lambda before=before: dialer.attempts > before)
        wait_until(lambda: client.pipes and proxy.connections)
        client.send(b"%d" % sent, timeout=10)
        wait_until(lambda: received[-1] == sent)
        receiver.kill()
        assert dialer.reconnects == 30
    assert received == sorted(set(received))
    assert len(received) >= 30 * 5


def test_a_proxy_that_is_down_is_a_peer_that_comes_back() -> None:
    with Socket() as server, Proxy(server.listen("tcp://127.0.0.1:0")) as proxy, Socket(QUICKLY) as client:
        dialer = client.dial(proxy.address)
        for round in range(3):
            proxy.down()
            wait_until(lambda: not client.pipes and not server.pipes)
            before = dialer.attempts
            wait_until(lambda before=before: dialer.attempts >= before + 2)
            proxy.up()
            wait_until(lambda round=round: client.send_all(b"%d" % round) and server.queued)
            while server.queued:
                assert server.recv() == b"%d" % round


def test_a_peer_that_vanishes_without_a_word_is_missed_by_its_heartbeat() -> None:
    """Nothing arrives any more in either direction, and no connection ends."""
    beats = {"connector.pipe.heartbeat_interval": 0.1, **QUICKLY}
    with Socket() as server, Proxy(server.listen("tcp://127.0.0.1:0")) as proxy, Socket(beats) as client:
        dialer = client.dial(proxy.address)
        # Silent for longer than the interval: it has to answer, and does.
        wait_until(lambda: client.counters.bytes_received > 0)
        proxy.to_server.swallow = proxy.to_client.swallow = True
        wait_until(lambda: dialer.attempts >= 2, timeout=10)
        proxy.to_server.swallow = proxy.to_client.swallow = False
        proxy.cut_all()
        wait_until(lambda: client.send_all(b"found again") and server.queued)
        assert server.recv() == b"found again"
