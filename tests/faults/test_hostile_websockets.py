"""What a WebSocket peer may do to us, past and before the handshake: it harms its own pipe, and costs bounded memory.

What a single broken frame is answered with is in ``tests/transport/test_ws.py``; half handshakes by the hundred are in
``test_wsport.py`` and ``test_wss.py`` beside it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest
from gevent import socket as gsocket
from websockets.frames import Opcode

from gmultisocket import PipeEvent, Socket
from gmultisocket.errors import ConnectionFailed, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.transport import wsport
from gmultisocket.wire import INTERNAL, TO_DEST
from tests.faults.peers import frame as message
from tests.faults.peers import header, listening, messages
from tests.faults.process import MIB, resident
from tests.transport.wspeers import RawPeer, frame, request, upgraded

WS = "ws://127.0.0.1:0"
LIMIT = 131072
HELLO = frame(Opcode.BINARY, message(b"hello"))


@pytest.fixture
def server() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock
        sock.close(linger=0)


def received_end(server: Socket) -> list[PipeEvent]:
    """Return a list that will hold the event of every pipe that goes."""
    removed: list[PipeEvent] = []
    server.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)
    return removed


def stuck(address: str) -> RawPeer:
    """Return a peer that is in, has little room for what is sent to it, and reads nothing."""
    peer = RawPeer(address)
    peer.sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_RCVBUF, 4096)
    peer.send(request())
    assert peer.status() == 101
    return peer


# Frames of ours inside of theirs


def test_every_bad_frame_of_ours_closes_its_pipe_with_the_right_code_and_no_other(server: Socket) -> None:
    """The length of the WebSocket message fits every one of them, counted in bytes: the header alone is wrong."""
    bad = {
        header(hops=255) + bytes(1020): ("more than 255 ids", 1007),
        header(hops=200, distance=56): ("more than 255 ids", 1007),
        header(TO_DEST, hops=200, distance=56) + bytes(1024): ("more than 255 ids", 1007),
        header(TO_DEST) + bytes(1020): ("for a destination and has none", 1007),
        header(ttl=0): ("ttl is 0", 1007),
        header(3 | INTERNAL): ("3 is no send type", 1007),
        header(length=4) + b"abc": ("", 1007),
        header(length=4) + b"abcde": ("", 1007),
        header(length=(1 << 32) - 1): ("over the limit", 1009),
    }
    address = server.listen(WS).address
    removed = received_end(server)
    with upgraded(address) as honest:
        for data, (why, code) in bad.items():
            with upgraded(address) as peer:
                peer.send(HELLO + frame(Opcode.BINARY, data))
                assert peer.read_close().code == code
                assert server.recv(timeout=5) == b"hello"
                wait_until(lambda: removed)
                assert why in removed.pop().reason
        honest.send(HELLO)
        assert server.recv(timeout=5) == b"hello"
        assert len(server.pipes) == 1 and not server.queued


def test_a_cut_off_message_of_a_raw_pipe_is_not_delivered(server: Socket) -> None:
    listener = server.listen(f"{WS}?connector.pipe.raw=true")
    with upgraded(listener.address) as peer:
        assert server.recv(timeout=5) == b"", "somebody is there"
        peer.send(frame(Opcode.BINARY, b"the beginning, ", fin=False) + frame(Opcode.CONT, b"and the end")[:-1])
    wait_until(lambda: not server.pipes)
    with pytest.raises(Timeout):
        server.recv(timeout=0)


def test_empty_messages_of_a_stream_are_nothing_however_many(server: Socket) -> None:
    with upgraded(server.listen("ws.rw://127.0.0.1:0").address) as peer:
        peer.send(frame(Opcode.BINARY) * 20_000 + HELLO)
        assert server.recv(timeout=10) == b"hello"


def test_of_random_bytes_only_the_pipe_suffers(server: Socket) -> None:
    rng = random.Random(6455)
    address = server.listen(WS).address
    with upgraded(address) as honest:
        for _ in range(50):
            with upgraded(address) as peer:
                peer.send(rng.randbytes(rng.randrange(2, 2000)))
                peer.sock.shutdown(gsocket.SHUT_WR)
                peer.read_rest()
        wait_until(lambda: len(server.pipes) == 1)
        honest.send(HELLO)
        assert server.recv(timeout=5) == b"hello"


# What it costs


def test_what_is_announced_and_does_not_come_costs_nothing(server: Socket) -> None:
    """The longest message that is allowed, of each of 300 peers: 37 MiB if it were allocated when it is announced."""
    address = server.listen(WS).address
    begun = bytes((0x82, 0xFF)) + LIMIT.to_bytes(8, "big") + b"mask" + b"some"
    with ExitStack() as stack:
        peers = [stack.enter_context(upgraded(address)) for _ in range(300)]
        server.wait_pipes(300, timeout=10)
        before = resident()
        for peer in peers:
            peer.send(begun)
        wait_until(lambda: all(pipe.bytes_received for pipe in server.pipes.values()))
        assert resident() - before < 8 * MIB


def test_memory_stays_flat_under_hostile_frames(server: Socket) -> None:
    hostile = [
        frame(Opcode.BINARY, b"", fin=False) + frame(Opcode.CONT, b"", fin=False) * 20_000,
        frame(Opcode.BINARY, b"x", fin=False) + frame(Opcode.CONT, b"x" * 1000, fin=False) * 200,
        frame(Opcode.BINARY, bytes(LIMIT - 1), fin=False),
        frame(Opcode.PING, bytes(125)) * 500,
        frame(Opcode.PONG, bytes(125)) * 500,
        frame(Opcode.TEXT, b"\xff" * 60_000),
        bytes((0x82, 0xFF)) + bytes([127]) * 12,
    ]
    address = server.listen(WS).address

    def visit(times: int) -> None:
        for _ in range(times):
            for data in hostile:
                with upgraded(address) as peer:
                    peer.send(data)
            wait_until(lambda: not server.pipes)

    visit(5)
    before = resident()
    visit(15)
    assert resident() - before < 6 * MIB


def test_a_flood_of_pongs_that_nobody_asked_for_is_no_message_and_no_answer(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        peer.send(frame(Opcode.PONG, b"x" * 125) * 5000 + HELLO + frame(Opcode.CLOSE, b"\x03\xe8"))
        assert server.recv(timeout=10) == b"hello"
        only = peer.read_frame()
        assert only.opcode is Opcode.CLOSE
        assert not server.queued


# Peers that do not read


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest", "disconnect"])
def test_a_stuck_peer_costs_a_broadcast_its_own_messages_only(policy: str) -> None:
    with Socket({"socket.send_overflow": policy}) as server:
        address = server.listen(WS, {"transport.tcp.write_buffer": 65536}).address
        with stuck(address), ExitStack() as stack:
            server.wait_pipes(1, timeout=5)
            (blocked,) = server.pipes.values()
            reading = stack.enter_context(upgraded(address))
            server.wait_pipes(2, timeout=5)
            for number in range(200):
                server.send_all(b"%d " % number + bytes(16384), timeout=5)
                (found,) = messages(bytes(reading.read_frame().data))
                assert found.content is not None and found.content.startswith(b"%d " % number)
            if policy == "disconnect":
                assert blocked.closed and len(server.pipes) == 1
            else:
                assert blocked.counters.drops["overflow"] > 0 and len(server.pipes) == 2
        server.close(linger=0)


def test_a_close_does_not_wait_for_a_stuck_peer_beyond_its_linger() -> None:
    with Socket() as server:
        address = server.listen(WS, {"transport.tcp.write_buffer": 65536}).address
        with stuck(address):
            server.wait_pipes(1, timeout=5)
            with pytest.raises(Timeout):
                while True:
                    server.send_all(bytes(65536), timeout=0)
            lost = gevent.spawn(server.close, linger=0.05).get(timeout=5)
            assert lost > 0


# Before the handshake is done


def test_a_request_that_comes_byte_by_byte_is_cut_when_its_time_is_up(server: Socket) -> None:
    address = server.listen(WS, {"connector.listener.handshake_timeout": 0.1}).address
    with RawPeer(address) as slow:
        sent = 0

        def trickle() -> None:
            nonlocal sent
            for byte in request("/", {"X": "y" * 4000}):
                slow.send(bytes([byte]))
                sent += 1
                gevent.sleep(0.002)

        trickling = gevent.spawn(trickle)
        try:
            assert slow.status() == 408
        finally:
            trickling.kill()
        assert 1 < sent < 4000, "cut for the time that it took, and for nothing that it said"


def test_who_is_refused_and_goes_on_sending_is_hung_up_on(server: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsport, "_CLOSE_TIMEOUT", 0.05)
    with RawPeer(server.listen(f"{WS}/here").address) as peer:
        peer.send(request("/elsewhere"))
        assert peer.status() == 404
        with pytest.raises(OSError):  # noqa: PT011, a reset or a broken pipe
            while True:
                peer.send(bytes(1000))
                gevent.sleep(0.001)


# Listeners that are hostile to their dialers


def test_a_listener_that_never_answers_costs_a_dialer_its_time_only() -> None:
    with listening() as (_, address), Socket() as client:
        with pytest.raises(ConnectionFailed, match="0.1 s"):
            client.dial(address.replace("tcp:", "ws:"), {"connector.dialer.dial_timeout": 0.1})
        assert not client.dialers


def test_a_listener_that_masks_its_frames_is_told_so_by_a_masked_one() -> None:
    with Socket() as server, Socket({"connector.dialer.reconnect": False}) as client:
        address = server.listen(WS).address
        client.dial(address)
        server.wait_pipes(1, timeout=5)
        removed, told = received_end(client), received_end(server)
        (pipe,) = server.pipes.values()
        # Past the codec, as no listener of ours would.
        pipe._connection.send(HELLO)  # type: ignore[attr-defined]
        wait_until(lambda: removed and told)
        assert "is masked" in removed[0].reason
        assert "1002" in told[0].reason
