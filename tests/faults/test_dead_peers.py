"""Peers that die: in the middle of a frame, many at once, while they are being written to."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import gevent
import pytest
from gevent import socket

from gmultisocket import PipeEvent, Socket
from gmultisocket.address import Address
from gmultisocket.core.pipes import bytespipe
from gmultisocket.errors import Timeout
from gmultisocket.options import Options
from gmultisocket.testing import wait_until
from gmultisocket.transport import Connection, Transport, TransportDialer, TransportListener, register, unregister
from gmultisocket.transport.tcp import TCPConnection, TCPDialer, TCPListener, unacknowledged
from tests.faults.peers import (
    connected,
    crowd,
    frame,
    listening,
    messages,
    port_of,
    read_until_closed,
    reset,
)
from tests.faults.process import MIB, needs, run_script, spawn_script
from tests.faults.proxy import Proxy


def test_a_message_passes_over_any_number_of_dead_peers_to_the_living_one(tmp_path: Path) -> None:
    with Socket({"socket.send_stop_timeout": 0}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with crowd(listener, 600) as peers, connected(listener) as living:
            wait_until(lambda: len(server.pipes) == 601)
            for peer in peers:
                peer.close()
            for number in range(4):
                server.send(b"message %d" % number)
            assert server.close() == 0
            got = [message.content for message in messages(read_until_closed(living))]
            assert got == [b"message %d" % number for number in range(4)]


def test_a_message_for_dead_peers_only_waits_for_one_that_lives(tmp_path: Path) -> None:
    with Socket() as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with crowd(listener, 600) as peers:
            wait_until(lambda: len(server.pipes) == 600)
            for peer in peers:
                peer.close()
            server.send(b"patient")
            wait_until(lambda: not server.pipes)
            with pytest.raises(Timeout):
                server.send(b"nobody could take it", timeout=0)
        with connected(listener) as living:
            wait_until(lambda: server.pipes)
            server.close()
            assert [message.content for message in messages(read_until_closed(living))] == [b"patient"]


def test_what_a_peer_did_not_take_reaches_another_one_in_order(tmp_path: Path) -> None:
    with Socket({"socket.send_queue_size": 1000}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with crowd(listener, 1) as [first]:
            wait_until(lambda: server.pipes)
            contents = [b"%d" % number + b"." * 5000 for number in range(200)]
            for content in contents:
                server.send(content)
            pipe = next(iter(server.pipes.values()))
            waiting = pipe.queued
            with crowd(listener, 3) as others, connected(listener) as living:
                wait_until(lambda: len(server.pipes) == 5)
                for peer in others:
                    peer.close()
                first.close()
                reader = gevent.spawn(read_until_closed, living)
                server.close()
                got = [message.content for message in messages(reader.get())]
        # One was half gone, and is lost with its peer.
        assert got == contents[-len(got) :]
        assert waiting - 1 <= len(got) <= waiting


def test_a_peer_that_only_stops_to_read_loses_its_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytespipe, "DRAIN_TIMEOUT", 0.1)
    with Socket() as server, connected(server.listen(f"ipc://{tmp_path}/socket")) as peer:
        wait_until(lambda: server.pipes)
        peer.shutdown(socket.SHUT_RD)
        server.send_all(b"nobody hears it")
        peer.sendall(frame(b"what it has to say is heard"))
        assert server.recv(timeout=5) == b"what it has to say is heard"
        wait_until(lambda: not server.pipes)
        assert peer.recv(1) == b""


def test_a_dialer_dials_again_though_nobody_takes_what_the_dead_peer_had_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytespipe, "DRAIN_TIMEOUT", 0.1)
    options = {"socket.recv_queue_size": 4, "connector.dialer.min_reconnect_time": 0.01}
    with Socket(options) as client, listening() as (silent, address):
        client.dial(address)
        peer, _ = silent.accept()
        peer.sendall(frame(b"unread") * 5000)
        wait_until(lambda: client.queued == 4)
        peer.close()
        wait_until(lambda: client.send_all(b"to a peer that does not exist any more") == 0)
        again, _ = silent.accept()
        client.send(b"to one that does", timeout=5)
        assert b"to one that does" in again.recv(100)
        again.close()


def test_what_a_peer_had_sent_before_it_died_is_read_however_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytespipe, "DRAIN_TIMEOUT", 0.5)
    with Socket({"socket.recv_queue_size": 4}) as server:
        with connected(server.listen("tcp://127.0.0.1:0", {"transport.tcp.read_buffer": MIB})) as peer:
            sent = [b"%d" % number + b"." * 10000 for number in range(50)]
            peer.sendall(b"".join(map(frame, sent)))
            wait_until(lambda: server.queued == 4 and not unacknowledged(peer))
        pipe = next(iter(server.pipes.values()))
        wait_until(lambda: server.send_all(b"knock, knock") and not pipe.state.value == "open")
        received = []
        for _ in sent:
            received.append(server.recv(timeout=5))
            gevent.sleep(0.02)
        assert received == sent
        wait_until(lambda: not server.pipes)


def test_what_nobody_receives_from_dead_peers_is_dropped_and_counted_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytespipe, "DRAIN_TIMEOUT", 0.1)
    with Socket({"socket.recv_queue_size": 10}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        for _ in range(10):
            with connected(listener) as peer:
                peer.sendall(frame(b"unread") * 100)
                wait_until(lambda: server.pipes and all(pipe.messages_received for pipe in server.pipes.values()))
            server.send_all(b"nobody is there")
            wait_until(lambda: not server.pipes)
        assert server.queued == 10
        assert server.counters.drops["unread"] == 990


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_connection_that_ends_at_any_byte_of_a_frame_brings_no_part_of_it(end: str) -> None:
    whole = frame(b"all or nothing", source=b"one.two.")
    with Socket() as server:
        listener = server.listen("tcp://127.0.0.1:0")
        removed: list[PipeEvent] = []
        server.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)
        for size in range(len(whole)):
            with connected(listener) as peer:
                peer.sendall(whole[:size])
                wait_until(lambda size=size: server.counters.bytes_received == sum(range(size + 1)))
                if end == "reset":
                    reset(peer)
        wait_until(lambda: len(removed) == len(whole))
        assert not server.queued and not server.pipes
        assert server.counters.messages_received == 0
        if end == "close":
            assert removed[0].reason == "the peer closed the connection"
            assert all(event.reason.endswith("in the middle of a message") for event in removed[1:])


@pytest.mark.parametrize("by_reset", [False, True])
def test_a_dialer_comes_back_after_a_connection_that_ended_at_any_byte(by_reset: bool) -> None:
    options = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.001}
    with Socket() as server, Proxy(server.listen("tcp://127.0.0.1:0")) as proxy, Socket(options) as client:
        proxy.to_server.reset = by_reset
        proxy.to_server.limit = 0
        dialer = client.dial(proxy.address)
        for limit in range(len(frame(b"all or nothing"))):
            proxy.to_server.limit = limit
            before = dialer.attempts
            client.send(b"all or nothing", timeout=5)
            wait_until(lambda before=before: dialer.attempts > before)
            assert not server.queued
        proxy.to_server.limit = None
        client.send(b"all", timeout=5)
        assert server.recv(timeout=5) == b"all"


SENDS_FOR_EVER = """
import sys
from gmultisocket import Socket
with Socket() as sock:
    sock.dial(sys.argv[1])
    number = 0
    while True:
        sock.send(b"%d." % number * (1 + number % 2000))
        number += 1
"""


def test_a_killed_process_leaves_whole_messages_and_nothing_else() -> None:
    with Socket() as server:
        listener = server.listen("tcp://127.0.0.1:0")
        for _ in range(3):
            with spawn_script(SENDS_FOR_EVER, listener.address) as child:
                received = [server.recv(timeout=20) for _ in range(200)]
                child.kill()
                while server.pipes or server.queued:
                    with contextlib.suppress(Timeout):
                        received.append(server.recv(timeout=0.1))
            assert received == [b"%d." % number * (1 + number % 2000) for number in range(len(received))]


class Expiring(TCPConnection):
    """A connection that the kernel gives up: what was sent was not acknowledged, or probes were not answered."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.reads = 0

    def recv(self, size: int, /) -> bytes:
        self.reads += 1
        if self.reads > 1:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return super().recv(size)


class ExpiringListener(TCPListener):
    def accept(self) -> Connection:
        return Expiring(self.accept_socket())


class ExpiringTransport(Transport):
    schemes = ("expiring",)

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return TCPDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return ExpiringListener(address, options)


def test_the_kernels_timeout_is_the_end_of_a_pipe_and_not_a_wait_that_found_nothing() -> None:
    """ETIMEDOUT is a TimeoutError in Python, and so is ``socket.timeout``."""
    transport = ExpiringTransport()
    register(transport)
    try:
        with Socket() as server:
            removed: list[PipeEvent] = []
            server.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)
            listener = server.listen("expiring://127.0.0.1:0")
            with connected(f"tcp://127.0.0.1:{port_of(listener)}") as peer:
                peer.sendall(frame(b"arrived before"))
                assert server.recv(timeout=5) == b"arrived before"
                wait_until(lambda: removed)
                assert removed[0].reason == "receiving failed: connection timed out"
                assert read_until_closed(peer) == b""
    finally:
        unregister(transport)


GIVES_UP = """
import errno, os
from gevent import socket
from gmultisocket import Socket
from gmultisocket.errors import ConnectionFailed
with Socket() as client, socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    silent.listen(1)
    try:
        client.dial("tcp://127.0.0.1:%d" % silent.getsockname()[1])
    except ConnectionFailed as error:
        print(error.why)
"""


@needs("strace -o /dev/null true")
def test_a_dial_that_the_kernel_gives_up_says_so() -> None:
    trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=connect", "-e", "inject=connect:error=ETIMEDOUT")
    assert run_script(GIVES_UP, wrapper=trace) == "connection timed out\n"
