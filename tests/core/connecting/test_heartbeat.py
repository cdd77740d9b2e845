"""Heartbeats: peers that have gone without a word are found, and nobody else is cut."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from time import monotonic

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Message, Socket
from gmultisocket.core.connecting import heartbeat
from gmultisocket.core.pipes.framedpipe import FramedPipe
from gmultisocket.core.pipes.pipe import Pipe
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.transport.tcp import TCPConnection
from gmultisocket.wire import INTERNAL, Decoder, encode
from tests.addresses import plain_connection
from tests.peers import only_pipe

TCP = "tcp://127.0.0.1:0"
INTERVAL = 0.02
WATCHED = {"connector.pipe.heartbeat_interval": INTERVAL}
CLOSE, PING, PONG = b"\0", b"\1", b"\2"


def internal(content: bytes) -> bytes:
    return encode(Message(INTERNAL, ttl=1, content=content))


def some_intervals(count: int = 8) -> None:
    """Wait as long as it takes to cut a silent peer, on this loop's own clock."""
    for _ in range(count * 4):
        gevent.sleep(INTERVAL / 4)


@pytest.fixture
def watched() -> Iterator[tuple[Socket, gsocket.socket]]:
    """A socket with heartbeats and a plain peer of it."""
    with Socket(WATCHED) as server:
        with plain_connection(server.listen(TCP).address) as peer:
            server.wait_pipes(timeout=5)
            yield server, peer
        server.close(linger=0)


def test_a_silent_peer_is_pinged_by_an_internal_message(watched: tuple[Socket, gsocket.socket]) -> None:
    _, peer = watched
    assert peer.recv(100) == internal(PING)


def test_a_peer_that_never_answered_is_not_cut_for_its_silence(watched: tuple[Socket, gsocket.socket]) -> None:
    """The Go code drops internal messages unread."""
    server, peer = watched
    pipe = only_pipe(server)
    assert peer.recv(100) == internal(PING)
    some_intervals()
    assert not pipe.closed
    peer.sendall(encode(Message(content=b"still here")))
    assert server.recv(timeout=5) == b"still here"
    some_intervals()
    assert not pipe.closed


def test_a_peer_that_has_answered_once_and_falls_silent_is_cut(watched: tuple[Socket, gsocket.socket]) -> None:
    server, peer = watched
    pipe = only_pipe(server)
    assert peer.recv(100) == internal(PING)
    peer.sendall(internal(PONG))
    wait_until(lambda: pipe.closed)
    assert "silent" in pipe.reason


def test_a_peer_that_answers_stays(watched: tuple[Socket, gsocket.socket]) -> None:
    server, peer = watched
    for _ in range(10):
        assert peer.recv(100) == internal(PING)
        peer.sendall(internal(PONG))
    assert only_pipe(server)
    assert server.counters.drops == {} and server.queued == 0


def test_any_bytes_are_a_sign_of_life_also_those_of_half_a_message(watched: tuple[Socket, gsocket.socket]) -> None:
    server, peer = watched
    pipe = only_pipe(server)
    peer.sendall(internal(PONG))
    frame = encode(Message(content=bytes(40)))
    for start in range(len(frame)):
        peer.sendall(frame[start : start + 1])
        gevent.sleep(INTERVAL / 4)
    assert server.recv(timeout=5) == bytes(40)
    assert not pipe.closed


def test_a_ping_is_answered_with_what_it_carried() -> None:
    with Socket() as server:
        with plain_connection(server.listen(TCP).address) as peer:
            peer.sendall(internal(PING) + internal(PING + b"cookie"))
            expected = internal(PONG) + internal(PONG + b"cookie")
            received = b""
            while len(received) < len(expected):
                received += peer.recv(100)
            assert received == expected
            # More than that is not sent back.
            peer.sendall(internal(PING + bytes(126)) + internal(PING))
            assert peer.recv(100) == internal(PONG)
        assert server.counters.messages_sent == 0


def test_a_peer_that_says_goodbye_loses_its_pipe() -> None:
    with Socket() as server:
        with plain_connection(server.listen(TCP).address) as peer:
            server.wait_pipes(timeout=5)
            pipe = only_pipe(server)
            peer.sendall(encode(Message(content=b"last")) + internal(CLOSE))
            assert server.recv(timeout=5) == b"last"
            wait_until(lambda: pipe.closed)
            assert pipe.reason == "the peer said goodbye"


def test_two_sockets_keep_an_idle_pipe_alive(address: str) -> None:
    with Socket(WATCHED) as server, Socket(WATCHED) as client:
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        pipes = only_pipe(server), only_pipe(client)
        some_intervals()
        assert not any(pipe.closed for pipe in pipes)
        assert server.counters.messages_received == 0 or server.queued == 0
        client.send(b"x")
        assert server.recv(timeout=5) == b"x"
        # With so many pings, something is not acknowledged at any moment.
        client.close(linger=0)


def test_the_time_for_which_this_program_was_busy_is_not_held_against_its_peers() -> None:
    stream = FakeStream([internal(PONG)])
    with FakeTransport([stream]) as fake, Socket(WATCHED) as client:
        client.dial(fake.address)
        pipe = only_pipe(client)
        gevent.sleep(INTERVAL / 2)
        for _ in range(3):
            end = monotonic() + 4 * INTERVAL
            while monotonic() < end:
                pass
            # It had sent something meanwhile, which nobody could read.
            stream.feed(internal(PONG))
            gevent.sleep(0)
            gevent.sleep(0)
            assert not pipe.closed
        client.close(linger=0)


def test_a_timeout_of_its_own_may_be_given() -> None:
    options = {**WATCHED, "connector.pipe.heartbeat_timeout": 60.0}
    with Socket(options) as server, plain_connection(server.listen(TCP).address) as peer:
        server.wait_pipes(timeout=5)
        peer.sendall(internal(PONG))
        some_intervals()
        assert not only_pipe(server).closed


def test_a_listener_or_dialer_may_have_heartbeats_of_its_own() -> None:
    with Socket() as server:
        plain = server.listen(TCP)
        with (
            plain_connection(server.listen(TCP, WATCHED).address) as watched,
            plain_connection(plain.address) as unwatched,
        ):
            assert watched.recv(100) == internal(PING)
            unwatched.settimeout(0.01)
            with pytest.raises(TimeoutError):
                unwatched.recv(100)


def test_messages_and_heartbeats_do_not_disturb_each_other(watched: tuple[Socket, gsocket.socket]) -> None:
    server, peer = watched
    for number in range(20):
        server.send(b"%d" % number)
        gevent.sleep(INTERVAL / 4)
    decoder = Decoder(1)
    contents: list[bytes] = []
    while b"19" not in contents:
        messages = [Message(*fields) for fields in decoder.feed(peer.recv(1000))]
        contents += [message.content for message in messages if not message.flags & INTERNAL]
    assert contents == [b"%d" % number for number in range(20)]
    assert server.counters.messages_sent == 20


def test_no_greenlet_stays_when_the_last_watched_pipe_has_gone() -> None:
    with Socket(WATCHED) as server:
        where = server.listen(TCP).address
        for _ in range(2):
            with plain_connection(where) as peer:
                assert peer.recv(100) == internal(PING)
            wait_until(lambda: not server.pipes)
            heartbeat = server._connector._heartbeat
            wait_until(lambda heartbeat=heartbeat: heartbeat._periodic._greenlet is None)


def test_a_pipe_whose_check_fails_keeps_nobody_from_looking_at_those_behind_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gmultisocket")
    ping = FramedPipe._ping

    def fail_for_the_first(pipe: FramedPipe) -> None:
        if pipe is first:
            raise RuntimeError("a mistake")
        ping(pipe)

    monkeypatch.setattr(FramedPipe, "_ping", fail_for_the_first)
    with Socket(WATCHED) as server:
        address = server.listen(TCP).address
        with plain_connection(address):
            server.wait_pipes(timeout=5)
            first = only_pipe(server)
            with plain_connection(address) as peer:
                peer.settimeout(5)
                # The second ping is not the one that every new peer gets.
                for _ in range(2):
                    assert peer.recv(100) == internal(PING)
                    peer.sendall(internal(PONG))
                assert not first.closed
    assert any(f"pipe {first.id} " in each.getMessage() and each.exc_info for each in caplog.records)


def test_a_pipe_that_cannot_tell_whether_its_peer_vanished_keeps_nobody_from_looking_at_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def vanished(connection: TCPConnection) -> float:
        if connection is first._connection:
            raise RuntimeError("a mistake")
        return 60.0

    monkeypatch.setattr(TCPConnection, "vanished", vanished)
    with Socket() as server:
        address = server.listen(TCP).address
        with plain_connection(address):
            server.wait_pipes(timeout=5)
            first = only_pipe(server)
            with plain_connection(address):
                server.wait_pipes(2, timeout=5)
                server._connector._vanished._tick()
                assert [*server.pipes.values()] == [first]


@pytest.mark.parametrize("scope", ["socket", "endpoint", "pipe"])
@pytest.mark.parametrize(
    "limit", ["heartbeat_interval", "heartbeat_timeout", "idle_timeout", "frame_timeout", "ping_interval"]
)
def test_a_limit_that_is_set_while_a_pipe_is_open_holds_for_it(limit: str, scope: str) -> None:
    on_ws = limit == "ping_interval"
    if on_ws and scope == "pipe":
        pytest.skip("its place is a dialer, a listener or a socket")
    plain = {"transport.ws.ping_interval": 0.0}
    with Socket(plain) as server, Socket(plain) as client:
        address = server.listen("ws://127.0.0.1:0" if on_ws else TCP).address
        if on_ws:
            client.dial(address)
            server.wait_pipes(timeout=5)
            pipe = only_pipe(server)
            set_at(server, pipe, scope, f"transport.ws.{limit}")
            wait_until(lambda: pipe in server._connector._heartbeat._watched)
            return
        with plain_connection(address) as peer:
            peer.settimeout(5)
            peer.sendall(encode(Message(content=b"whole")) + b"\0")
            server.wait_pipes(timeout=5)
            assert server.recv(timeout=5) == b"whole"
            pipe = only_pipe(server)
            set_at(server, pipe, scope, f"connector.pipe.{limit}")
            if limit == "heartbeat_interval":
                assert peer.recv(100) == internal(PING)
            else:
                wait_until(lambda: pipe.closed)
                assert "for 0." in pipe.reason


def set_at(server: Socket, pipe: Pipe, scope: str, name: str) -> None:
    owner = {"socket": server, "endpoint": pipe.endpoint, "pipe": pipe}[scope]
    owner.options.set(name, INTERVAL)


def test_a_limit_of_a_closed_pipe_begins_nothing() -> None:
    with Socket() as server, plain_connection(server.listen(TCP).address):
        server.wait_pipes(timeout=5)
        pipe = only_pipe(server)
        pipe.close()
        pipe.options.set("connector.pipe.idle_timeout", INTERVAL)
        assert server._connector._heartbeat._periodic._greenlet is None


def test_the_time_until_the_next_look_is_no_silence_of_a_new_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_LONGEST_STEP", 0.5)
    with Socket() as server:
        address = server.listen(TCP, {"connector.pipe.idle_timeout": 3600.0}).address
        quick = server.listen(TCP, {**WATCHED, "connector.pipe.heartbeat_timeout": 0.2}).address
        with plain_connection(address):
            server.wait_pipes(timeout=5)
            (patient,) = server.pipes.values()
            wait_until(lambda: server._connector._heartbeat._pause)
            with plain_connection(quick) as peer:
                peer.settimeout(5)
                for _ in range(3):
                    assert peer.recv(100) == internal(PING)
                    peer.sendall(internal(PONG))
                assert len(server.pipes) == 2 and not patient.closed
