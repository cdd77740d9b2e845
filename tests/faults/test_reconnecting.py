"""Losing peers and finding them again: hostile ones, refusing ones, a thousand at once, and places under a limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from gevent import socket

from gmultisocket import Dialer, Negotiation, Socket
from gmultisocket.errors import AddressInUse, ConnectionRefused
from gmultisocket.testing import wait_until
from tests.certificates import dial_options, listen_options
from tests.faults.peers import connected, crowd, frame, free_port, listening, read_until_closed, reset
from tests.faults.process import many_descriptors, needs, run_script

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.1}


def test_without_a_pipe_limit_no_dialer_hears_of_other_peoples_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Dialer] = []
    monkeypatch.setattr(Dialer, "_place_free", told.append)
    with Socket() as server, Socket(QUICKLY) as client:
        listener = server.listen("tcp://127.0.0.1:0")
        for _ in range(20):
            client.dial(listener.address)
        for pipe_id in list(client.pipes):
            client.close_pipe(pipe_id)
        wait_until(lambda: client.reconnects == 20)
    assert not told


MEETS_ITSELF = """
import fcntl, struct
from gevent import socket
from gmultisocket import Socket
from gmultisocket.errors import ConnectionRefused

with socket.socket() as sock:  # the loopback of this network namespace goes up
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 1))
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as ports:
    ports.write("20001 20001")
with Socket() as client:
    for attempt in range(3):
        try:
            client.dial("tcp://127.0.0.1:20001")
        except ConnectionRefused:
            print("refused", len(client.pipes))
    client.listen("tcp://127.0.0.1:20001")
"""


@needs("unshare -rn true")
def test_a_dialer_does_not_take_itself_for_its_peer() -> None:
    """Where the port that nobody listens to is the one that the kernel chooses for the dialing end."""
    assert run_script(MEETS_ITSELF, wrapper=("unshare", "-rn")) == "refused 0\n" * 3


def reset_at_once(silent: socket.socket) -> None:
    """Accept every peer, and reset the connection before it is used (a greenlet)."""
    while True:
        reset(silent.accept()[0])


def test_peers_that_accept_and_reset_lose_no_dialer() -> None:
    """300 dialers go on dialing, and all of them are there when the peer is a real one at last."""
    options = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.2}
    with Socket() as server, Socket({**options, "connector.dialer.dial_async": True}) as client, many_descriptors(1500):
        with listening(free_port()) as (silent, address):
            hostile = gevent.spawn(reset_at_once, silent)
            dialers = [client.dial(address) for _ in range(300)]
            wait_until(lambda: all(dialer.attempts >= 4 for dialer in dialers), timeout=20)
            hostile.kill()
        server.listen(address)
        client.wait_pipes(300, timeout=20)
        server.wait_pipes(300, timeout=20)
        assert all(dialer.pipe for dialer in dialers)


def hang_up(silent: socket.socket) -> None:
    """Accept every peer, and close the connection in order (a greenlet)."""
    while True:
        silent.accept()[0].close()


@pytest.mark.parametrize("peer", [reset_at_once, hang_up, "a listener over its limit"])
def test_a_peer_that_lets_in_and_throws_out_is_dialed_as_rarely_as_one_that_is_not_there(
    peer: Callable[[socket.socket], None] | str,
) -> None:
    """A connection alone does not make the pauses short again: some 100 attempts to 12 if it did."""
    options = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.dial_async": True}
    with ExitStack() as stack:
        client = stack.enter_context(Socket(options))
        if isinstance(peer, str):
            full = stack.enter_context(Socket({"connector.pipe_limit": 1}))
            address = full.listen("tcp://127.0.0.1:0", {"connector.listener.over_limit": "refuse"}).address
            stack.enter_context(connected(address))
            full.wait_pipes(1, timeout=5)
        else:
            silent, address = stack.enter_context(listening())
            stack.callback(gevent.spawn(peer, silent).kill)
        throws_out = client.dial(address)
        not_there = client.dial(f"tcp://127.0.0.1:{free_port()}")
        wait_until(lambda: not_there.attempts >= 12, timeout=30)
        assert 3 <= throws_out.attempts <= 36


def test_a_peer_that_sends_something_makes_the_pauses_short_again() -> None:
    options = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 60.0}
    with Socket(options) as client, listening() as (silent, address):
        dialer = client.dial(address)
        # With pauses that grow by a factor of 1.1 at least, this would take minutes.
        for number in range(60):
            peer, _ = silent.accept()
            peer.sendall(frame(b"%d" % number))
            assert client.recv(timeout=5) == b"%d" % number
            peer.close()
        wait_until(lambda: dialer.reconnects >= 59)


@pytest.mark.parametrize("scheme", ["tcp", "ipc", "inproc", "ws", "wss", "tls+tcp"])
def test_a_dialer_finds_a_listener_that_has_started_anew(scheme: str, tmp_path: Path) -> None:
    address = {
        "tcp": f"tcp://127.0.0.1:{free_port()}",
        "ipc": f"ipc://{tmp_path}/socket",
        "inproc": "inproc://restarting",
    }.get(scheme, f"{scheme}://127.0.0.1:{free_port()}")
    secure = scheme in ("wss", "tls+tcp")
    with Socket(QUICKLY) as client:
        for round in range(5):
            with Socket() as server:
                server.listen(address, listen_options() if secure else None)
                if not client.dialers:
                    client.dial(address, dial_options() if secure else None)
                client.wait_pipes(1, timeout=5)
                client.send(b"%d" % round, timeout=5)
                assert server.recv(timeout=5) == b"%d" % round
                server.send_all(b"answer")
                assert client.recv(timeout=5) == b"answer"
            wait_until(lambda: not client.pipes)
        assert client.reconnects == 4
        assert client.send_all(b"nobody") == 0


@pytest.mark.timeout(150)
def test_a_thousand_peers_find_a_listener_that_has_started_anew() -> None:
    options = {"connector.dialer.min_reconnect_time": 0.05, "connector.dialer.max_reconnect_time": 0.5}
    address = f"tcp://127.0.0.1:{free_port()}"
    with many_descriptors(2500), Socket(options) as client:
        for _ in range(2):
            with Socket() as server:
                server.listen(address)
                while len(client.dialers) < 1000:
                    client.dial(address)
                server.wait_pipes(1000, timeout=60)
                client.wait_pipes(1000, timeout=60)
                assert server.send_all(b"welcome") == 1000
                assert [client.recv(timeout=20) for _ in range(1000)] == [b"welcome"] * 1000
            wait_until(lambda: not client.pipes, timeout=60)
        assert client.reconnects == 1000


def test_over_the_pipe_limit_peers_wait_in_the_backlog_and_are_let_in_one_by_one() -> None:
    with Socket({"connector.pipe_limit": 1}) as server, ExitStack() as stack:
        address = server.listen("tcp://127.0.0.1:0").address
        clients = [stack.enter_context(Socket()) for _ in range(4)]
        for number, client in enumerate(clients):
            client.dial(address)
            client.send(b"%d" % number)
        for number, client in enumerate(clients):
            assert server.recv(timeout=5) == b"%d" % number
            assert len(server.pipes) == 1 and not server.queued
            [dialer] = client.dialers
            assert dialer.attempts == 1
            client.close()


def test_a_dial_that_fails_leaves_no_dialer_and_a_listen_that_fails_no_listener() -> None:
    with Socket(QUICKLY) as sock, listening() as (_, taken):
        nobody = f"tcp://127.0.0.1:{free_port()}"
        with pytest.raises(ConnectionRefused):
            sock.dial(nobody)
        with pytest.raises(AddressInUse):
            sock.listen(taken)
        assert sock.dialers == () and sock.listeners == ()
        # And nothing goes on trying behind our back.
        port = int(nobody.rpartition(":")[2])
        with listening(port) as (silent, _):
            silent.settimeout(0.1)
            with pytest.raises(TimeoutError):
                silent.accept()
        sock.dial(sock.listen("tcp://127.0.0.1:0").address)


def test_a_stopped_dialer_dials_no_more_whatever_it_was_doing() -> None:
    with Socket(QUICKLY) as client, listening() as (silent, address):
        paused = client.dial(address)
        silent.accept()[0].close()
        wait_until(lambda: paused.state.value == "paused")
        paused.close()
        pending = client.dial(address, {"connector.dialer.dial_async": True})
        pending.close()
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent.accept()
        assert not client.pipes and not client.dialers


def test_closing_while_connections_come_and_go_leaves_nothing_and_raises_nothing() -> None:
    """A hundred times: peers that are just let in, and dialers that just get in, when the socket closes."""
    for number in range(100):
        server = Socket()
        address = server.listen("tcp://127.0.0.1:0").address
        with Socket({**QUICKLY, "connector.dialer.dial_async": True}) as client:
            for _ in range(5):
                client.dial(address)
            for _ in range(number % 20):
                gevent.sleep(0)
            server.close()
        assert not server.pipes and not client.pipes


def test_a_silent_peer_in_a_negotiation_holds_up_nobody() -> None:
    with Socket() as server, Socket() as client:
        server.set_negotiator(lambda negotiation: negotiation.recv(1))
        client.set_negotiator(lambda negotiation: negotiation.send(b"x"))
        listener = server.listen("tcp://127.0.0.1:0", {"connector.pipe.negotiate_timeout": 30.0})
        with crowd(listener, 20):
            client.dial(listener.address)
            server.wait_pipes(1, timeout=5)
            client.send(b"not held up")
            assert server.recv(timeout=5) == b"not held up"
            server.listen("inproc://another-listener")
            server.close()


def test_a_refused_peer_is_closed_and_no_descriptor_stays() -> None:
    def refuse(negotiation: Negotiation) -> None:
        negotiation.refuse("not you")

    with Socket() as server:
        server.set_negotiator(refuse)
        listener = server.listen("tcp://127.0.0.1:0")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            with connected(listener) as peer:
                assert read_until_closed(peer) == b""
        wait_until(lambda: listener.refused == 100)
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert not server.pipes


def test_a_descriptor_that_is_used_again_belongs_to_its_new_connection_only() -> None:
    """The number of a closed connection is the next one's: nothing of the old pipe may touch that."""
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://127.0.0.1:0").address
        numbers = set()
        for round in range(50):
            client.dial(address, {"connector.dialer.reconnect": False})
            server.wait_pipes(1, timeout=5)
            [pipe] = client.pipes.values()
            numbers.add(pipe._connection._sock.fileno())  # type: ignore[attr-defined]
            client.send(b"first %d" % round)
            pipe.close()
            # In the same turn of the loop: what is left of the old one is still being cleaned up.
            client.dial(address, {"connector.dialer.reconnect": False})
            client.send(b"second %d" % round)
            pipe.close()
            pipe._connection.close()
            wait_until(lambda: server.queued == 2)
            assert {server.recv(), server.recv()} == {b"first %d" % round, b"second %d" % round}
            for pipe_id in list(client.pipes):
                client.close_pipe(pipe_id)
            wait_until(lambda: not server.pipes)
        assert len(numbers) < 50
