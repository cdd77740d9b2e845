"""A stream as programs see it: the methods of a connected socket, and what is built upon those."""

from __future__ import annotations

import errno
import http.client
import random
from array import array
from collections import Counter
from contextlib import suppress
from socket import SHUT_RD, SHUT_RDWR, SHUT_WR
from typing import Any

import gevent
import pytest
from gevent import pywsgi
from gevent.event import Event

from gmultisocket.errors import Closed, StreamClosed, StreamReset, Timeout
from gmultisocket.protocol import Stream
from gmultisocket.testing import wait_until
from tests.protocol.streams import (
    LONG,
    MIB,
    NO_KEEPALIVE,
    by_hand_connection,
    connected,
    pair_of_streams,
    pattern,
    read,
)

# What a socket does


def test_timeouts_are_those_of_a_socket() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        assert one.gettimeout() == LONG
        one.settimeout(0.01)
        with pytest.raises(TimeoutError):
            one.recv(1)
        with pytest.raises(TimeoutError):
            one.sendall(bytes(5 * MIB))
        one.setblocking(False)
        with pytest.raises(Timeout):
            one.recv(1)
        one.setblocking(True)
        assert one.gettimeout() is None
        with pytest.raises(ValueError):
            one.settimeout(-1)
        other.sendall(b"nothing was lost")
        assert one.recv(100) == b"nothing was lost"
        one.close()
        other.close()


def test_a_killed_reader_takes_nothing_with_it() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        for number in range(20):
            readers = [gevent.spawn(one.recv, 100) for _ in range(2)]
            gevent.idle()
            other.sendall(b"%d" % number)
            readers[0].kill()
            # Whether it was killed before or after it had its turn: what it has not returned is the other one's.
            taken = readers[0].value if isinstance(readers[0].value, bytes) else readers[1].get(timeout=LONG)
            assert taken == b"%d" % number
            readers[1].kill()
        one.close()
        other.close()


def test_recv_into_fills_what_it_is_given() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        other.sendall(b"abcdef")
        buffer = bytearray(8)
        assert one.recv_into(buffer, 2) == 2
        assert one.recv_into(memoryview(buffer)[2:]) == 4
        assert buffer == b"abcdef\0\0"
        other.close()
        assert one.recv_into(buffer) == 0
        one.close()


def test_wrong_arguments_are_refused_as_by_a_socket() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        wrong: Any = one
        for call in (lambda: wrong.sendall("text"), lambda: wrong.recv_into(b"constant"), lambda: wrong.send(7)):
            with pytest.raises(TypeError):
                call()
        for call in (
            lambda: one.recv(-1),
            lambda: one.recv(1, 2),
            lambda: one.shutdown(7),
            lambda: one.makefile("x"),
            lambda: one.makefile("r", 0),
        ):
            with pytest.raises(ValueError):
                call()
        assert one.send(b"") == 0
        assert one.recv(0) == b""
        one.close()
        one.close()
        for call in (lambda: one.recv(1), lambda: one.send(b"x"), lambda: one.shutdown(SHUT_WR)):
            with pytest.raises(StreamClosed) as caught:
                call()
            assert caught.value.errno == errno.EBADF and isinstance(caught.value, (Closed, OSError))
        other.close()


def test_shutting_down_reading_drops_what_comes_and_does_not_hold_it_up() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        one.shutdown(SHUT_RD)
        assert one.recv(1) == b""
        other.sendall(bytes(5 * MIB))
        other.shutdown(SHUT_RDWR)
        one.shutdown(SHUT_WR)
        wait_until(lambda: client.connections == server.connections == 0)
        one.close()
        other.close()


def test_files_read_and_write_and_keep_the_connection_open() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        lines = one.makefile("r", encoding="utf-8")
        out = other.makefile("wb")
        both = other.makefile("rwb")
        raw = one.makefile("wb", 0)
        one.close()
        other.close()
        out.write("größe\nzweite\n".encode())
        out.flush()
        assert (lines.readline(), lines.readline()) == ("größe\n", "zweite\n")
        assert raw.write(b"up\n") == 3
        assert both.readline() == b"up\n"
        both.write(b"end")
        both.close()
        out.close()
        assert lines.read() == "end"
        assert not one.closed and other.closed
        lines.close()
        raw.close()
        assert one.closed
        with pytest.raises(ValueError):
            raw.write(b"x")


def test_it_says_where_it_goes_and_how_it_stands() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        (pipe,) = client.pipes.values()
        assert one.pipe is pipe and one.peer_address == pipe.peer_address
        assert "open" in repr(one) and pipe.peer_address in repr(one)
        with other:
            assert not other.closed
        assert other.closed and "closed" in repr(other)
        client.socket.close_pipe(pipe.id)
        assert "reset" in repr(one) and not one.closed
        one.close()


def test_what_is_sent_may_be_any_bytes_and_is_read_in_any_pieces() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        numbers = array("I", range(1000))
        many: list[Any] = [bytearray(b"array"), memoryview(b"not this")[4:], numbers, memoryview(numbers)[10:20], b""]
        # Of several pieces, and more than there is credit for at first.
        many.append(array("I", range(40_000)))
        for data in many:
            one.sendall(data)
            size = memoryview(data).nbytes
            assert read(other, size) == memoryview(data).tobytes()
        other.sendall(numbers)
        into = array("I", bytes(4000))
        assert one.recv_into(into) == 4000 and into == numbers
        one.close()
        other.close()


def test_no_piece_is_longer_than_the_socket_may_send() -> None:
    options = {**NO_KEEPALIVE, "socket.max_send_content_length": 1000}
    with by_hand_connection(options) as (by_hand, _, connection, _):
        sending = gevent.spawn(connection.sendall, pattern(1, 10_500))
        pieces = [by_hand.recv(LONG) for _ in range(11)]
        assert b"".join(pieces) == pattern(1, 10_500)
        assert [len(piece) for piece in pieces] == [1000] * 10 + [500]
        sending.get(timeout=LONG)


def test_send_takes_a_part_where_the_other_end_has_no_more_room() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (by_hand, _, connection, send):
        send(b"\x03\0\0\0\x64", 0x20)
        send(b"\x00", 0x20)
        assert by_hand.recv(LONG) == b"\x01"
        assert connection.send(array("I", range(250))) == 100
        assert by_hand.recv(LONG) == array("I", range(25)).tobytes()
        connection.settimeout(0.01)
        with pytest.raises(Timeout) as caught:
            connection.send(b"x")
        assert (caught.value.operation, caught.value.seconds) == ("send", 0.01)


def test_a_send_that_finds_its_pipe_full_ends_in_time_and_the_connection_goes_on() -> None:
    with by_hand_connection({**NO_KEEPALIVE, "socket.send_queue_size": 1}, "inproc://full") as parts:
        by_hand, _, connection, _ = parts
        by_hand.set_option("socket.recv_queue_size", 1)
        connection.settimeout(0.01)
        with pytest.raises(Timeout):
            while True:
                connection.send(b"x")
        by_hand.set_option("socket.recv_queue_size", 1000)
        connection.settimeout(LONG)
        assert connection.send(b"x") == 1


def test_a_send_to_an_end_that_gives_no_credit_ends_in_time_and_sends_no_more_than_it_may() -> None:
    with by_hand_connection(NO_KEEPALIVE) as (_, _, connection, _):
        connection.settimeout(0.01)
        sent = 0
        for _ in range(3):
            with pytest.raises(Timeout):
                while True:
                    sent += connection.send(bytes(60_000))
        assert sent == 1 << 16


def test_a_greenlet_that_always_finds_something_to_read_lets_others_run() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        one.sendall(bytes(100_000))
        ran = Event()
        gevent.spawn(ran.set)
        count = 0
        while not ran.is_set() and count < 10_000:
            assert other.recv(1) == b"\0"
            count += 1
        assert ran.is_set()
        one.close()
        other.close()


def test_shutting_down_frees_those_who_wait() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        reading = gevent.spawn(one.recv, 1)
        writing = gevent.spawn(one.sendall, bytes(5 * MIB))
        gevent.idle()
        assert not reading.ready() and not writing.ready()
        one.shutdown(SHUT_RDWR)
        one.shutdown(SHUT_RDWR)
        assert reading.get(timeout=LONG) == b""
        with pytest.raises(StreamClosed) as caught:
            writing.get(timeout=LONG)
        assert caught.value.errno == errno.EPIPE
        one.close()
        other.close()


def test_a_close_frees_those_who_wait() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        waiting: list[gevent.Greenlet[..., Any]] = [
            gevent.spawn(one.recv, 1),
            gevent.spawn(one.sendall, bytes(5 * MIB)),
        ]
        gevent.idle()
        one.close()
        for greenlet in waiting:
            with pytest.raises(StreamClosed) as caught:
                greenlet.get(timeout=LONG)
            assert caught.value.errno == errno.EBADF
        other.close()


# Files


def test_lines_may_be_iterated_and_a_text_file_translates_as_python_does() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        with other.makefile("w", encoding="latin-1", newline="\r\n") as out:
            out.write("größe\nzweite\n")
        other.close()
        assert other.closed
        with one.makefile("rb") as lines:
            assert list(lines) == ["größe\r\n".encode("latin-1"), b"zweite\r\n"]
        one.close()


def test_a_file_without_a_buffer_goes_on_after_a_timeout() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        raw = one.makefile("rwb", 0)
        assert raw.readable() and raw.writable() and not raw.seekable()
        one.settimeout(0.01)
        with pytest.raises(TimeoutError):
            raw.read(10)
        other.sendall(b"later")
        one.settimeout(LONG)
        assert raw.read(10) == b"later"
        raw.close()
        raw.close()
        assert not one.closed, "only its files were closed"
        with pytest.raises(ValueError):
            raw.read(1)
        one.close()
        assert one.closed
        other.close()


def test_an_abort_does_not_wait_for_files() -> None:
    with pair_of_streams() as (client, server):
        one, other = connected(client, server)
        lines = one.makefile("rb")
        one.abort()
        assert one.closed
        with pytest.raises(StreamReset):
            other.recv(1)
        with pytest.raises(StreamClosed):
            lines.read(1)
        lines.close()
        other.close()


# Programs for sockets


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body) + 6))])
    return [b"hello ", body]


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_http_client_and_pywsgi_run_over_a_stream(size: int) -> None:
    with Stream() as server, Stream() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        wsgi = pywsgi.WSGIServer(("127.0.0.1", 0), hello, log=None)
        wsgi.init_socket()
        wsgi.update_environ()

        def serve() -> None:
            for connection in server:
                handlers.append(gevent.spawn(wsgi.handle, connection, (connection.peer_address, 0)))

        handlers: list[gevent.Greenlet[..., Any]] = []
        serving = gevent.spawn(serve)
        browser = http.client.HTTPConnection("service", timeout=LONG)
        connection: Any = client.connect(LONG)
        browser.sock = connection
        body = pattern(size, size)
        for _ in range(3):
            browser.request("POST", "/path", body)
            response = browser.getresponse()
            assert (response.status, response.read()) == (200, b"hello " + body)
        browser.close()
        gevent.joinall(handlers, timeout=LONG, raise_error=True)
        assert connection.closed and server.connections == 0
        server.close()
        serving.get(timeout=LONG)
        wsgi.close()


def test_a_send_that_waits_for_its_pipe_ends_when_the_stream_does() -> None:
    with by_hand_connection({**NO_KEEPALIVE, "socket.send_queue_size": 1}, "inproc://full") as parts:
        by_hand, client, connection, _ = parts
        by_hand.set_option("socket.recv_queue_size", 1)

        def send() -> None:
            while True:
                connection.send(b"x")

        sending = gevent.spawn(send)
        (pipe,) = client.pipes.values()
        wait_until(lambda: pipe.full)
        gevent.sleep(0)
        client.socket.close(0)
        with pytest.raises(StreamClosed):
            sending.get(timeout=LONG)


# Large pieces


def test_readers_that_are_killed_or_late_lose_nothing_of_what_is_read_into_their_buffers() -> None:
    size = 24 * MIB
    content = pattern(11, size)
    chance = random.Random(12)
    ended = Counter[str]()
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        sending = gevent.spawn(one.sendall, content)
        got = 0
        while got < size:
            buffer = bytearray(chance.choice([100, 40_000, 131_072, 300_000, MIB]))
            reading = gevent.spawn(other.recv_into, buffer)
            for _ in range(chance.choice([0, 1, 2, 3, 100])):
                gevent.sleep(0)
            reading.kill()
            count = reading.value if type(reading.value) is int else 0
            ended["killed" if not count else "read"] += 1
            # Nobody has it any more: this raises if there is still a view of it.
            del buffer[count:]
            assert buffer == content[got : got + count]
            got += count
            if chance.random() < 0.2:
                other.settimeout(0.0)
                with suppress(Timeout):
                    piece = other.recv(chance.choice([10, 200_000]))
                    assert piece == content[got : got + len(piece)]
                    got += len(piece)
                other.settimeout(LONG)
        sending.get(timeout=LONG)
        assert min(ended["killed"], ended["read"]) > 20
        one.close()
        other.close()


def test_a_buffer_is_its_owners_again_after_the_call_while_more_comes() -> None:
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        one, other = connected(client, server)
        content = pattern(13, MIB)
        buffer = bytearray(200_000)
        got = b""
        for _ in range(3):
            sending = gevent.spawn(one.sendall, content)
            got = b""
            while len(got) < MIB:
                count = other.recv_into(buffer)
                got += buffer[:count]
                buffer += b"x"
                del buffer[-1:]
            assert got == content
            sending.get(timeout=LONG)
        one.close()
        other.close()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "inproc://large-pieces"])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_large_piece_arrives_as_it_was_whatever_becomes_of_it_after_the_call(kind: Any, address: str) -> None:
    content = pattern(7, 3 * MIB + 5)
    with pair_of_streams(NO_KEEPALIVE, address) as (client, server):
        one, other = connected(client, server)
        reading = gevent.spawn(read, other, 2 * len(content))
        mine = kind(bytearray(content)) if kind is not bytes else content
        one.sendall(mine)
        if kind is not bytes:
            # The caller's memory is its own again.
            mine[:] = bytes(len(content))
        one.sendall(content)
        assert reading.get(timeout=LONG) == content * 2
        one.close()
        other.close()


def test_streams_over_one_pipe_share_it_fairly() -> None:
    size = 24 * MIB
    with pair_of_streams(NO_KEEPALIVE) as (client, server):
        ends = [connected(client, server) for _ in range(4)]
        for one, other in ends:
            # The credit comes before this, so all streams begin with their whole window.
            other.sendall(b"begin")
            assert read(one, 5) == b"begin"
        got = [0] * len(ends)
        when_first_ended: list[list[int]] = []

        def count(index: int, connection: Any) -> None:
            buffer = bytearray(MIB // 4)
            while got[index] < size:
                got[index] += connection.recv_into(buffer)
            when_first_ended.append(list(got))

        reading = [gevent.spawn(count, index, other) for index, (_, other) in enumerate(ends)]
        sending = [gevent.spawn(one.sendall, bytes(size)) for one, _ in ends]
        gevent.joinall([*reading, *sending], timeout=LONG, raise_error=True)
        assert got == [size] * len(ends)
        # No stream is more than its window and what is on the way behind the fastest one.
        assert min(when_first_ended[0]) > size * 3 // 4
        for end in ends:
            for connection in end:
                connection.close()
