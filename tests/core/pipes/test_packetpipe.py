"""Pipes over packets, on WebSockets: raw ones, keeping alive, and the goodbye that both sides say."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from socket import SHUT_WR

import gevent
import pytest
from websockets.frames import Close, Opcode

from gmultisocket import Message, Pipe, Socket
from gmultisocket.errors import MultiSocketError, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, RAW, TO_DEST, Decoder, encode
from tests.peers import only_pipe
from tests.transport.wspeers import RawPeer, frame, upgraded

WS = "ws://127.0.0.1:0"
HELLO = encode(Message(content=b"hello"))
QUICK = {"transport.ws.ping_interval": 0.02, "transport.ws.ping_timeout": 0.04}


@pytest.fixture
def server() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock
        sock.close(linger=0)


def works_for(pipe: Pipe) -> bool:
    """Tell whether a greenlet runs a method of a pipe's."""
    return any(
        isinstance(found, gevent.Greenlet)
        and not found.dead
        and getattr(getattr(found, "_run", None), "__self__", None) is pipe
        for found in gc.get_objects()
    )


def decoded(data: bytes) -> Message:
    (message,) = Decoder(1).feed(data)
    return message


# Messages


@pytest.mark.parametrize("size", [1 << 15, 100_000])
def test_large_contents_pass_unchanged_both_ways(server: Socket, size: int) -> None:
    content = bytes(range(256)) * (size // 256)
    with Socket() as client:
        client.dial(server.listen(WS).address)
        client.send(content)
        message = server.recv_msg(timeout=10)
        assert message.content == content
        server.send_to(message.source, content)
        assert client.recv(timeout=10) == content


def test_the_longest_content_may_be_changed_while_a_pipe_is_open(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        wait_until(lambda: server.pipes)
        options = only_pipe(server).options
        options.set("connector.pipe.max_recv_content_length", 200_000)
        peer.send(frame(Opcode.BINARY, encode(Message(content=bytes(200_000)))))
        assert server.recv(timeout=5) == bytes(200_000)
        options.set("connector.pipe.max_recv_content_length", 10)
        peer.send(frame(Opcode.BINARY, encode(Message(content=bytes(10)))))
        assert server.recv(timeout=5) == bytes(10)
        # The header of a longer WebSocket message is refused before the message comes.
        peer.send(bytes((0x82, 0xFF)) + (100_000).to_bytes(8, "big") + bytes(4))
        assert peer.read_close().code == 1009


# Raw pipes


def test_a_raw_pipe_makes_a_message_of_each_websocket_message(server: Socket) -> None:
    with upgraded(server.listen(WS + "?connector.pipe.raw=true").address) as peer:
        announcement = server.recv_msg(timeout=5)
        assert announcement.content == b"" and announcement.flags & RAW
        peer.send(frame(Opcode.TEXT, b"any words") + frame(Opcode.BINARY, b"") + frame(Opcode.BINARY, b"more"))
        assert [server.recv(timeout=5) for _ in range(2)] == [b"any words", b"more"]
        server.send_to(announcement.source, b"an answer")
        assert peer.read_frame().data == b"an answer"
        peer.send(frame(Opcode.CLOSE, b"\x03\xe8"))
        assert peer.read_close().code == 1000
        wait_until(lambda: not server.pipes)


RAW_WS = WS + "?connector.pipe.raw=true"


def test_only_plain_contents_are_written_to_a_raw_peer_each_in_a_message_of_its_own(server: Socket) -> None:
    with upgraded(server.listen(RAW_WS).address) as peer:
        path = server.recv_msg(timeout=5).source
        server.send_msg(Message(TO_DEST | CONTROL, destination=path, content=b"control"))
        server.send_to(path, b"")
        for content in (b"first", bytes(100_000), b"third"):
            server.send_to(path, content)
        assert [peer.read_frame().data for _ in range(3)] == [b"first", bytes(100_000), b"third"]
        assert server.counters.drops == {"flags": 1}


def test_a_raw_pipe_over_packets_is_never_half_closed(server: Socket) -> None:
    with upgraded(server.listen(RAW_WS + "&connector.pipe.close_on_eof=false").address) as peer:
        assert server.recv(timeout=5) == b""
        pipe = only_pipe(server)
        peer.sock.shutdown(SHUT_WR)
        wait_until(lambda: pipe.closed)
        assert pipe.reason == "the peer closed the connection"


# What a peer may do wrong


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(Opcode.BINARY, HELLO, masked=False), 1002),
        (frame(Opcode.BINARY, HELLO, rsv1=True), 1002),
        (bytes((0x83, 0x80, 0, 0, 0, 0)), 1002),
        (frame(Opcode.CONT, HELLO), 1002),
        (bytes((0x82, 0xFF, 0x80)) + bytes(11), 1002),
        (bytes((0x89, 0xFE, 1, 0)), 1002),
        (frame(Opcode.CLOSE, b"\x03"), 1002),
        (frame(Opcode.TEXT, b"\xff\xfe"), 1007),
        (frame(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(Opcode.BINARY, HELLO[:-1]), 1007),
        (frame(Opcode.BINARY, HELLO + HELLO), 1007),
        (frame(Opcode.BINARY, b""), 1007),
        (frame(Opcode.BINARY, b"\x03" + HELLO[1:]), 1007),
        (bytes((0x82, 0xFF)) + (1 << 40).to_bytes(8, "big"), 1009),
        (frame(Opcode.BINARY, encode(Message(content=bytes(131073)))), 1009),
        (frame(Opcode.BINARY, b"", fin=False) + frame(Opcode.CONT, b"", fin=False) * 20_000, 1008),
    ],
    ids=["unmasked", "reserved bit", "reserved opcode", "nothing to continue", "negative length", "long ping",
         "short close", "bad UTF-8", "bad UTF-8 in a close", "cut message", "two in one", "empty", "send type 3",
         "oversize header", "oversize content", "endless fragments"],
)  # fmt: skip
def test_a_peer_that_breaks_a_rule_is_told_which_and_others_are_not_disturbed(
    server: Socket, data: bytes, code: int
) -> None:
    address = server.listen(WS).address
    with upgraded(address) as good, upgraded(address, "multisocket.text") as bad:
        server.wait_pipes(2, timeout=5)
        bad.send(frame(Opcode.BINARY, HELLO) + data)
        assert server.recv(timeout=5) == b"hello", "what came before is not lost"
        assert bad.read_close().code == code
        wait_until(lambda: len(server.pipes) == 1)
        with pytest.raises(Timeout):
            server.recv(timeout=0)
        good.send(frame(Opcode.BINARY, HELLO))
        assert server.recv(timeout=5) == b"hello"


def test_a_flood_of_pings_disturbs_nobody(server: Socket) -> None:
    address = server.listen(WS).address
    with upgraded(address) as good, upgraded(address) as flooding:
        server.wait_pipes(2, timeout=5)
        flood = gevent.spawn(_flood, flooding)
        try:
            for _ in range(50):
                good.send(frame(Opcode.BINARY, HELLO))
                message = server.recv_msg(timeout=5)
                server.send_to(message.source, b"back")
                assert decoded(good.read_frame().data).content == b"back"
            # The flood stops itself: its answers are not read, and so it is not listened to any more.
            assert all(pipe.queued <= 65 for pipe in server.pipes.values())
        finally:
            flood.kill()


def _flood(peer: RawPeer) -> None:
    pings = frame(Opcode.PING, b"a" * 125) * 1000
    while True:
        peer.send(pings)


def test_a_flood_of_small_messages_is_held_up_and_not_kept(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        flood = gevent.spawn(_small_messages, peer, 20_000)
        wait_until(lambda: server.queued >= 64)
        gevent.sleep(0)
        assert server.queued < 200
        for _ in range(20_000):
            assert server.recv(timeout=5) == b"hello"
        flood.get(timeout=5)


def _small_messages(peer: RawPeer, count: int) -> None:
    peer.send(frame(Opcode.BINARY, HELLO) * count)


# Closing


def test_a_closed_pipe_says_1000_and_waits_for_the_answer(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        wait_until(lambda: server.pipes)
        only_pipe(server).close()
        assert peer.read_close().code == 1000
        # What was on its way is dropped, and does not reset the connection.
        peer.send(frame(Opcode.BINARY, HELLO) * 100 + frame(Opcode.CLOSE, b"\x03\xe8"))
        assert peer.sock.recv(10) == b""


def test_a_closed_socket_says_1001_to_each_peer() -> None:
    with Socket() as server:
        address = server.listen(WS).address
        with upgraded(address) as one, upgraded(address) as other:
            server.wait_pipes(2, timeout=5)
            closing = gevent.spawn(server.close)
            for peer in (one, other):
                assert peer.read_close().code == 1001
                peer.send(frame(Opcode.CLOSE, b"\x03\xe9"))
            assert closing.get(timeout=5) == 0


def test_a_socket_closes_though_a_peer_never_answers() -> None:
    with Socket() as server, upgraded(server.listen(WS).address) as peer:
        server.wait_pipes(1, timeout=5)
        assert gevent.spawn(server.close).get(timeout=5) == 0
        assert peer.read_close().code == 1001


def test_closing_without_linger_waits_for_nobody() -> None:
    with Socket() as server, upgraded(server.listen(WS).address) as peer:
        server.wait_pipes(1, timeout=5)
        pipe = only_pipe(server)
        server.close(linger=0)
        assert not works_for(pipe)
        assert peer.read_close().code == 1001
        assert peer.read_rest() == b""


def test_a_pipe_that_was_closed_before_its_socket_is_gone_when_that_is() -> None:
    with Socket() as server, upgraded(server.listen(WS).address):
        server.wait_pipes(1, timeout=5)
        pipe = only_pipe(server)
        pipe.close()
        assert works_for(pipe)
        server.close(linger=0)
        assert not works_for(pipe)


def test_the_peers_goodbye_is_answered_and_is_the_reason(server: Socket) -> None:
    reasons: list[str] = []
    server.on_pipe(lambda event: reasons.append(event.reason))
    with upgraded(server.listen(WS).address) as peer:
        peer.send(frame(Opcode.BINARY, HELLO) + frame(Opcode.CLOSE, b"\x0f\xa0enough"))
        assert peer.read_close().code == 4000
        assert peer.sock.recv(10) == b""
    assert server.recv(timeout=5) == b"hello"
    wait_until(lambda: len(reasons) == 2)
    assert "4000" in reasons[1] and "enough" in reasons[1]


def test_a_peer_that_hangs_up_in_a_message_is_said_to(server: Socket) -> None:
    reasons: list[str] = []
    server.on_pipe(lambda event: reasons.append(event.reason))
    with upgraded(server.listen(WS).address) as peer:
        peer.send(frame(Opcode.BINARY, HELLO)[:-1])
    wait_until(lambda: len(reasons) == 2)
    assert "in the middle of a message" in reasons[1]
    with pytest.raises(Timeout):
        server.recv(timeout=0)


def test_what_a_peer_still_sends_to_a_closed_pipe_is_not_received(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        wait_until(lambda: server.pipes)
        pipe = only_pipe(server)
        pipe.close()
        late = frame(Opcode.BINARY, HELLO) * 100
        peer.send(late)
        wait_until(lambda: pipe.counters.bytes_received == len(late))
        peer.send(late + frame(Opcode.CLOSE, b"\x03\xe8"))
        assert peer.read_close().code == 1000
        hung_up(peer)
        assert server.queued == 0


def hung_up(peer: RawPeer) -> None:
    """Send until it is clear that the other side has closed, and not only ended its half."""
    with pytest.raises(ConnectionError):
        while True:
            peer.send(b"?")
            gevent.sleep(0.001)


@pytest.mark.parametrize("nonsense", [b"\xff" * 100, frame(Opcode.CLOSE, b"\x03")], ids=["no frame", "half a close"])
def test_a_peer_that_answers_a_goodbye_with_nonsense_loses_its_connection(server: Socket, nonsense: bytes) -> None:
    with upgraded(server.listen(WS).address) as peer:
        wait_until(lambda: server.pipes)
        pipe = only_pipe(server)
        pipe.close()
        assert peer.read_close().code == 1000
        peer.send(frame(Opcode.BINARY, HELLO))
        wait_until(lambda: pipe.counters.bytes_received)
        peer.send(nonsense)
        hung_up(peer)
        assert pipe.reason == "closed by the user"


def test_a_peer_is_told_the_error_for_which_its_pipe_is_closed(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        wait_until(lambda: server.pipes)
        only_pipe(server).close(MultiSocketError("not today"))
        assert peer.read_close() == Close(1008, "not today")


def test_a_dialer_says_goodbye_as_a_listener_does() -> None:
    with Socket() as server, Socket() as client:
        reasons: list[str] = []
        server.on_pipe(lambda event: reasons.append(event.reason))
        client.dial(server.listen(WS).address, {"connector.dialer.reconnect": False})
        server.wait_pipes(1, timeout=5)
        client.send(b"last")
        only_pipe(client).close()
        assert server.recv(timeout=5) == b"last"
        wait_until(lambda: len(reasons) == 2)
        assert "1000" in reasons[1]


# Keeping alive


def test_a_silent_peer_is_pinged_and_cut_when_it_does_not_answer() -> None:
    reasons: list[str] = []
    with Socket() as server:
        server.on_pipe(lambda event: reasons.append(event.reason))
        with upgraded(server.listen(WS, QUICK).address) as peer:
            assert peer.read_frame().opcode is Opcode.PING
            assert peer.read_close().code == 1011
        wait_until(lambda: len(reasons) == 2)
        assert "silent" in reasons[1]


def test_a_peer_that_answers_pings_is_kept_and_so_is_one_that_says_anything() -> None:
    with Socket() as server:
        address = server.listen(WS, QUICK).address
        with upgraded(address) as answering, upgraded(address) as talking:
            for _ in range(12):
                assert answering.read_frame().opcode is Opcode.PING
                answering.send(frame(Opcode.PONG))
                talking.send(frame(Opcode.BINARY, HELLO))
                assert server.recv(timeout=5) == b"hello"
            assert len(server.pipes) == 2
        server.close(linger=0)


def test_two_sockets_keep_each_other_alive_by_themselves() -> None:
    with Socket(QUICK) as server, Socket(QUICK) as client:
        client.dial(server.listen(WS).address)
        server.wait_pipes(1, timeout=5)
        pipe = only_pipe(client)
        wait_until(lambda: pipe.counters.bytes_received > 20)
        assert not pipe.closed and len(server.pipes) == 1
        # With so many pings, something is not acknowledged at any moment.
        client.close(linger=0)


def test_a_busy_hub_cuts_nobody() -> None:
    with Socket(QUICK) as server, upgraded(server.listen(WS).address) as peer:
        server.wait_pipes(1, timeout=5)
        for _ in range(5):
            assert peer.read_frame().opcode is Opcode.PING
            peer.send(frame(Opcode.PONG))
            _be_busy(0.1)
        gevent.sleep(0)
        assert len(server.pipes) == 1
        server.close(linger=0)


def _be_busy(seconds: float) -> None:
    """Keep the loop from everybody."""
    loop = gevent.get_hub().loop
    loop.update_now()
    end = loop.now() + seconds
    while loop.now() < end:
        loop.update_now()


def test_a_peer_whose_messages_nobody_receives_is_not_taken_for_silent() -> None:
    with Socket(QUICK | {"socket.recv_queue_size": 1}) as server, upgraded(server.listen(WS).address) as peer:
        peer.send(frame(Opcode.BINARY, HELLO) * 5000)
        wait_until(lambda: server.queued)
        # It is not pinged, and is shown that the server lives.
        for _ in range(20):
            assert peer.read_frame().opcode is Opcode.PONG
        assert len(server.pipes) == 1
        server.close(linger=0)


def peer_is_pinged(peer: RawPeer) -> bool:
    """Tell whether anything comes within a few intervals."""
    peer.sock.settimeout(0.1)
    try:
        return bool(peer.sock.recv(10))
    except TimeoutError:
        return False


def test_keepalive_can_be_turned_off() -> None:
    with Socket({"transport.ws.ping_interval": 0}) as server, upgraded(server.listen(WS).address) as peer:
        server.wait_pipes(1, timeout=5)
        assert not peer_is_pinged(peer)
        server.close(linger=0)


def test_heartbeats_go_before_the_transports_own_pings_and_are_sent_as_such() -> None:
    beats = {"connector.pipe.heartbeat_interval": 0.02, "transport.ws.ping_interval": 0.0}
    with Socket(beats) as server, upgraded(server.listen(WS).address) as peer:
        for _ in range(3):
            assert peer.read_frame().opcode is Opcode.PING
            peer.send(frame(Opcode.PONG))
        assert peer.read_close().code == 1011, "a peer that does not answer any more is told why it is cut"
