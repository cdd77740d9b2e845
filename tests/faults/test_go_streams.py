"""Streams to a Go program, which says no end, answers keepalives, and takes any message for a sign of life.

The Go program is a plain TCP peer here that sends the bytes that the Go code sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Message
from gmultisocket.errors import Closed, StreamClosed
from gmultisocket.protocol import Stream, StreamProxy, StreamSocket
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, Decoder
from tests.addresses import plain_connection

LONG = 20.0
ANY_PORT = "tcp://127.0.0.1:0"
QUIET = {"protocol.stream.keep_alive_idle": 0}

KEEP_ALIVE, ANSWER, END, CREDIT, RESET = (bytes([number]) for number in range(5))


class Go:
    """A Go program that has dialed a Stream."""

    def __init__(self, address: str) -> None:
        self.sock = plain_connection(address)
        self.sock.settimeout(LONG)
        self._decoder = Decoder(1)
        self._messages: list[Message] = []

    def send(self, frame: str, content: bytes = b"") -> None:
        self.sock.sendall(bytes.fromhex(frame) + content)

    def hear(self) -> Message:
        """Return the next message that is no credit."""
        while True:
            while not self._messages:
                data = self.sock.recv(65536)
                assert data, "the pipe was closed"
                self._messages = list(self._decoder.feed(data))
            message = self._messages.pop(0)
            if message.content[:1] != CREDIT or not message.flags & CONTROL:
                return message

    def open(self, number: int) -> str:
        """Open a connection, with an id. Return the id of its other end."""
        self.send(f"20 10 01 00 00000001 {number:08x} 00")
        answer = self.hear()
        assert (answer.flags, answer.content, answer.destination) == (0x22, ANSWER, number.to_bytes(4, "big"))
        return answer.source[-4:].hex()

    def accept(self) -> tuple[str, str]:
        """Accept a connection as number 9. Return its other end's id, and both ids as the path of answers has them."""
        opening = self.hear()
        assert (opening.flags, opening.content) == (0x20, KEEP_ALIVE)
        there = opening.source[-4:].hex()
        self.control(9, there, ANSWER)
        return there, "00000009"

    def control(self, here: int, there: str, content: bytes) -> None:
        # Its own pipe's id stands first in the destination, and is taken off.
        self.send(f"22 10 01 02 {len(content):08x} {here:08x} 00000001 {there}", content)

    def data(self, here: int, there: str, content: bytes) -> None:
        self.send(f"02 10 01 02 {len(content):08x} {here:08x} 00000001 {there}", content)


@contextmanager
def go_and(stream: Stream) -> Iterator[Go]:
    go = Go(stream.listen(ANY_PORT).address)
    try:
        yield go
    finally:
        go.sock.close()


def close(connection: StreamSocket) -> None:
    connection.close()


def abort(connection: StreamSocket) -> None:
    connection.abort()


@pytest.mark.parametrize("what", ["keepalive", "data"])
@pytest.mark.parametrize("end", [close, abort])
def test_a_connection_that_was_closed_here_gets_one_reset_and_then_silence(end: object, what: str) -> None:
    with Stream(QUIET) as stream, go_and(stream) as go:
        there = go.open(7)
        end(stream.accept(LONG))  # type: ignore[operator]
        assert go.hear().content == (END if end is close else RESET)
        for _ in range(8):
            if what == "keepalive":
                go.control(7, there, KEEP_ALIVE)
            else:
                go.data(7, there, b"more")
        assert go.hear().content == RESET
        # All that came since then is the answer to another opening.
        other = go.open(8)
        go.control(8, other, KEEP_ALIVE)
        assert go.hear().content == ANSWER


def test_what_is_remembered_of_resets_is_bounded_and_goes_with_the_pipe() -> None:
    with Stream(QUIET) as stream:
        with go_and(stream) as go:
            for number in range(2000):
                go.data(7, f"{0x40000000 + number:08x}", b"for nobody")
                assert go.hear().content == RESET
            (sent,) = stream._resets._sent.values()
            assert len(sent) <= 1024
        wait_until(lambda: not stream._resets._sent)


@contextmanager
def proxied(end_timeout: float) -> Iterator[tuple[StreamProxy, Go, gsocket.socket]]:
    """A proxy, the Go program behind it, and a plain client."""
    with Stream({"protocol.stream.keep_alive_idle": 0.05, "protocol.stream.keep_alive_interval": 5.0}) as stream:
        with go_and(stream) as go, StreamProxy(ANY_PORT, stream, end_timeout=end_timeout) as proxy:
            with plain_connection(proxy.address) as client:
                client.settimeout(LONG)
                yield proxy, go, client


def test_a_client_that_leaves_a_go_program_leaves_no_connection_behind() -> None:
    with proxied(end_timeout=0.2) as (proxy, go, client):
        client.sendall(b"hello")
        there, _ = go.accept()

        def answer_keepalives() -> None:
            while True:
                if go.hear().content == KEEP_ALIVE:
                    go.control(9, there, ANSWER)

        alive = gevent.spawn(answer_keepalives)
        client.close()
        wait_until(lambda: proxy.connections == 0)
        assert (proxy.joined, proxy.failed) == (1, 0)
        alive.kill()


def test_a_client_that_only_ends_its_data_gets_the_whole_answer_of_a_go_program() -> None:
    with proxied(end_timeout=1.0) as (proxy, go, client):
        client.sendall(b"question")
        client.shutdown(gsocket.SHUT_WR)
        there, _ = go.accept()
        while go.hear().content != END:
            pass
        for _ in range(3):
            go.data(9, there, b"answer")
            assert client.recv(6, gsocket.MSG_WAITALL) == b"answer"
        # Nothing more comes, and no end either.
        assert client.recv(1) == b""
        wait_until(lambda: proxy.connections == 0)


def test_an_end_of_data_between_streams_of_ours_has_no_time_limit() -> None:
    with Stream(QUIET) as server, Stream(QUIET) as near:
        near.dial(server.listen(ANY_PORT).address)
        with StreamProxy(ANY_PORT, near, end_timeout=0.01) as proxy, plain_connection(proxy.address) as client:
            client.settimeout(LONG)
            client.sendall(b"question")
            client.shutdown(gsocket.SHUT_WR)
            connection = server.accept(LONG)
            connection.settimeout(LONG)
            assert connection.recv(100) == b"question"
            assert connection.recv(100) == b""
            # Much longer than the limit for programs that know no end.
            gevent.sleep(0.1)
            connection.sendall(b"answer")
            connection.close()
            assert client.recv(100) == b"answer"
            assert client.recv(100) == b""


def receive(connection: StreamSocket) -> None:
    while connection.recv(65536):
        pass


def send(connection: StreamSocket) -> None:
    while True:
        connection.sendall(bytes(65536))


@pytest.mark.parametrize("call", [receive, send])
@pytest.mark.parametrize("waits", [True, False], ids=["in the call", "before the call"])
def test_a_stream_that_closes_is_an_os_error_for_its_connections(call: object, waits: bool) -> None:
    with Stream(QUIET) as server, Stream(QUIET) as client:
        client.dial(server.listen(ANY_PORT).address)
        connection = client.connect(LONG)
        calling = gevent.spawn(call, connection)
        if waits:
            halves = connection._end.receiving.readers, connection._end.sending.writers
            wait_until(lambda: any(half.waiters for half in halves))
        client.close()
        with pytest.raises(OSError) as caught:
            calling.get(timeout=LONG)
        assert isinstance(caught.value, StreamClosed) and isinstance(caught.value, Closed)
        assert "its Stream was closed" in str(caught.value)
