"""Streams: bytes in order both ways, credit, ends, and what becomes of connections when something breaks."""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Iterator
from socket import SHUT_WR
from typing import Any

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Socket, Switch
from gmultisocket.errors import (
    Closed,
    ConnectionRefused,
    NotSupported,
    PeerGone,
    StreamClosed,
    StreamReset,
    Timeout,
)
from gmultisocket.protocol import Stream, StreamSocket
from gmultisocket.protocol.streamend import SendingState
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_DEST, TO_ONE, Message
from tests.protocol.net import Net
from tests.protocol.streams import (
    LONG,
    MIB,
    NO_KEEPALIVE,
    WINDOW,
    by_hand_connection,
    connected,
    pair_of_streams,
    pattern,
    read,
    read_to_end,
)

QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.02}
KEEPALIVE = {
    "protocol.stream.keep_alive_idle": 0.05,
    "protocol.stream.keep_alive_interval": 0.02,
    "protocol.stream.keep_alive_probes": 3,
}


# Everywhere


def test_bytes_go_both_ways_until_both_have_closed(net: Net) -> None:
    with Stream() as server, Stream() as client:
        net.connect(server, client)
        one, other = connected(client, server)
        one.sendall(b"ping")
        assert other.recv(100) == b"ping"
        other.sendall(bytearray(b"pong"))
        assert one.recv(100) == b"pong"
        one.close()
        assert other.recv(100) == b""
        other.close()
        assert one.closed and other.closed
        assert server.connections == client.connections == 0


def test_either_side_may_open(net: Net) -> None:
    with Stream() as hub, Stream() as leaf:
        net.connect(hub, leaf)
        for here, there in ((hub, leaf), (leaf, hub)):
            one, other = connected(here, there)
            with one, other:
                one.sendall(b"x" * 200_000)
                assert read(other, 200_000) == b"x" * 200_000


def test_many_connections_keep_their_bytes_apart(net: Net) -> None:
    with Stream() as server, Stream() as one, Stream() as other:
        net.connect(server, one, other)

        def echo(connection: StreamSocket) -> None:
            with connection:
                while data := connection.recv(1000):
                    connection.sendall(data)

        def serve() -> None:
            for connection in server:
                connection.settimeout(LONG)
                echoes.append(gevent.spawn(echo, connection))

        def talk(seed: int) -> bool:
            sent = pattern(seed, 20_000)
            with (one, other)[seed % 2].connect(LONG) as connection:
                connection.settimeout(LONG)
                for start in range(0, len(sent), 5000):
                    connection.sendall(sent[start : start + 5000])
                connection.shutdown(SHUT_WR)
                return read_to_end(connection) == sent

        echoes: list[gevent.Greenlet[..., Any]] = []
        server_loop = gevent.spawn(serve)
        talks = [gevent.spawn(talk, seed) for seed in range(40)]
        assert all(talk.get(timeout=LONG) for talk in talks)
        gevent.joinall(echoes, timeout=LONG, raise_error=True)
        server.close()
        server_loop.get(timeout=LONG)


def test_half_a_connection_may_end_before_the_other(net: Net) -> None:
    with Stream() as server, Stream() as client:
        net.connect(server, client)
        one, other = connected(client, server)
        with one, other:
            one.sendall(b"question")
            one.shutdown(SHUT_WR)
            assert read_to_end(other) == b"question"
            assert other.recv(1) == b""
            with pytest.raises(StreamClosed) as caught:
                one.send(b"more")
            assert caught.value.errno == errno.EPIPE
            other.sendall(pattern(1, 300_000))
            other.shutdown(SHUT_WR)
            assert read_to_end(one) == pattern(1, 300_000)


def test_what_was_sent_before_a_close_arrives(net: Net) -> None:
    with Stream() as server, Stream() as client:
        net.connect(server, client)
        sent = pattern(2, 700_000)
        one, other = connected(client, server)
        one.sendall(sent)
        one.close()
        assert read_to_end(other) == sent
        other.close()


# By hand, as a Go program would


def test_an_opener_as_written_by_hand(net: Net) -> None:
    with Stream(NO_KEEPALIVE) as server, Socket() as by_hand:
        net.connect(server, by_hand)
        own_id = struct.pack(">I", 77)
        by_hand.send_msg(Message(flags=CONTROL | TO_ONE, source=own_id, content=b"\x00"))
        answer = by_hand.recv_msg(LONG)
        assert (answer.flags, answer.content, answer.destination) == (CONTROL | TO_DEST, b"\x01", own_id)
        path = answer.source
        assert by_hand.recv_msg(LONG).content[:1] == b"\x03"
        connection = server.accept(LONG)
        connection.settimeout(LONG)

        def send(content: bytes, flags: int = 0) -> None:
            by_hand.send_msg(Message(flags=flags | TO_DEST, source=own_id, destination=path, content=content))

        send(b"hello")
        assert connection.recv(100) == b"hello"
        connection.sendall(b"world")
        messages = [by_hand.recv_msg(LONG) for _ in range(2)]
        assert [message.content for message in messages if not message.flags & CONTROL] == [b"world"]
        assert {message.source for message in messages} == {path}
        assert {message.destination for message in messages} == {own_id}
        send(b"\x00", CONTROL)
        assert by_hand.recv_msg(LONG).content == b"\x01"
        send(b"\x02", CONTROL)
        assert connection.recv(100) == b""
        connection.close()
        assert by_hand.recv_msg(LONG).content == b"\x02"


def test_an_acceptor_as_written_by_hand_that_knows_no_credit(net: Net) -> None:
    with Socket() as by_hand, Stream(NO_KEEPALIVE) as client:
        net.connect(by_hand, client)
        connecting = gevent.spawn(client.connect, LONG)
        opening = by_hand.recv_msg(LONG)
        assert (opening.flags, opening.content) == (CONTROL | TO_ONE, b"\x00")
        assert opening.hops == net.switches + 2
        own_id = struct.pack(">I", 78)

        def send(content: bytes, flags: int = 0) -> None:
            message = Message(flags=flags | TO_DEST, source=own_id, destination=opening.source, content=content)
            by_hand.send_msg(message)

        send(b"\x01", CONTROL)
        connection = connecting.get(timeout=LONG)
        connection.settimeout(LONG)
        assert by_hand.recv_msg(LONG).content[:1] == b"\x03"
        sent = pattern(3, 500_000)
        sending = gevent.spawn(connection.sendall, sent)
        got = b""
        while len(got) < len(sent):
            message = by_hand.recv_msg(LONG)
            if message.flags & CONTROL:
                assert message.content == b"\x00"
                send(b"\x01", CONTROL)
            else:
                got += message.content
        assert got == sent
        sending.get(timeout=LONG)
        send(b"reply")
        assert connection.recv(100) == b"reply"
        connection.close()


# A reader that does not read


def test_a_stopped_reader_stops_its_own_stream_only(net: Net) -> None:
    with Stream() as server, Stream() as client:
        net.connect(server, client)
        stuck, unread = connected(client, server)
        busy, read_from = connected(client, server)
        sending = gevent.spawn(stuck.sendall, bytes(5 * MIB))
        for number in range(20):
            busy.sendall(pattern(number, 200_000))
            assert read(read_from, 200_000) == pattern(number, 200_000)
        assert not sending.ready()
        (end,) = [end for end in server._ends.values() if end is unread._end]
        assert len(end.receiving.buffer) <= WINDOW
        assert read(unread, 5 * MIB) == bytes(5 * MIB)
        sending.get(timeout=LONG)
        for connection in (stuck, unread, busy, read_from):
            connection.close()


def test_data_without_credit_waits_in_bounds_and_is_not_lost_nor_overtaken() -> None:
    options = {"protocol.stream.window": 65536, **NO_KEEPALIVE}
    with Stream(options) as server, Socket() as go, Stream(options) as client:
        address = server.listen("tcp://127.0.0.1:0").address
        go.dial(address)
        go.send_msg(Message(flags=CONTROL | TO_ONE, source=b"\0\0\0\x09", content=b"\x00"))
        path = go.recv_msg(LONG).source
        go_end = server.accept(LONG)
        go_end.settimeout(LONG)
        data = pattern(4, 30 * MIB)

        def send_all() -> None:
            for start in range(0, len(data), 50_000):
                piece = data[start : start + 50_000]
                go.send_msg(Message(flags=TO_DEST, source=b"\0\0\0\x09", destination=path, content=piece))
            go.send_msg(Message(flags=CONTROL | TO_DEST, source=b"\0\0\0\x09", destination=path, content=b"\x02"))

        sending = gevent.spawn(send_all)
        wait_until(lambda: server.socket.queued >= 60)
        assert not sending.ready()
        # Others, on pipes of their own, do not notice.
        client.dial(address)
        one, other = connected(client, server)
        with one, other:
            talk = gevent.spawn(one.sendall, data[:MIB])
            assert read(other, MIB) == data[:MIB]
            talk.get(timeout=LONG)
        assert read_to_end(go_end) == data
        sending.get(timeout=LONG)
        # Having caught up, it is as any other.
        assert not go_end._end.receiving.queued_in_socket
        go_end.close()


def test_a_peer_without_credit_that_goes_is_read_to_its_last_byte() -> None:
    options = {"protocol.stream.window": 65536, **NO_KEEPALIVE}
    with Stream(options) as server, Socket() as go:
        go.dial(server.listen("tcp://127.0.0.1:0").address)
        go.send_msg(Message(flags=CONTROL | TO_ONE, source=b"\0\0\0\x09", content=b"\x00"))
        path = go.recv_msg(LONG).source
        connection = server.accept(LONG)
        connection.settimeout(LONG)
        data = pattern(5, 500_000)
        for start in range(0, len(data), 50_000):
            piece = data[start : start + 50_000]
            go.send_msg(Message(flags=TO_DEST, source=b"\0\0\0\x09", destination=path, content=piece))
        go.close()
        wait_until(lambda: not server.pipes)
        assert read(connection, len(data)) == data
        with pytest.raises(StreamReset):
            connection.recv(1)
        connection.close()


def test_closing_what_nobody_read_lets_the_rest_go_on() -> None:
    options = {"protocol.stream.window": 65536, **NO_KEEPALIVE}
    with Stream(options) as server, Socket() as go:
        go.dial(server.listen("tcp://127.0.0.1:0").address)
        paths, ends = [], []
        for number in (1, 2):
            own_id = struct.pack(">I", number)
            go.send_msg(Message(flags=CONTROL | TO_ONE, source=own_id, content=b"\x00"))
            paths.append(go.recv_msg(LONG).source)
            ends.append(server.accept(LONG))
            assert go.recv(LONG)[:1] == b"\x03"
        for _ in range(30):
            go.send_msg(Message(flags=TO_DEST, source=b"\0\0\0\x01", destination=paths[0], content=bytes(10_000)))
        go.send_msg(Message(flags=TO_DEST, source=b"\0\0\0\x02", destination=paths[1], content=b"alive"))
        wait_until(lambda: ends[0]._end.receiving.queued_in_socket)
        ends[0].close()
        ends[1].settimeout(LONG)
        assert ends[1].recv(100) == b"alive"
        ends[1].close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("address", ["inproc://bulk", "tcp://127.0.0.1:0", "ws://127.0.0.1:0"])
def test_100_mib_each_way_at_once_on_ten_streams_over_one_pipe(address: str) -> None:
    total = 100 * MIB
    share = total // 10

    def blocks(seed: int) -> Iterator[bytes]:
        block = pattern(seed, MIB)
        for number in range(share // MIB):
            yield struct.pack(">II", seed, number) + block[8:]

    def write(connection: StreamSocket, seed: int) -> None:
        for block in blocks(seed):
            connection.sendall(block)
        connection.shutdown(SHUT_WR)

    def digest(connection: StreamSocket) -> bytes:
        seen = hashlib.blake2b()
        while data := connection.recv(65536):
            most_held.append(max(held(one), held(other)))
            seen.update(data)
        return seen.digest()

    def held(stream: Stream) -> int:
        return max((len(end.receiving.buffer) for end in stream._ends.values()), default=0)

    most_held = [0]
    with pair_of_streams(address=address) as (one, other):
        ends = [connected(one, other) for _ in range(10)]
        assert len(one.pipes) == len(other.pipes) == 1
        writers = [
            gevent.spawn(write, end, 2 * number + side)
            for number, both in enumerate(ends)
            for side, end in enumerate(both)
        ]
        readers = [gevent.spawn(digest, end) for both in ends for end in both]
        digests = [reader.get(timeout=150) for reader in readers]
        gevent.joinall(writers, raise_error=True)
        for number in range(10):
            for side in (0, 1):
                expected = hashlib.blake2b()
                for block in blocks(2 * number + 1 - side):
                    expected.update(block)
                assert digests[2 * number + side] == expected.digest()
        assert max(most_held) <= WINDOW
        for both in ends:
            for end in both:
                end.close()


# Ends and breaks


def test_a_pipe_that_closes_resets_what_goes_by_it(direct: Net) -> None:
    with Stream() as server, Stream(QUICK) as client:
        direct.connect(server, client)
        one, other = connected(client, server)
        waiting = gevent.spawn(one.recv, 1)
        other.sendall(b"x")
        assert waiting.get(timeout=LONG) == b"x"
        waiting = gevent.spawn(one.recv, 1)
        gevent.idle()
        client.socket.close_pipe(next(iter(client.pipes)), "cut by the test")
        with pytest.raises(StreamReset, match="cut by the test"):
            waiting.get(timeout=LONG)
        with pytest.raises(StreamReset):
            one.send(b"x")
        with pytest.raises(StreamReset):
            other.recv(1)
        assert client.connections == 0
        wait_until(lambda: server.connections == 0)
        client.wait_pipes(1, LONG)
        again, there = connected(client, server)
        again.sendall(b"a new one works")
        assert there.recv(100) == b"a new one works"
        for connection in (one, other, again, there):
            connection.close()


def test_an_other_end_that_died_behind_a_switch_is_found_by_keepalive() -> None:
    with Socket() as back, Socket() as front, Switch(back, front), Stream(KEEPALIVE) as client:
        client.dial(front.listen("tcp://127.0.0.1:0").address)
        with Socket() as dying:
            dying.dial(back.listen("tcp://127.0.0.1:0").address)
            connecting = gevent.spawn(client.connect, LONG)
            opening = dying.recv_msg(LONG)
            to = opening.source
            dying.send_msg(Message(flags=CONTROL | TO_DEST, source=b"\0\0\0\5", destination=to, content=b"\x01"))
            dying.send_msg(Message(flags=TO_DEST, source=b"\0\0\0\5", destination=to, content=b"last words"))
            connection = connecting.get(timeout=LONG)
        connection.settimeout(LONG)
        assert connection.recv(100) == b"last words"
        with pytest.raises(StreamReset, match="silent for"):
            connection.recv(100)
        assert client.pipes
        connection.close()


def test_a_dead_peer_is_found_by_keepalive() -> None:
    with by_hand_connection(KEEPALIVE) as (by_hand, client, connection, _):
        assert [by_hand.recv(LONG) for _ in range(3)] == [b"\x00"] * 3
        with pytest.raises(StreamReset, match="silent for"):
            connection.recv(1)
        assert client.connections == 0
        assert by_hand.queued == 0
        connection.close()


def test_a_living_peer_may_be_silent_for_long() -> None:
    with by_hand_connection(KEEPALIVE) as (by_hand, _, connection, send):
        for _ in range(10):
            assert by_hand.recv(LONG) == b"\x00"
            send(b"\x01", CONTROL)
        send(b"alive")
        assert connection.recv(100) == b"alive"


def test_two_streams_keep_each_other_alive() -> None:
    with pair_of_streams(KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        wait_until(lambda: one.pipe.counters.messages_received > 10)
        one.sendall(b"still here")
        assert other.recv(100) == b"still here"
        one.close()
        other.close()


def test_a_restarted_peer_does_not_know_old_connections() -> None:
    with Stream(NO_KEEPALIVE) as server, Socket() as by_hand:
        by_hand.dial(server.listen("tcp://127.0.0.1:0").address)
        by_hand.wait_pipes(1, LONG)
        to = next(iter(by_hand.pipes.values())).path + b"\x12\x34\x56\x78"
        for number, (content, flags) in enumerate(((b"data", 0), (b"\x00", CONTROL), (b"\x01", CONTROL)), 5):
            here = struct.pack(">I", number)
            by_hand.send_msg(Message(flags=flags | TO_DEST, source=here, destination=to, content=content))
            answer = by_hand.recv_msg(LONG)
            assert (answer.flags, answer.content) == (CONTROL | TO_DEST, b"\x04")
            assert answer.source[-4:] == b"\x12\x34\x56\x78" and answer.destination == here
        for content in (b"\x02", b"\x03\0\0\0\1", b"\x04"):
            by_hand.send_msg(Message(flags=CONTROL | TO_DEST, source=b"\0\0\0\x07", destination=to, content=content))
        wait_until(lambda: server.counters.drops == {"no such stream": 6})
        assert by_hand.queued == 0


# Opening


def test_connect_waits_for_a_peer_and_for_its_answer() -> None:
    with Stream() as server, Stream() as client:
        connecting = gevent.spawn(client.connect, LONG)
        gevent.idle()
        assert not connecting.ready()
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        connection = connecting.get(timeout=LONG)
        with server.accept(LONG) as other, connection:
            connection.sendall(b"x")
            assert other.recv(1) == b"x"


def test_connect_gives_up_in_time_and_tells_who_answers_later() -> None:
    with Socket() as by_hand, Stream() as client:
        with pytest.raises(Timeout) as caught:
            client.connect(0.01)
        assert (caught.value.operation, caught.value.seconds) == ("connect", 0.01)
        client.dial(by_hand.listen("tcp://127.0.0.1:0").address)
        with pytest.raises(Timeout):
            client.connect(0.01)
        assert client.connections == 0
        opening = by_hand.recv_msg(LONG)
        late = Message(flags=CONTROL | TO_DEST, source=b"\0\0\0\x05", destination=opening.source, content=b"\x01")
        by_hand.send_msg(late)
        assert by_hand.recv_msg(LONG).content == b"\x04"


def test_connect_fails_at_once_when_the_pipe_that_it_left_by_closes() -> None:
    with Socket() as by_hand, Stream(QUICK) as client:
        client.dial(by_hand.listen("tcp://127.0.0.1:0").address)
        connecting = gevent.spawn(client.connect, LONG)
        opening = by_hand.recv_msg(LONG)
        by_hand.close_pipe(opening.pipe_id)
        with pytest.raises(PeerGone):
            connecting.get(timeout=LONG)
        assert client.connections == 0


def test_an_opening_that_had_not_left_goes_to_another_peer() -> None:
    with Stream({"socket.send_queue_size": 4}) as client, Socket({"socket.recv_queue_size": 1}) as stuck:
        client.dial(stuck.listen("inproc://stuck").address)
        connecting = [gevent.spawn(client.connect, LONG) for _ in range(3)]
        wait_until(lambda: sum(pipe.queued for pipe in client.pipes.values()) == 2)
        with Stream() as server:
            client.dial(server.listen("inproc://other").address)
            stuck.close(0)
            accepted = [server.accept(LONG) for _ in range(2)]
            outcomes = gevent.joinall(connecting, timeout=LONG)
            assert sorted(type(greenlet.value).__name__ for greenlet in outcomes) == ["NoneType"] + ["StreamSocket"] * 2
            (failed,) = [greenlet for greenlet in outcomes if greenlet.value is None]
            assert isinstance(failed.exception, PeerGone)
            with pytest.raises(PeerGone):
                failed.get()
            for connection in accepted:
                connection.close()


def test_more_connections_than_may_wait_are_refused() -> None:
    with Stream({"protocol.stream.accept_queue_size": 2}) as server, Stream() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        first = [client.connect(LONG) for _ in range(2)]
        with pytest.raises(ConnectionRefused) as caught:
            client.connect(LONG)
        assert isinstance(caught.value, ConnectionRefusedError)
        assert server.counters.drops == {"refused": 1}
        accepted = server.accept(LONG)
        third = client.connect(LONG)
        for connection in (*first, third, accepted):
            connection.close()


def test_connections_that_died_before_anybody_accepted_them_are_not_accepted_and_make_room() -> None:
    with Stream({"protocol.stream.accept_queue_size": 2}) as server, Stream() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        client.connect(LONG).abort()
        spoke = client.connect(LONG)
        spoke.sendall(b"last words")
        wait_until(lambda: any(end.receiving.buffer for end in server._ends.values()))
        spoke.abort()
        wait_until(lambda: server.connections == 0)
        client.connect(LONG).abort()
        alive = client.connect(LONG)
        with server.accept(LONG) as other, alive:
            alive.sendall(b"alive")
            assert other.recv(100) == b"alive"


def test_last_words_of_one_that_died_before_it_was_accepted_are_heard() -> None:
    with pair_of_streams() as (client, server):
        spoke = client.connect(LONG)
        spoke.sendall(b"last words")
        wait_until(lambda: any(end.receiving.buffer for end in server._ends.values()))
        spoke.abort()
        wait_until(lambda: server.connections == 0)
        with server.accept(LONG) as other:
            assert other.recv(100) == b"last words"
            with pytest.raises(StreamReset):
                other.recv(100)


def test_a_stream_that_is_not_acceptable_refuses() -> None:
    with Stream({"protocol.stream.acceptable": False}) as one, Stream() as other:
        one.dial(other.listen("tcp://127.0.0.1:0").address)
        with pytest.raises(NotSupported):
            one.accept()
        with pytest.raises(ConnectionRefused):
            other.connect(LONG)
        here, there = connected(one, other)
        here.close()
        there.close()


def test_what_is_sent_before_anybody_accepts_is_bounded_and_not_lost() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one = client.connect(LONG)
        sending = gevent.spawn(one.sendall, pattern(6, 500_000))
        wait_until(lambda: one._end.sending.state is SendingState.GRANTED)
        gevent.idle()
        assert not sending.ready()
        (end,) = server._ends.values()
        assert len(end.receiving.buffer) <= 65536
        other = server.accept(LONG)
        other.settimeout(LONG)
        assert read(other, 500_000) == pattern(6, 500_000)
        sending.get(timeout=LONG)
        one.close()
        other.close()


def test_accept_gives_up_in_time_and_ends_with_close() -> None:
    with Stream() as server:
        for timeout in (0, 0.01):
            with pytest.raises(Timeout):
                server.accept(timeout)
        waiting = gevent.spawn(server.accept)
        gevent.idle()
        server.close()
        with pytest.raises(Closed):
            waiting.get(timeout=LONG)
        assert list(server) == []


def test_an_address_connects_the_stream_itself() -> None:
    with Stream() as server, Stream() as client:
        listener = server.connect("tcp://127.0.0.1:0#listen")
        client.connect(f"{listener.address}#dial")
        client.wait_pipes(1, LONG)
        one, other = connected(client, server)
        one.close()
        other.close()


def test_a_stream_that_is_closing_makes_no_more_connections() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        one.sendall(bytes(WINDOW))
        closing = gevent.spawn(client.close, LONG)
        gevent.sleep(0)
        assert not closing.ready() and not client.closed
        with pytest.raises(Closed):
            client.connect(LONG)
        other.close()
        one.close()
        closing.get(timeout=LONG)


def test_close_of_the_stream_ends_everything_that_waits() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        waiting = [
            gevent.spawn(one.recv, 1),
            gevent.spawn(one.sendall, bytes(10 * MIB)),
            gevent.spawn(client.accept),
        ]
        wait_until(lambda: one._end.sending.sent >= WINDOW)
        client.close()
        for greenlet in waiting:
            with pytest.raises(Closed):
                greenlet.get(timeout=LONG)
        assert len(read_to_end(other)) == WINDOW
        one.close()
        other.close()


# What no honest peer sends


def test_an_answer_by_another_pipe_opens_nothing() -> None:
    with Socket() as asked, Socket() as other, Stream() as client:
        client.dial(asked.listen("tcp://127.0.0.1:0").address)
        connecting = gevent.spawn(client.connect, LONG)
        opening = asked.recv_msg(LONG)
        client.dial(other.listen("tcp://127.0.0.1:0").address)
        ident = opening.source[-4:]
        other.wait_pipes(1, LONG)
        to = next(iter(other.pipes.values())).path + ident
        other.send_msg(Message(flags=CONTROL | TO_DEST, source=b"\0\0\0\x05", destination=to, content=b"\x01"))
        wait_until(lambda: client.counters.drops == {"garbage": 1})
        assert not connecting.ready()
        answer = Message(flags=CONTROL | TO_DEST, source=b"\0\0\0\x05", destination=opening.source, content=b"\x01")
        asked.send_msg(answer)
        connecting.get(timeout=LONG).close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([TO_ONE, TO_ALL, TO_DEST]),
            st.sampled_from([0, CONTROL, CONTROL | 0x40]),
            st.sampled_from([b"", b"\0\0\0\x07", b"\0\0\0\x07\0\0\0\x08"]),
            st.sampled_from(["known", "unknown", "longer"]),
            st.one_of(st.binary(max_size=6), st.integers(0, 5).map(lambda kind: bytes([kind]))),
        ),
        max_size=20,
    )
)
def test_a_stream_survives_anything_that_is_a_message(messages: list[tuple[int, int, bytes, str, bytes]]) -> None:
    with Stream() as server, Stream() as client, Socket({"socket.recv_queue_size": 1000}) as stranger:
        address = server.listen("inproc://anything").address
        client.dial(address)
        one, other = connected(client, server)
        stranger.dial(address)
        way = next(iter(stranger.pipes.values())).path
        ends = {"known": other._end.id, "unknown": b"\0\0\0\x01", "longer": b"\0\0\0\x01\0\0\0\x02"}
        for kind, flags, source, end, content in messages:
            destination = way + ends[end] if kind == TO_DEST else b""
            stranger.send_msg(Message(flags=kind | flags, source=source, destination=destination, content=content))
        one.sendall(b"undisturbed")
        assert other.recv(100) == b"undisturbed"
        other.sendall(b"both ways")
        assert one.recv(100) == b"both ways"
        stranger.close(0)
        one.close()
        other.close()


def test_a_raw_peer_is_none() -> None:
    with Stream() as server, Stream() as client:
        listener = server.listen("tcp://127.0.0.1:0", {"connector.pipe.raw": True})
        client.dial(listener.address)
        wait_until(lambda: server.counters.drops.get("garbage", 0) >= 1)
        assert server.connections == 0
