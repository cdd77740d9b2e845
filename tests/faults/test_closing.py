"""Closing while something is going on: nothing is left behind, nobody waits for ever, and the place is free again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from gmultisocket import Socket
from gmultisocket.errors import Closed
from gmultisocket.testing import wait_until
from tests.faults.peers import crowd, listening, read_until_closed, stuck


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://*:0", "ipc://{}/socket", "ipc://@{}", "inproc://{}"])
def test_an_address_can_be_listened_to_again_as_soon_as_its_listener_is_closed(address: str, tmp_path: Path) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(address.format(tmp_path))
        gevent.sleep(0)
        for _ in range(3):
            listener.close()
            listener = server.listen(listener.address)
            client.dial(listener.address.replace("*", "127.0.0.1"))
        client.wait_pipes(3, timeout=5)


def test_closing_a_socket_that_looks_a_listeners_name_up_leaves_nothing_listening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up = Event()
    getaddrinfo = socket.getaddrinfo

    def slow(*arguments: Any) -> Any:
        looked_up.wait()
        return getaddrinfo(*arguments)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    server = Socket()
    listen = gevent.spawn(server.listen, "tcp://localhost:0")
    gevent.sleep(0)
    server.close()
    looked_up.set()
    with pytest.raises(Closed):
        listen.get(timeout=5)
    assert not server.listeners


def test_closing_a_socket_ends_a_dial_that_waits(tmp_path: Path) -> None:
    client = Socket()
    client.set_negotiator(lambda negotiation: negotiation.recv(1))
    with listening() as (silent, address):
        dial = gevent.spawn(client.dial, address)
        peer, _ = silent.accept()
        client.close()
        with pytest.raises(Closed):
            dial.get(timeout=5)
        assert peer.recv(1) == b""
        peer.close()


def test_closing_a_dialer_ends_a_dial_that_waits() -> None:
    with Socket() as client, listening() as (silent, address):
        client.set_negotiator(lambda negotiation: negotiation.recv(1))
        dial = gevent.spawn(client.dial, address)
        peer, _ = silent.accept()
        assert client.stop_dial(address) == 1
        with pytest.raises(Closed):
            dial.get(timeout=5)
        assert peer.recv(1) == b""
        assert not client.dialers
        peer.close()


@pytest.mark.parametrize("end", ["timeout", "kill"])
def test_a_dial_that_its_caller_gives_up_leaves_nothing(end: str) -> None:
    with Socket() as client, listening() as (silent, address):
        client.set_negotiator(lambda negotiation: negotiation.recv(1))

        def dial() -> None:
            with gevent.Timeout(0.05 if end == "timeout" else None):
                client.dial(address)

        caller = gevent.spawn(dial)
        peer, _ = silent.accept()
        if end == "kill":
            caller.kill()
        else:
            with pytest.raises(gevent.Timeout):
                caller.get()
        assert peer.recv(1) == b""
        assert not client.dialers and not client.pipes
        peer.close()


def test_twenty_closes_with_a_stuck_peer_leave_no_greenlet_behind() -> None:
    for _ in range(20):
        server = Socket()
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with stuck(listener):
            server.wait_pipes(1, timeout=5)
            for _ in range(10):
                server.send(bytes(65536), timeout=5)
            assert server.close(linger=0.001) > 0


@pytest.mark.parametrize("no_recv", [False, True])
def test_a_hundred_raw_peers_end_with_their_socket_though_nobody_receives(no_recv: bool) -> None:
    options = {"connector.pipe.raw": True, "socket.no_recv": no_recv, "socket.recv_queue_size": 1}
    with Socket(options) as server, crowd(server.listen("tcp://127.0.0.1:0"), 100) as peers:
        wait_until(lambda: len(server.pipes) == 100)
        for peer in peers:
            peer.sendall(b"raw bytes" * 100)
        wait_until(lambda: server.counters.drops.get("no_recv", 0) >= 200 if no_recv else server.queued)
        server.close()
        for peer in peers:
            assert read_until_closed(peer) == b""
