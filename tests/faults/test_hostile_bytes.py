"""What a peer may write to us: nothing harms anybody but its own pipe, nothing costs memory ahead of its bytes.

Everything goes over real connections; what a decoder says to each frame is in ``tests/test_wire.py``.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import PipeEvent, Socket
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, INTERNAL, RAW, TO_ALL, TO_DEST, TO_ONE, pack_id
from tests.faults.peers import connected, crowd, frame, header, read_until_closed, stuck
from tests.faults.process import MIB, many_descriptors, resident

LIMIT = 131072


@pytest.fixture(params=["tcp", "ipc"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Socket]:
    """Yield a socket that listens, over each transport on which bytes come from outside."""
    with Socket() as sock:
        sock.listen({"tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{tmp_path}/socket"}[request.param])
        yield sock


def test_every_bad_frame_closes_its_pipe_with_a_reason_and_no_other(server: Socket) -> None:
    """The header alone is enough, wherever it is wrong.

    ======================  ==============================================================
    header                  what an implementation that counts in bytes makes of it
    ======================  ==============================================================
    hops 255                one more is 0: the path's bytes are taken for the next frame
    hops 200, distance 56   a sum of 0: the frame passes for one without paths
    to a destination, none  one less is 255: it swallows 1020 bytes of later frames
    ttl 0                   one less is 255: the peer gave itself a longer life
    send type 3             goes to nobody
    ======================  ==============================================================
    """
    bad = {
        header(hops=255): "more than 255 ids",
        header(hops=200, distance=56): "more than 255 ids",
        header(hops=255, distance=255): "more than 255 ids",
        header(TO_DEST, hops=200, distance=56): "more than 255 ids",
        header(TO_DEST): "for a destination and has none",
        header(ttl=0): "ttl is 0",
        header(3): "3 is no send type",
        header(3 | INTERNAL): "3 is no send type",
        header(length=LIMIT + 1): "over the limit",
        header(length=1 << 31): "over the limit",
        header(length=(1 << 32) - 1): "over the limit",
    }
    removed: list[PipeEvent] = []
    server.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)
    [listener] = server.listeners
    with connected(listener) as honest:
        for start, why in bad.items():
            with connected(listener) as peer:
                peer.sendall(frame(b"good until then") + start)
                assert read_until_closed(peer) == b""
            assert server.recv(timeout=5) == b"good until then"
            wait_until(lambda: removed)
            assert why in removed.pop().reason
        honest.sendall(frame(b"untouched"))
        assert server.recv(timeout=5) == b"untouched"
        assert len(server.pipes) == 1 and not server.queued


def test_every_first_byte_is_a_message_or_closes_the_pipe_and_no_flag_of_ours_is_believed() -> None:
    """Send type 3 closes; internal ends nowhere; raw is taken off; control and reserved bits pass."""
    with Socket() as server:
        listener = server.listen("tcp://127.0.0.1:0")
        for flags in range(256):
            with connected(listener) as peer:
                peer.sendall(frame(b"?", flags, destination=pack_id(1) if flags & 3 == TO_DEST else b""))
                if flags & 3 == 3:
                    assert read_until_closed(peer) == b"", flags
                    continue
                peer.sendall(frame(b"next"))
                if not flags & INTERNAL:
                    message = server.recv_msg(timeout=5)
                    assert (message.content, message.flags) == (b"?", flags & ~RAW)
                assert server.recv(timeout=5) == b"next", flags
        assert not server.queued
        # Three send types with every other flag beside the internal one.
        assert server.counters.drops == {"internal": 3 * 32}


def test_the_flags_that_a_peer_sets_make_no_forwarded_message_vanish() -> None:
    with Socket() as back, Socket() as server, connected(back.listen("tcp://127.0.0.1:0")) as peer:
        server.dial(back.listeners[0].address)
        back.wait_pipes(2, timeout=5)
        for flags in (TO_ALL | RAW, TO_ALL | CONTROL, TO_ALL | 0xC8):
            peer.sendall(frame(b"forward me", flags))
            back.send_msg(back.recv_msg(timeout=5))
            assert server.recv_msg(timeout=5).flags == flags & ~RAW


def test_a_frame_for_a_destination_does_not_swallow_the_frames_behind_it(server: Socket) -> None:
    """Of 200 messages behind a frame for no destination none may be lost as part of its path."""
    [listener] = server.listeners
    with connected(listener) as peer:
        behind = [b"%d" % number for number in range(200)]
        peer.sendall(frame(b"", TO_DEST, destination=pack_id(7)) + b"".join(map(frame, behind)))
        first = server.recv_msg(timeout=5)
        assert (first.content, first.destination, first.hops) == (b"", b"", 1)
        assert [server.recv(timeout=5) for _ in behind] == behind


def test_a_ttl_of_one_arrives_and_goes_no_further() -> None:
    with Socket() as server, connected(server.listen("tcp://127.0.0.1:0")) as peer:
        peer.sendall(frame(b"last hop", ttl=1))
        message = server.recv_msg(timeout=5)
        assert (message.content, message.ttl) == (b"last hop", 0)


def test_a_thousand_promises_of_large_contents_cost_nothing() -> None:
    """1,000 peers that each send eight bytes, which promise 128 KiB: 125 MiB if they were believed."""
    with Socket() as server, many_descriptors(2200), crowd(server.listen("tcp://127.0.0.1:0"), 1000) as peers:
        wait_until(lambda: len(server.pipes) == 1000, timeout=20)
        before = resident()
        for peer in peers:
            peer.sendall(header(length=LIMIT))
        wait_until(lambda: all(pipe.bytes_received == 8 for pipe in server.pipes.values()), timeout=20)
        assert resident() - before < 8 * MIB
        assert len(server.pipes) == 1000


@pytest.mark.parametrize("limit", [0, LIMIT])
def test_a_peer_that_promises_four_gigabytes_gets_no_more_than_it_sends(limit: int) -> None:
    """Even where nothing limits a content, memory grows with what has come and not with what was announced."""
    options = {"connector.pipe.max_recv_content_length": limit}
    with Socket(options) as server, connected(server.listen("tcp://127.0.0.1:0")) as peer:
        wait_until(lambda: server.pipes)
        before = resident()
        peer.sendall(header(length=(1 << 32) - 1))
        if limit:
            assert read_until_closed(peer) == b""
            return
        chunk = bytes(64 * 1024)
        for _ in range(64):
            peer.sendall(chunk)
        [pipe] = server.pipes.values()
        wait_until(lambda: pipe.bytes_received == 8 + 64 * len(chunk))
        assert resident() - before < 16 * MIB


def test_contents_that_drip_in_byte_by_byte_cost_what_they_are_long() -> None:
    with Socket() as server, connected(server.listen("tcp://127.0.0.1:0")) as peer:
        content = random.Random(1).randbytes(20_000)
        before = resident()
        for byte in frame(content):
            peer.send(bytes([byte]))
            gevent.sleep(0)
        assert server.recv(timeout=10) == content
        assert resident() - before < 4 * MIB


GREETINGS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n",
    "ws upgrade": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ),
    "tls client hello": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "smtp": b"EHLO example.org\r\n",
    "zmtp": bytes.fromhex("ff00000000000000017f03014e554c4c") + bytes(48),
    "ff": b"\xff" * 4096,
    "newlines": b"\r\n" * 2048,
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS.keys())
def test_what_speaks_another_protocol_is_hung_up_on_or_waited_for_and_never_a_traceback(
    greeting: bytes, server: Socket, caplog: pytest.LogCaptureFixture
) -> None:
    """``GET `` is a header too: a message to all with 69 ids. It waits for the rest; most others are bad at once."""
    [listener] = server.listeners
    with connected(listener) as peer, connected(listener) as honest:
        wait_until(lambda: len(server.pipes) == 2)
        peer.sendall(greeting)
        honest.sendall(frame(b"still served"))
        assert server.recv(timeout=5) == b"still served"
        wait_until(lambda: sum(pipe.bytes_received for pipe in server.pipes.values()) >= 20)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_thousand_bad_peers_are_a_few_lines_in_the_log(server: Socket, caplog: pytest.LogCaptureFixture) -> None:
    [listener] = server.listeners
    for _ in range(300):
        with connected(listener) as peer:
            peer.sendall(b"\xff" * 64)
            read_until_closed(peer)
    wait_until(lambda: not server.pipes)
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(loud) <= 3
    assert all(record.getMessage().isprintable() and not record.exc_info for record in loud)


def test_a_thousand_peers_that_make_us_drop_messages_are_a_few_lines_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 1}
    with Socket(options) as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        for _ in range(100):
            with stuck(listener):
                wait_until(lambda: server.pipes)
                while not any(pipe.counters.drops for pipe in server.pipes.values()):
                    server.send_all(bytes(65536))
            wait_until(lambda: not server.pipes)
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(loud) <= 4


def test_a_pipe_never_outlives_its_first_bad_frame(server: Socket) -> None:
    """No zombie that is given to-one work, or that keeps its dialer from dialing, remains."""
    [listener] = server.listeners
    with connected(listener) as peer, Socket({"connector.dialer.min_reconnect_time": 0.01}) as client:
        dialer = client.dial(listener.address)
        server.wait_pipes(2, timeout=5)
        # From both sides: the server hears a bad frame of a peer, the client one of its server.
        peer.sendall(header(3))
        wait_until(lambda: len(server.pipes) == 1)
        [pipe] = client.pipes.values()
        pipe._connection.send(header(ttl=0))  # type: ignore[attr-defined]
        wait_until(lambda: dialer.reconnects == 1)
        for number in range(10):
            server.send(b"%d" % number, timeout=5)
        assert [client.recv(timeout=5) for _ in range(10)] == [b"%d" % number for number in range(10)]


def test_of_random_bytes_only_the_pipe_suffers() -> None:
    generator = random.Random(20)
    with Socket({"socket.no_recv": True}) as server:
        listener = server.listen("tcp://127.0.0.1:0")
        with connected(listener) as honest:
            for _ in range(200):
                with connected(listener) as peer:
                    peer.sendall(generator.randbytes(generator.randrange(1, 5000)))
            honest.sendall(frame(b"?"))
            wait_until(lambda: len(server.pipes) == 1)
            [pipe] = server.pipes.values()
            wait_until(lambda: pipe.messages_received == 1)
            server.send(b"alive", timeout=5)
            assert honest.recv(100).endswith(b"alive")


frames = st.builds(
    frame,
    content=st.binary(max_size=200),
    flags=st.sampled_from([TO_ONE, TO_ALL, CONTROL, TO_ONE | 0x80]),
    ttl=st.integers(1, 255),
    source=st.lists(st.integers(1, 2**31 - 1).map(pack_id), max_size=5).map(b"".join),
)


@settings(max_examples=30)
@given(st.lists(frames, max_size=20), st.binary(max_size=300), st.lists(st.integers(1, 400), max_size=20))
def test_good_frames_before_noise_arrive_however_they_are_cut(good: list[bytes], noise: bytes, cuts: list[int]) -> None:
    data = b"".join(good) + noise
    with Socket() as server, connected(server.listen("tcp://127.0.0.1:0")) as peer:
        start = 0
        try:
            for cut in [*cuts, len(data)]:
                peer.sendall(data[start : start + cut])
                start += cut
                gevent.sleep(0)
        except ConnectionError:
            pass  # the noise was bad enough, and it hung up
        received = [server.recv(timeout=5) for _ in good]
    assert received == [one[8 + 4 * one[2] :] for one in good]
