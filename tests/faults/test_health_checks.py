"""Health checks: connections of load balancers that are no peers get no work, fill no log, and may get an answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import gevent
import pytest
from gevent import socket, ssl

from gmultisocket import Socket, log
from gmultisocket.core.connecting.listener import Listener
from gmultisocket.errors import BadOptionValue, NoPeers, Timeout
from gmultisocket.protocol import Pull, Push
from gmultisocket.testing import wait_until
from gmultisocket.transport import wsport
from gmultisocket.wire import INTERNAL, Decoder
from tests.certificates import authority, dial_options, listen_options
from tests.faults.peers import connected, frame, read_message, read_until_closed

HOLD = {"connector.pipe.hold_until_heard": True}
PLAIN = ["tcp://127.0.0.1:0", "ipc://{}/socket"]


@contextmanager
def _checks(listener: Listener) -> Iterator[list[int]]:
    """Connect and close again and again. Yields a list with one item: how often."""
    count = [0]

    def check() -> None:
        while True:
            with connected(listener):
                gevent.sleep(0)
            count[0] += 1

    greenlet = gevent.spawn(check)
    try:
        yield count
    finally:
        greenlet.kill()


@pytest.mark.parametrize("address", PLAIN)
def test_beside_health_checks_all_work_is_done(address: str, tmp_path: Path) -> None:
    with Push(HOLD) as push, Pull() as pull:
        listener = push.listen(address.format(tmp_path))
        # It never sends anything, but it answers.
        pull.dial(listener.address)
        got: list[bytes] = []
        reading = gevent.spawn(lambda: got.extend(pull))
        with _checks(listener) as count:
            for number in range(200):
                push.send(b"%d" % number, timeout=10)
                before = count[0]
                wait_until(lambda before=before: count[0] > before)  # type: ignore[misc]
        wait_until(lambda: len(got) == 200)
        assert got == [b"%d" % number for number in range(200)]
        reading.kill()
    assert push.counters.drops == {}


@pytest.mark.parametrize("dials", [False, True])
def test_a_peer_gets_work_when_it_has_shown_itself(dials: bool) -> None:
    with Socket(HOLD | {"socket.fail_no_peers": True}) as server, _raw_peer(server, dials) as peer:
        server.wait_pipes(1, timeout=5)
        with pytest.raises(NoPeers):
            server.send(b"work")
        assert server.send_all(b"for all") == 1
        decoder = Decoder(1, 0)
        received = read_message(peer, decoder)
        while len(received) < 2:
            received += read_message(peer, decoder)
        asked, for_all = received
        assert asked.flags & INTERNAL and for_all.content == b"for all"
        peer.sendall(frame(b"hello"))
        assert server.recv(timeout=5) == b"hello"
        server.send(b"work", timeout=5)
        assert read_message(peer, decoder)[0].content == b"work"


@contextmanager
def _raw_peer(server: Socket, dials: bool) -> Iterator[socket.socket]:
    if not dials:
        with connected(server.listen("tcp://127.0.0.1:0")) as peer:
            yield peer
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.dial(f"tcp://127.0.0.1:{listening.getsockname()[1]}", {"connector.dialer.reconnect": False})
        with listening.accept()[0] as peer:
            yield peer


def test_what_is_no_message_does_not_show_a_peer() -> None:
    with Push(HOLD) as push, Pull() as pull:
        listener = push.listen("tcp://127.0.0.1:0")
        with connected(listener) as check:
            waiting = gevent.spawn(push.send, b"work", 10)
            for part in (b"GET /", b" HTTP/1.0\r\n\r\n"):
                check.sendall(part)
                gevent.sleep(0)
            read_until_closed(check)
        pull.dial(listener.address)
        waiting.get(timeout=5)
        assert pull.recv(timeout=5) == b"work"


@pytest.mark.parametrize("address", ["tls+tcp://localhost:0", "ws://127.0.0.1:0/", "inproc://held"])
def test_a_peer_that_has_shaken_hands_is_not_held(address: str) -> None:
    secure = "tls" in address
    with Push(HOLD) as push, Pull() as pull:
        listener = push.listen(address, listen_options() if secure else None)
        pull.dial(listener.address, dial_options() if secure else None)
        push.wait_pipes(1, timeout=5)
        (pipe,) = push.pipes.values()
        assert pipe.bytes_sent == 0
        push.send(b"work", timeout=0)
        assert pull.recv(timeout=5) == b"work"


def test_by_default_nobody_is_held_or_asked() -> None:
    with Push() as push:
        with connected(push.listen("tcp://127.0.0.1:0")) as peer:
            push.wait_pipes(1, timeout=5)
            push.send(b"work", timeout=0)
            (message,) = read_message(peer, Decoder(1, 0))
            assert message.content == b"work"


def test_a_socket_without_peers_but_health_checks_says_so() -> None:
    with Push(HOLD) as push, connected(push.listen("tcp://127.0.0.1:0")):
        push.wait_pipes(1, timeout=5)
        with pytest.raises(Timeout):
            push.send(b"work", timeout=0.01)


# What is logged


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("scheme", ["tls+tcp", "ws", "wss"])
def test_health_checks_are_logged_once_a_minute_and_reason(
    scheme: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(log, "monotonic", lambda: monotonic() + seconds)
    with Socket() as server:
        path = "" if scheme == "tls+tcp" else "/"
        options = None if scheme == "ws" else listen_options()
        listener = server.listen(f"{scheme}://127.0.0.1:0{path}", options)

        def check(data: bytes = b"") -> None:
            host, _, port = listener.address.partition("://")[2].removesuffix("/").rpartition(":")
            refused = len(caplog.records)
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    while sock.recv(1000):
                        pass
            wait_until(lambda: len(caplog.records) > refused)

        with caplog.at_level(logging.DEBUG, "gmultisocket"):
            for _ in range(10):
                check()
            assert len(_warnings(caplog)) == 1
            check(b"\x00 garbage\r\n\r\n")
            assert len(_warnings(caplog)) == 2
            seconds = 55
            check()
            assert len(_warnings(caplog)) == 2
            seconds = 65
            check()
            assert len(_warnings(caplog)) == 3


# Answers


def _over_tls(plain: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)  # type: ignore[arg-type]
    return context.wrap_socket(plain, server_hostname="localhost")


def _ask(listener: Listener, request: bytes) -> tuple[bytes, bytes]:
    """Send a request; return the status line and the body of the answer."""
    scheme, _, location = listener.address.partition("://")
    host, _, port = location.partition("/")[0].rpartition(":")
    with socket.create_connection((host, int(port))) as plain:
        sock = plain if scheme == "ws" else _over_tls(plain)
        sock.sendall(request)
        answer = b""
        while data := sock.recv(1000):
            answer += data
        if sock is not plain:
            sock.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], body


HEALTH = {"transport.ws.listener.health_path": "/healthz"}


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_health_path_is_answered_and_nothing_else_changes(
    scheme: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With TLS, the connection of a peer that waits for its end stays for that long.
    monkeypatch.setattr(wsport, "_CLOSE_TIMEOUT", 0.1)
    with Socket() as server, Socket() as client:
        secure = scheme == "wss"
        listener = server.listen(f"{scheme}://localhost:0/ws", HEALTH | (listen_options() if secure else {}))
        with caplog.at_level(logging.INFO, "gmultisocket"):
            assert _ask(listener, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n") == (b"HTTP/1.1 200 OK", b"ok\n")
            assert _ask(listener, b"GET /healthz?from=lb HTTP/1.0\r\n\r\n") == (b"HTTP/1.1 200 OK", b"ok\n")
            assert _ask(listener, b"HEAD /healthz HTTP/1.0\r\n\r\n") == (b"HTTP/1.1 200 OK", b"")
        assert not caplog.records
        assert _ask(listener, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")[0] == b"HTTP/1.1 404 Not Found"
        assert _ask(listener, b"POST /healthz HTTP/1.1\r\nHost: a\r\n\r\n")[0] == b"HTTP/1.1 405 Method Not Allowed"
        assert not server.pipes
        client.dial(listener.address, dial_options() if secure else None)
        client.send(b"a message")
        assert server.recv(timeout=5) == b"a message"


def test_without_the_option_no_path_is_answered() -> None:
    with Socket() as server:
        listener = server.listen("ws://127.0.0.1:0/ws")
        assert _ask(listener, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")[0] == b"HTTP/1.1 404 Not Found"


def test_a_health_path_ends_with_its_listener() -> None:
    with Socket() as server:
        first = server.listen("ws://127.0.0.1:0/first", HEALTH)
        second = server.listen(first.address.replace("first", "second"))
        assert _ask(second, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")[0] == b"HTTP/1.1 200 OK"
        first.close()
        assert _ask(second, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")[0] == b"HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("path", ["healthz", "/a?b", "/a b", "/\n"])
def test_a_health_path_that_no_request_can_have_is_refused(path: str) -> None:
    with Socket() as server, pytest.raises(BadOptionValue, match="a path that begins with a slash"):
        server.listen("ws://127.0.0.1:0/ws", {"transport.ws.listener.health_path": path})
