"""Accepting under fire: descriptors run out, peers reset before they are let in, connections come in floods."""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.monkey import get_original

from gmultisocket import Socket
from gmultisocket.address import Address
from gmultisocket.options import Options
from gmultisocket.testing import wait_until
from gmultisocket.transport import Connection, Transport, TransportDialer, TransportListener, register, unregister
from gmultisocket.transport.tcp import TCPDialer, TCPListener
from tests.faults.peers import connected, crowd, frame, port_of, read_until_closed
from tests.faults.process import cpu_time, descriptors_exhausted, needs, run_script

RealSocket = get_original("socket", "socket")


class FailingListener(TCPListener):
    """A tcp listener whose accept() fails as long as there are errors in the transport's list."""

    def accept(self) -> Connection:
        if FAILING.errors:
            FAILING.attempts += 1
            number = FAILING.errors[0]
            if not FAILING.for_ever:
                FAILING.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class FailingTransport(Transport):
    schemes = ("failing",)
    errors: list[int] = []
    for_ever = False
    attempts = 0

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return TCPDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return FailingListener(address, options)


FAILING = FailingTransport()


@pytest.fixture
def failing() -> Iterator[FailingTransport]:
    register(FAILING)
    FAILING.errors, FAILING.for_ever, FAILING.attempts = [], False, 0
    yield FAILING
    unregister(FAILING)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of accepting that an operator sees."""
    return [record.getMessage() for record in caplog.records if "cannot accept" in record.getMessage()
            and record.levelno >= logging.WARNING]  # fmt: skip


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EINVAL, errno.EPERM])
def test_an_error_that_does_not_pass_is_tried_again_with_pauses_and_logged_once(
    number: int, failing: FailingTransport, caplog: pytest.LogCaptureFixture
) -> None:
    failing.errors, failing.for_ever = [number], True
    before = cpu_time()
    with Socket() as server:
        listener = server.listen("failing://127.0.0.1:0")
        with connected(f"tcp://127.0.0.1:{port_of(listener)}") as peer:
            wait_until(lambda: failing.attempts >= 6)
            assert failing.attempts < 50
            assert cpu_time() - before < 0.3
            [complaint] = complaints(caplog)
            assert os.strerror(number) in complaint
            failing.errors = []
            peer.sendall(frame(b"let in at last"))
            assert server.recv(timeout=5) == b"let in at last"


def test_a_peer_that_goes_before_it_is_accepted_holds_nobody_up(
    failing: FailingTransport, caplog: pytest.LogCaptureFixture
) -> None:
    failing.errors = [errno.ECONNABORTED, errno.EPROTO, errno.ECONNRESET] * 1000
    with Socket() as server:
        listener = server.listen("failing://127.0.0.1:0")
        with connected(f"tcp://127.0.0.1:{port_of(listener)}") as peer:
            peer.sendall(frame(b"next, please"))
            # With the shortest of pauses after each of them it would be half a minute.
            assert server.recv(timeout=10) == b"next, please"
    assert failing.attempts == 3000
    assert not complaints(caplog)


#: Transports whose listeners accept from the kernel.
KERNEL = ("tcp", "tcp6", "tls", "ws", "wss", "ipc", "ipc-abstract")


@pytest.fixture(params=KERNEL)
def transport(request: pytest.FixtureRequest) -> str:
    """The name of a transport that accepts from the kernel; the test runs once for each."""
    name: str = request.param
    return name


class Unconnected:
    """A peer that connects without a turn of the event loop, and whose descriptor exists before."""

    def __init__(self, address: str) -> None:
        scheme, _, location = address.partition("://")
        self.name: Any
        if scheme == "ipc":
            self.name = location.replace("@", "\0", 1) if location.startswith("@") else location
            self.sock = RealSocket(socket.AF_UNIX)
        else:
            host, _, port = location.rstrip("/").rpartition(":")
            self.name = host.strip("[]"), int(port)
            self.sock = RealSocket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)

    def __enter__(self) -> Unconnected:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def connect(self) -> None:
        self.sock.connect(self.name)


def honest_peer_is_served(server: Socket, address: str) -> None:
    with Socket() as client:
        client.dial(address, {"connector.dialer.dial_timeout": 8.0})
        client.send(b"honest")
        assert server.recv(timeout=5) == b"honest"


@pytest.mark.parametrize("count", [30, 200])
def test_peers_that_reset_before_they_are_accepted_delay_nobody(
    address: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Socket() as server:
        listener = server.listen(address)
        for _ in range(count):
            with Unconnected(listener.address) as peer:
                peer.connect()
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # With a pause after each of them that grows to a second, 30 would be 24 s.
        honest_peer_is_served(server, listener.address)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("number", "stays"),
    [(errno.ECONNABORTED, False), (errno.EPROTO, False), (errno.ECONNRESET, False), (errno.ENOTCONN, False),
     (errno.EMFILE, True), (errno.ENOBUFS, True)],
)  # fmt: skip
def test_every_transport_treats_an_error_of_accept_alike(
    address: str, number: int, stays: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket.accept
    errors = [number] * (4 if stays else 300)
    with Socket() as server:
        listener = server.listen(address)

        def accept(self: socket.socket) -> object:
            if errors:
                errors.pop()
                raise OSError(number, os.strerror(number))
            return real(self)

        monkeypatch.setattr(socket.socket, "accept", accept)
        # The loop waits in the kernel's accept: this one ends that.
        with Unconnected(listener.address) as peer:
            peer.connect()
            honest_peer_is_served(server, listener.address)
        assert not errors
    assert len(complaints(caplog)) == stays


def test_without_descriptors_peers_wait_and_nothing_spins(
    address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    real = socket.socket.accept

    def accept(self: socket.socket) -> object:
        nonlocal attempts
        attempts += 1
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with Socket() as server:
        listener = server.listen(address)
        with Unconnected(listener.address) as waiting:
            with descriptors_exhausted():
                before = cpu_time()
                waiting.connect()
                gevent.sleep(1)
                # A count, too: on a busy machine a spinning process gets little time.
                assert cpu_time() - before < 0.3 and attempts < 20
                assert not server.pipes
                [complaint] = complaints(caplog)
                assert "Too many open files" in complaint
            honest_peer_is_served(server, listener.address)


def test_a_flood_of_connections_leaves_turns_for_others() -> None:
    with Socket({"connector.pipe_limit": 1}) as server:
        seen: list[int] = []

        def others() -> None:
            while True:
                seen.append(len(server.pipes))
                gevent.sleep(0)

        with crowd(server.listen("tcp://127.0.0.1:0"), 200):
            worker = gevent.spawn(others)
            server.set_option("connector.pipe_limit", -1)
            wait_until(lambda: len(server.pipes) == 200)
            worker.kill()
    steps = sorted(set(seen))
    assert max(after - before for before, after in zip(steps, steps[1:], strict=False)) <= 50


def test_a_flood_of_users_who_may_not_connect_leaves_turns_for_others(tmp_path: Path) -> None:
    with Socket() as server, crowd(server.listen(f"ipc://{tmp_path}/warm-up"), 1):
        address = f"ipc://{tmp_path}/socket"
        server.listen(address, {"transport.ipc.allow_uids": [os.getuid() + 1]})
        turns = 0

        def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                gevent.sleep(0)

        # Connecting does not take a turn of the loop: all of them are there when the listener looks.
        with crowd(address, 200) as peers:
            before = turns
            worker = gevent.spawn(others)
            assert read_until_closed(peers[-1]) == b""
            worker.kill()
            assert turns - before > 100
        assert len(server.pipes) == 1


INJECTED = """
import gevent
from gevent import socket
from gmultisocket import Socket
from gmultisocket.testing import wait_until

def closed(peer):
    try:
        return peer.recv(1) == b""
    except OSError:
        return True

with Socket() as server:
    host, port = server.listen("tcp://127.0.0.1:0").address[6:].split(":")
    for number in range(20):
        with socket.create_connection((host, int(port)), timeout=20) as peer:
            peer.sendall(bytes([0, 16, 0, 0, 0, 0, 0, 1, number]))
            turned_away = gevent.spawn(closed, peer)
            wait_until(lambda: server.queued or turned_away.ready(), timeout=20)
            print(server.recv()[0] if server.queued else "turned away")
            turned_away.kill()
"""


@needs("strace -o /dev/null true")
@pytest.mark.parametrize(
    ("injected", "turned_away"),
    [
        ("accept4:error=EMFILE:when=1..3", 0),
        ("accept4:error=ENFILE:when=2", 0),
        ("accept4:error=ENOMEM:when=3..4", 0),
        ("accept4:error=ECONNABORTED:when=1..9", 0),
        ("accept4:error=EINTR:when=1..9", 0),
        # The first six are for the listener, which tries its options. One or two peers are reset before they are set
        # up; each of them costs a second call, to find out whether the option itself is at fault.
        ("setsockopt:error=ECONNRESET:when=8", 1),
        ("setsockopt:error=EINVAL:when=7..9", 2),
    ],
)
def test_accept_goes_on_after_whatever_the_kernel_answers(injected: str, turned_away: int) -> None:
    call = injected.partition(":")[0]
    trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={injected}")
    answers = run_script(INJECTED, wrapper=trace).split("\n")[:-1]
    assert answers.count("turned away") == turned_away
    assert [answer for answer in answers if answer != "turned away"] == [
        str(number) for number in range(20) if answers[number] != "turned away"
    ]


INJECTED_ANYWHERE = """
import sys
from gmultisocket import Socket
from tests.certificates import dial_options, listen_options

address = sys.argv[1]
secure = address.startswith(("tls", "wss"))
with Socket() as server, Socket({"connector.dialer.min_reconnect_time": 0.01}) as client:
    address = server.listen(address, listen_options() if secure else None).address
    for number in range(20):
        client.dial(address, {"connector.dialer.dial_timeout": 20.0, **(dial_options() if secure else {})})
        client.send(bytes([number]))
        print(server.recv(timeout=20)[0])
        client.dialers[0].close()
        for pipe_id in list(client.pipes):
            client.close_pipe(pipe_id)
"""


@needs("strace -o /dev/null true")
@pytest.mark.parametrize(
    "injected",
    ["accept4:error=EMFILE:when=1..3", "accept4:error=ENFILE:when=2", "accept4:error=ENOMEM:when=3..4",
     "accept4:error=ECONNABORTED:when=1..9", "accept4:error=EINTR:when=1..9"],
)  # fmt: skip
def test_whatever_the_kernel_answers_every_transport_accepts_all_in_the_end(
    transport: str, injected: str, tmp_path: Path
) -> None:
    schemes = {"tcp6": "tcp://[::1]:0", "ipc": f"ipc://{tmp_path}/socket", "ipc-abstract": f"ipc://@{tmp_path}"}
    address = schemes.get(transport, f"{'tls+tcp' if transport == 'tls' else transport}://127.0.0.1:0")
    trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=accept4", "-e", f"inject={injected}")
    assert run_script(INJECTED_ANYWHERE, address, wrapper=trace).split() == [str(number) for number in range(20)]
