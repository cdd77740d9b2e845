"""Slow peers and peers that do not read for a while are kept, stopped and vanished ones are cut: on every transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gevent
import pytest
from gevent import Greenlet
from websockets.frames import Opcode

from gmultisocket import Message, Pipe, Rep, Req, Socket
from gmultisocket.core.connecting import vanished
from gmultisocket.core.pipes import bytespipe
from gmultisocket.testing import wait_until
from gmultisocket.wire import INTERNAL, encode
from tests.faults.peers import connected, frame, stuck
from tests.faults.process import needs, run_script, spawn_script
from tests.faults.proxy import Proxy
from tests.faults.test_stopped_peers import stopped
from tests.peers import only_pipe
from tests.transport.wspeers import frame as ws_frame
from tests.transport.wspeers import upgraded

INTERVAL = 0.25
LIMIT = 2 * INTERVAL
BEATS = {"connector.pipe.heartbeat_interval": INTERVAL}
PING, PONG = (encode(Message(INTERNAL, ttl=1, content=kind)) for kind in (b"\1", b"\2"))


def several_limits() -> None:
    """Wait as long as it takes to cut a silent peer, on this loop's own clock."""
    for _ in range(60):
        gevent.sleep(LIMIT / 20)


@contextmanager
def running(function: Callable[[], object]) -> Iterator[None]:
    greenlet = Greenlet.spawn(function)
    try:
        yield
    finally:
        greenlet.kill()


def dialed(address: str, listener_address: str) -> str:
    """Return the address of a listener with the options that its transport's dialers need."""
    return listener_address + address[len(address.partition("?")[0]) :].partition("#")[0]


def skip_inproc(address: str) -> None:
    if address.startswith("inproc:"):
        pytest.skip("peers of the same process send no heartbeats")


def has_answered_a_ping(pipe: Pipe) -> bool:
    return pipe.counters.bytes_received > 0


# Slow links


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_a_peer_on_a_slow_link_that_reads_steadily_is_not_cut(transport: str, new_address: Callable[[], str]) -> None:
    """A ping to it waits behind 1.5 MB in the kernel, for longer than a silent peer may be silent."""
    options = {**BEATS, "connector.dialer.reconnect": False}
    with Socket(options) as server:
        listener = server.listen(new_address())
        with Proxy(listener, room=16384) as proxy, Socket(options) as client:
            proxy.to_client.bandwidth = 1_000_000
            client.dial(proxy.address_of(listener))
            server.wait_pipes(1, timeout=5)
            pipe = only_pipe(server)
            wait_until(lambda: has_answered_a_ping(pipe))
            for number in range(15):
                server.send(b"%d." % number + bytes(100_000))
            for number in range(15):
                assert client.recv(timeout=20).startswith(b"%d." % number)
            several_limits()
            assert not pipe.closed
            assert not only_pipe(client).closed


def test_a_peer_that_takes_what_waits_for_it_is_not_cut_though_it_never_answers() -> None:
    """It may have much to read before it sees a ping that has arrived in its kernel."""
    options = {**BEATS, "socket.send_queue_size": 2, "transport.tcp.write_buffer": 200_000}
    with Socket(options) as server, stuck(server.listen("tcp://127.0.0.1:0"), room=200_000) as [peer]:
        assert peer.recv(100) == PING
        peer.sendall(PONG)
        pipe = only_pipe(server)
        with running(lambda: [server.send_all(bytes(100_000)) for _ in range(1000)]):
            wait_until(lambda: pipe.full)
            for _ in range(100):
                peer.recv(60_000)
                gevent.sleep(0.02)
            assert not pipe.closed
            # It stops to read.
            wait_until(lambda: pipe.closed, timeout=20)
        server.close(linger=0)


# Held up by its own queue


def sends_many_jobs(boss: Socket) -> None:
    for number in range(1000):
        boss.send(b"%d." % number + bytes(10_000))


def test_a_peer_whose_own_queue_is_full_is_not_cut(address: str) -> None:
    """It reads nothing, no ping either."""
    skip_inproc(address)
    with Socket({**BEATS, "socket.recv_queue_size": 1}) as worker, Socket(BEATS) as boss:
        boss.dial(dialed(address, worker.listen(address).address))
        worker.wait_pipes(1, timeout=5)
        pipe = only_pipe(boss)
        wait_until(lambda: has_answered_a_ping(pipe))
        with running(lambda: sends_many_jobs(boss)):
            wait_until(lambda: pipe.full)
            # A job takes long.
            several_limits()
            assert not pipe.closed
            for number in range(1000):
                assert worker.recv(timeout=5).startswith(b"%d." % number)
        assert only_pipe(boss) is pipe and only_pipe(worker)


@pytest.mark.parametrize("transport", ["tcp", "ws"])
def test_a_peer_with_a_full_queue_and_without_heartbeats_shows_that_it_lives(
    transport: str, new_address: Callable[[], str]
) -> None:
    """Once a second, to those whose pings it has answered before."""
    beats = {"connector.pipe.heartbeat_interval": 1.5, "connector.dialer.reconnect": False}
    with Socket({"transport.ws.ping_interval": 0.0, "socket.recv_queue_size": 1}) as worker, Socket(beats) as boss:
        boss.dial(worker.listen(new_address()).address)
        worker.wait_pipes(1, timeout=5)
        pipe = only_pipe(boss)
        wait_until(lambda: has_answered_a_ping(pipe))
        with running(lambda: sends_many_jobs(boss)):
            wait_until(lambda: pipe.full)
            for _ in range(3):
                several_limits()
            assert not pipe.closed
        boss.close(linger=0)


def test_a_rep_whose_handler_takes_longer_than_the_keepalive_loses_no_peer(address: str) -> None:
    skip_inproc(address)

    def handler(request: bytes) -> bytes:
        if request.startswith(b"0."):
            several_limits()
        return request[:10]

    with Rep(handler, {**BEATS, "socket.recv_queue_size": 1}) as rep, Req(BEATS) as req:
        rep.start()
        req.dial(dialed(address, rep.listen(address).address))
        rep.wait_pipes(1, timeout=5)
        (pipe,) = req.pipes.values()
        wait_until(lambda: has_answered_a_ping(pipe))
        # More than two, so that the queue of the Rep is full.
        requests = [req.request_async(b"%d." % number + bytes(60_000)) for number in range(20)]
        replies = [request.get(timeout=30) for request in requests]
        assert [reply.partition(b".")[0] for reply in replies] == [b"%d" % number for number in range(20)]
        assert not pipe.closed


def test_a_side_that_does_not_read_shows_that_it_lives_to_those_who_want_to_know_it() -> None:
    with Socket({**BEATS, "socket.recv_queue_size": 1}) as server:
        listener = server.listen("tcp://127.0.0.1:0")
        with connected(listener) as pinging, connected(listener) as plain:
            for peer in (pinging, plain):
                assert peer.recv(100) == PING
            pinging.sendall(PING)
            assert pinging.recv(100) == PONG
            for peer in (pinging, plain):
                peer.sendall(frame(b"job") * 5000)
            for _ in range(3):
                # The bytes of a pong that was asked for; a Go peer drops them, and this one is no Go peer.
                assert pinging.recv(len(PONG)) == PONG
            # Nobody else gets one.
            plain.settimeout(LIMIT)
            with pytest.raises(TimeoutError):
                plain.recv(1)


def test_pongs_to_a_peer_that_does_not_read_them_do_not_pile_up() -> None:
    options = {**BEATS, "socket.recv_queue_size": 1}
    with Socket(options) as server, stuck(server.listen("tcp://127.0.0.1:0"), room=4096) as [peer]:
        assert peer.recv(100) == PING
        peer.sendall(PING)
        assert peer.recv(100) == PONG
        pipe = only_pipe(server)
        with running(lambda: [server.send_all(bytes(100_000)) for _ in range(1000)]):
            wait_until(lambda: pipe.full)
            peer.sendall(frame(b"job") * 5000)
            wait_until(lambda: pipe._reading_paused)
            before = pipe.queued
            several_limits()
            assert pipe.queued == before and not pipe.closed
        server.close(linger=0)


def test_pongs_that_nobody_asked_for_are_websocket_pongs_on_a_websocket() -> None:
    options = {"transport.ws.ping_interval": 0.1, "transport.ws.ping_timeout": 60.0, "socket.recv_queue_size": 1}
    with Socket(options) as server, upgraded(server.listen("ws://127.0.0.1:0").address) as peer:
        peer.send(ws_frame(Opcode.BINARY, encode(Message(content=b"job"))) * 5000)
        wait_until(lambda: only_pipe(server)._reading_paused)
        while peer.read_frame().opcode is not Opcode.PONG:
            pass
        assert peer.read_frame().opcode is Opcode.PONG


def test_what_a_peer_had_sent_before_it_left_is_not_lost_by_the_pongs_to_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that cannot be written to is given up if nothing is received for some seconds."""
    skip_inproc(address)
    monkeypatch.setattr(bytespipe, "DRAIN_TIMEOUT", 0.1)
    with Socket({**BEATS, "socket.recv_queue_size": 1}) as worker, Socket(BEATS) as boss:
        boss.dial(dialed(address, worker.listen(address).address), {"connector.dialer.reconnect": False})
        worker.wait_pipes(1, timeout=5)
        wait_until(lambda: has_answered_a_ping(only_pipe(boss)))
        wait_until(lambda: only_pipe(worker)._can_pong())
        for number in range(20):
            boss.send(b"%d." % number + bytes(1000))
        boss.close()
        several_limits()
        assert [worker.recv(timeout=5).split(b".")[0] for _ in range(20)] == [b"%d" % number for number in range(20)]


# Stopped

WORKER = """
import sys
from gmultisocket import Socket

with Socket({"connector.pipe.heartbeat_interval": 0.25}) as sock:
    sock.dial(sys.argv[1], {"connector.dialer.reconnect": False})
    sock.send(b"hello")
    for message in sock:
        pass
"""


@pytest.mark.parametrize("scheme", ["tcp", "ws", "ipc"])
@pytest.mark.parametrize("traffic", ["none", "a trickle", "a burst", "a flood"])
def test_a_stopped_peer_is_cut_whatever_its_kernel_still_takes(scheme: str, traffic: str, tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/socket" if scheme == "ipc" else f"{scheme}://127.0.0.1:0"

    def send() -> None:
        if traffic == "a burst":
            for _ in range(10):
                server.send_all(bytes(100_000))
        while traffic in ("a trickle", "a flood"):
            server.send_all(bytes(10 if traffic == "a trickle" else 100_000))
            gevent.sleep(0.01)

    with Socket(BEATS) as server, spawn_script(WORKER, server.listen(where).address) as process:
        assert server.recv(timeout=30) == b"hello"
        pipe = only_pipe(server)
        wait_until(lambda: pipe.counters.messages_received == 1 and pipe._can_pong())
        with running(send), stopped(process):
            wait_until(lambda: pipe.closed, timeout=20)
        assert "silent" in pipe.reason
        server.close(linger=0)


def test_a_peer_that_has_answered_and_then_never_reads_again_is_cut() -> None:
    with Socket(BEATS) as server, stuck(server.listen("tcp://127.0.0.1:0"), room=4096) as [peer]:
        assert peer.recv(100) == PING
        peer.sendall(PONG)
        pipe = only_pipe(server)
        with running(lambda: [server.send_all(bytes(100_000)) for _ in range(100)]):
            wait_until(lambda: pipe.closed, timeout=20)
        assert "silent" in pipe.reason
        server.close(linger=0)


# Vanished


@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
@pytest.mark.parametrize("asks", [False, True], ids=["sending", "asking"])
def test_a_peer_is_missed_that_was_never_idle_before_it_vanished(
    transport: str, asks: bool, new_address: Callable[[], str]
) -> None:
    def traffic() -> None:
        while True:
            client.send_all(b"x")
            if asks:
                client.recv()
            gevent.sleep(0.01)

    def answer() -> None:
        while True:
            message = server.recv_msg()
            if asks:
                server.send_to(message.source, b"y")

    options = {**BEATS, "connector.dialer.reconnect": False}
    with Socket(options) as server, Socket(options) as client, ExitStack() as stack:
        listener = server.listen(new_address())
        proxy = stack.enter_context(Proxy(listener))
        client.dial(proxy.address_of(listener))
        server.wait_pipes(1, timeout=5)
        pipes = only_pipe(client), only_pipe(server)
        with running(traffic), running(answer):
            wait_until(lambda: pipes[1].counters.messages_received > 20)
            proxy.to_server.swallow = proxy.to_client.swallow = True
            wait_until(lambda: all(pipe.closed for pipe in pipes), timeout=20)
        assert all("silent" in pipe.reason for pipe in pipes)
        client.close(linger=0)
        server.close(linger=0)


def test_a_peer_is_asked_once_when_its_pipe_has_opened_and_only_with_heartbeats() -> None:
    """These bytes: a Go peer drops them unread. A raw peer gets nothing."""
    hour = {"connector.pipe.heartbeat_interval": 3600.0}
    with Socket() as server:
        with connected(server.listen("tcp://127.0.0.1:0", hour)) as peer:
            assert peer.recv(100) == bytes.fromhex("040100000000000101")
            server.send_all(b"x")
            assert peer.recv(100) == encode(Message(0x01, content=b"x"))
        wait_until(lambda: not server.pipes)
        for options in ({}, {**hour, "connector.pipe.raw": True}):
            with connected(server.listen("tcp://127.0.0.1:0", options)) as peer:
                wait_until(lambda: server.pipes)
                wait_until(lambda: not server._connector._heartbeat._unasked)
                server.send_all(b"only this")
                assert peer.recv(100).endswith(b"only this") and only_pipe(server).counters.messages_sent == 1
            wait_until(lambda: not server.pipes)


#: Runs in a network of its own, which ends in the middle of the traffic. Prints the reasons for which pipes closed.
VANISHES = """
import json, subprocess, sys
import gevent
from gmultisocket import Socket
from gmultisocket.core.connecting import vanished

vanished._STEP = 0.2
options, traffic = json.loads(sys.argv[1])
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server, client = Socket(options), Socket(options)
client.dial(server.listen("tcp://127.0.0.1:0").address, {"connector.dialer.reconnect": False})
server.wait_pipes(1, timeout=10)
pipes = [*server.pipes.values(), *client.pipes.values()]

def send(sock):
    while traffic:
        sock.send_all(b"x" * 100)
        gevent.sleep(0.01)

def receive(sock):
    while True:
        sock.recv()

for sock in (server, client):
    gevent.spawn(receive, sock)
    gevent.spawn(send, sock)
while traffic and not all(pipe.counters.messages_received > 20 for pipe in pipes):
    gevent.sleep(0.01)
for sock in (server, client):
    for _ in range(5):
        sock.send_all(b"x" * 100)
gevent.sleep(0.5)
assert not any(pipe.closed for pipe in pipes)
subprocess.run(["iptables", "-A", "INPUT", "-i", "lo", "-j", "DROP"], check=True)
with gevent.Timeout(35):
    while not all(pipe.closed for pipe in pipes):
        gevent.sleep(0.01)
for pipe in pipes:
    counters = pipe.counters
    print(json.dumps([pipe.reason, counters.messages_unconfirmed, counters.bytes_unconfirmed]))
server.close(linger=0)
client.close(linger=0)
"""


def vanish(options: dict[str, float], traffic: bool) -> list[tuple[str, int, int]]:
    arguments = json.dumps([options, traffic])
    printed = run_script(VANISHES, arguments, wrapper=("unshare", "-rn"))
    return [tuple(json.loads(line)) for line in printed.splitlines()]


@needs("unshare -rn iptables -L -n", "unshare -rn ip link")
def test_a_peer_is_missed_when_its_network_ends_in_the_middle_of_the_traffic() -> None:
    for reason, messages, size in vanish(BEATS, True):
        assert "silent" in reason
        # Some 0.5 s of it was on its way, at 108 bytes a message.
        assert 1 < messages < 1000 and size > 108


@needs("unshare -rn iptables -L -n", "unshare -rn ip link")
def test_a_ping_to_a_vanished_peer_is_not_counted_as_a_message() -> None:
    for reason, messages, size in vanish(BEATS, False):
        assert "silent" in reason
        assert (messages, size > 0) == (0, True)


@needs("unshare -rn iptables -L -n", "unshare -rn ip link")
def test_without_heartbeats_data_that_is_on_its_way_delays_nothing() -> None:
    """The kernel alone looks for such peers only while nothing is on its way: then it takes 15 minutes."""
    keepalive = {f"transport.tcp.keep_alive_{name}": 1 for name in ("period", "interval", "probes")}
    for reason, messages, _ in vanish(keepalive, True):
        assert "acknowledged nothing" in reason and messages > 1


def test_without_heartbeats_a_peer_that_only_does_not_read_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vanished, "_STEP", 0.1)
    keepalive = {f"transport.tcp.keep_alive_{name}": 1 for name in ("period", "interval", "probes")}
    with Socket(keepalive) as server, stuck(server.listen("tcp://127.0.0.1:0"), room=4096) as [_]:
        server.wait_pipes(1, timeout=5)
        pipe = only_pipe(server)
        with running(lambda: [server.send_all(bytes(100_000)) for _ in range(100)]):
            wait_until(lambda: pipe.full)
            # Until the kernel asks it more rarely than every two seconds.
            for _ in range(5):
                several_limits()
            assert not pipe.closed
        server.close(linger=0)
