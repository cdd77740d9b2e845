"""One end of a stream on the wire: its credit, its control messages, and how it ends."""

from __future__ import annotations

import errno
import struct

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Socket
from gmultisocket.errors import StreamReset
from gmultisocket.protocol import Stream
from gmultisocket.protocol.streamend import ReaderBuffer, ReceivingHalf
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_DEST, TO_ONE
from tests.cases import every_case
from tests.protocol.streams import (
    LONG,
    NO_KEEPALIVE,
    WINDOW,
    by_hand_connection,
    connected,
    pair_of_streams,
    read,
    read_to_end,
)

KEEP_ALIVE, ANSWER, END, CREDIT, RESET = (bytes([kind]) for kind in range(5))
OWN_ID = b"\0\0\0\x05"


def credit(size: int) -> bytes:
    return CREDIT + struct.pack(">I", size)


# The buffers of readers


def test_what_has_come_for_a_reader_that_takes_nothing_is_the_first_for_the_next_one() -> None:
    half = ReceivingHalf(gevent.get_hub())
    lent = ReaderBuffer(half, memoryview(bytearray(4)))
    lent.space(2)[:] = b"ab"
    assert lent.filled(2, False) and not lent.full
    half.buffer.append(b"later")
    lent.end()
    assert half.reader_buffer is None and half.buffer.take(100) == b"ablater"


def test_what_is_asked_for_first_is_what_has_come_first_whoever_asks() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (_, _, connection, _):
        half = connection._end.receiving
        buffer = bytearray(100_000)
        waiting = gevent.spawn(connection.recv_into, buffer)
        gevent.sleep(0)
        lent = connection._end.buffer_for_piece()
        lent.space(3)[:] = b"one"
        # Not yet the end of a piece, so the one who waits is not woken.
        assert lent.filled(3, False)
        assert connection.recv(100) == b"one"
        assert half.reader_buffer is None and lent.size == 0
        half.buffer.append(b"two")
        half.readers.wake()
        assert waiting.get(timeout=LONG) == 3 and buffer[:3] == b"two"


def test_nothing_is_read_into_a_buffer_while_other_data_waits_or_nobody_may_read() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (_, _, connection, _):
        end = connection._end
        assert end.buffer_for_piece() is None
        lent = ReaderBuffer(end.receiving, memoryview(bytearray(4)))
        assert end.buffer_for_piece() is lent
        lent.filled(4, True)
        assert end.buffer_for_piece() is None
        lent.end()
        assert len(end.receiving.buffer) == 4
        end.receiving.buffer.clear()
        lent = ReaderBuffer(end.receiving, memoryview(bytearray(4)))
        end.receiving.buffer.append(b"data")
        assert end.buffer_for_piece() is None
        end.receiving.buffer.clear()
        end.receiving.queued_in_socket = True
        assert end.buffer_for_piece() is None
        end.receiving.queued_in_socket = False
        assert end.buffer_for_piece() is lent
        end.shut_read()
        assert end.buffer_for_piece() is None


# Credit


def test_credit_counts_from_the_start_of_the_stream() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (by_hand, _, connection, send):
        send(b"\x03" + struct.pack(">I", 1000), CONTROL)
        send(b"\x00", CONTROL)
        assert by_hand.recv(LONG) == b"\x01"
        sending = gevent.spawn(connection.sendall, bytes(5000))
        assert len(by_hand.recv(LONG)) == 1000
        gevent.idle()
        assert by_hand.queued == 0 and not sending.ready()
        send(b"\x03" + struct.pack(">I", 1), CONTROL)
        assert len(by_hand.recv(LONG)) == 1
        send(b"\x03" + struct.pack(">I", 0), CONTROL)
        send(b"\x03" + struct.pack(">I", 2**32 - 1), CONTROL)
        assert len(by_hand.recv(LONG)) == 3999
        sending.get(timeout=LONG)


def test_credit_is_given_back_as_data_is_read() -> None:
    with by_hand_connection({**NO_KEEPALIVE, "protocol.stream.window": 65536}) as (by_hand, _, connection, send):
        total = 65536
        for _ in range(20):
            send(bytes(10_000))
            assert len(read(connection, 10_000)) == 10_000
        granted = 0
        while granted < 200_000 - total // 2:
            content = by_hand.recv(LONG)
            assert content[:1] == b"\x03"
            granted += int.from_bytes(content[1:], "big")
        assert granted <= 200_000


def test_a_peer_that_answers_no_question_is_sent_everything_all_the_same() -> None:
    options = {**NO_KEEPALIVE, "protocol.stream.keep_alive_interval": 0.02}
    with by_hand_connection(options) as (by_hand, client, connection, _):
        sending = gevent.spawn(connection.sendall, bytes(300_000))
        got = 0
        while got < 300_000:
            message = by_hand.recv_msg(LONG)
            got += len(message.content) * (not message.flags & CONTROL)
        assert got == 300_000
        sending.get(timeout=LONG)


def test_credit_before_and_after_accept_is_the_window_together() -> None:
    with Stream(NO_KEEPALIVE) as server, Socket() as by_hand:
        by_hand.dial(server.listen("tcp://127.0.0.1:0").address)
        by_hand.send_msg(Message(CONTROL | TO_ONE, source=OWN_ID, content=KEEP_ALIVE))
        assert by_hand.recv(LONG) == ANSWER
        assert by_hand.recv(LONG) == credit(65536)
        gevent.idle()
        assert by_hand.queued == 0, "nobody has accepted it"
        with server.accept(LONG):
            assert by_hand.recv(LONG) == credit(WINDOW - 65536)


def test_one_that_opens_a_stream_gives_its_whole_window_at_once() -> None:
    options = {**NO_KEEPALIVE, "protocol.stream.window": 100_000}
    with Socket() as by_hand, Stream(options) as client:
        client.dial(by_hand.listen("tcp://127.0.0.1:0").address)
        connecting = gevent.spawn(client.connect, LONG)
        path = by_hand.recv_msg(LONG).source
        by_hand.send_msg(Message(CONTROL | TO_DEST, source=OWN_ID, destination=path, content=ANSWER))
        with connecting.get(timeout=LONG):
            assert by_hand.recv(LONG) == credit(100_000)


def test_no_credit_is_lost_while_the_pipe_to_the_other_end_is_full() -> None:
    options = {**NO_KEEPALIVE, "protocol.stream.window": 65536, "socket.send_queue_size": 1}
    with Socket({"socket.recv_queue_size": 1}) as by_hand, Stream(options) as client:
        client.dial(by_hand.listen("inproc://credit").address)
        connecting = gevent.spawn(client.connect, LONG)
        path = by_hand.recv_msg(LONG).source
        by_hand.send_msg(Message(CONTROL | TO_DEST, source=OWN_ID, destination=path, content=ANSWER))
        connection = connecting.get(timeout=LONG)
        connection.settimeout(LONG)
        for _ in range(20):
            by_hand.send_msg(Message(TO_DEST, source=OWN_ID, destination=path, content=bytes(40_000)))
            assert len(read(connection, 40_000)) == 40_000
        granted = 0
        while granted < 65536 + 20 * 40_000:
            content = by_hand.recv(LONG)
            assert content[:1] == CREDIT
            granted += int.from_bytes(content[1:], "big")
        assert granted == 65536 + 20 * 40_000
        connection.close()


# Control messages

MEANINGLESS = [b"", b"\x09", CREDIT, credit(7)[:4], credit(7) + b"\0", KEEP_ALIVE * 2, ANSWER * 2, END * 2, RESET * 2]


def test_a_control_message_that_means_nothing_changes_nothing() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (by_hand, _, connection, send), every_case() as case:
        for content in MEANINGLESS:
            with case(content):
                send(content, CONTROL)
                send(b"data")
                assert connection.recv(100) == b"data"
                connection.sendall(b"back")
                assert by_hand.recv(LONG) == b"back"
                assert by_hand.queued == 0


def test_a_question_is_answered_however_much_waits_to_be_read() -> None:
    options = {**NO_KEEPALIVE, "protocol.stream.window": 65536}
    with by_hand_connection(options) as (by_hand, _, connection, send):
        send(bytes(65536))
        send(KEEP_ALIVE, CONTROL)
        assert by_hand.recv(LONG) == ANSWER
        assert len(read(connection, 65536)) == 65536


def test_data_from_elsewhere_is_not_taken_for_the_other_ends() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (_, client, connection, send):
        send(b"evil", source=b"\0\0\0\x06")
        send(b"\x02", CONTROL, source=b"\0\0\0\x05\0\0\0\x05")
        send(b"good")
        assert connection.recv(100) == b"good"
        assert client.counters.drops == {"garbage": 2}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, CONTROL]), st.binary(max_size=6)), max_size=20))
def test_a_connection_survives_anything_from_its_other_end(messages: list[tuple[int, bytes]]) -> None:
    options = {**NO_KEEPALIVE, "connector.dialer.reconnect": False}
    with by_hand_connection(options, "inproc://anything") as (_, client, connection, send):
        expected, ended = b"", False
        for flags, content in messages:
            send(content, flags)
            if flags and content in (b"\x02", b"\x04"):
                ended = True
            if not flags and not ended:
                expected += content
        send(b"\x02", CONTROL)
        try:
            assert read_to_end(connection) == expected
        except StreamReset:
            assert (CONTROL, b"\x04") in messages
        connection.close()
        assert client.pipes


# Ending


def test_a_reader_that_closes_tells_the_writer() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        one.sendall(b"x" * 1000)
        assert other.recv(1) == b"x"
        other.close()
        with pytest.raises(StreamReset) as caught:
            for _ in range(1000):
                one.sendall(bytes(65536))
        assert caught.value.errno == errno.ECONNRESET and isinstance(caught.value, ConnectionResetError)
        # What the other end has said before is there all the same.
        assert one.recv(100) == b""
        one.close()


def test_sending_to_an_end_that_has_closed_is_a_reset_in_the_end() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        other.close()
        assert one.recv(1) == b""
        with pytest.raises(StreamReset):
            for _ in range(1000):
                one.sendall(bytes(65536))
        one.close()
        wait_until(lambda: server.counters.drops.get("no such stream", 0) >= 1)


def test_abort_is_seen_as_an_error_after_what_had_arrived() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        one.sendall(b"last words")
        one.abort()
        assert other.recv(100) == b"last words"
        with pytest.raises(StreamReset):
            other.recv(100)
        other.close()


def test_nothing_comes_after_the_end() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (_, client, connection, send):
        send(b"data")
        for content, flags in ((END, CONTROL), (b"more", 0), (END, CONTROL)):
            send(content, flags)
        assert [connection.recv(100) for _ in range(3)] == [b"data", b"", b""]
        assert client.counters.drops == {}


@pytest.mark.parametrize(
    ("unread", "abort", "said"),
    [(False, False, [END]), (True, False, [END, RESET]), (False, True, [RESET]), (True, True, [RESET])],
    ids=["close", "close with data unread", "abort", "abort with data unread"],
)
def test_the_other_end_is_told_how_an_end_has_closed(unread: bool, abort: bool, said: list[bytes]) -> None:
    with by_hand_connection(NO_KEEPALIVE) as (by_hand, client, connection, send):
        send(b"data")
        assert connection.recv(1 if unread else 100)
        connection.sendall(b"last")
        (connection.abort if abort else connection.close)()
        messages = [by_hand.recv_msg(LONG) for _ in range(1 + len(said))]
        assert [(message.flags & CONTROL, message.content) for message in messages] == [
            (0, b"last"),
            *((CONTROL, content) for content in said),
        ]
        assert client.connections == 0
        # What still comes for it is for nobody, and its sender is told so.
        send(b"too late")
        assert by_hand.recv(LONG) == RESET
        wait_until(lambda: client.counters.drops == {"no such stream": 1})


def test_an_end_that_sends_no_more_is_not_reset_for_what_nobody_read() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (by_hand, client, connection, send):
        for content, flags in ((b"unread", 0), (END, CONTROL), (KEEP_ALIVE, CONTROL)):
            send(content, flags)
        assert by_hand.recv(LONG) == ANSWER
        connection.close()
        assert by_hand.recv(LONG) == END
        gevent.idle()
        assert by_hand.queued == 0 and client.connections == 0
