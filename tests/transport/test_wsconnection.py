"""WebSocket connections: whose address is whose, bytes that came early, and requests that nobody answers."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.frames import Opcode
from websockets.http11 import Request, Response

from gmultisocket import Message, Socket
from gmultisocket.errors import RequestRefused
from gmultisocket.options import Options
from gmultisocket.testing import FakeStream
from gmultisocket.transport.wsconnection import AcceptedWS, WSConnection
from gmultisocket.transport.wsframes import ClientFrames
from gmultisocket.transport.wshandshake import Agreement, parse_request
from gmultisocket.wire import encode
from tests.certificates import client_certificate, dial_options, listen_options
from tests.peers import only_pipe
from tests.transport.wspeers import frame, request

#: Neither text nor compression.
PLAIN = Agreement(False, 0)
HELLO = encode(Message(content=b"hello"))


def accepted(
    stream: FakeStream, options: dict[str, Any] | None = None, early: bytes = b"", changes: Any = None, **more: Any
) -> AcceptedWS:
    """Return the listening end of a connection on which a right request has come."""
    asked: Request = parse_request(request("/path", changes))
    return AcceptedWS(stream, "ws", "/path", Options(options), early, request=asked, **more)


# Addresses


@pytest.mark.parametrize("scheme", ["ws", "wss", "ws.rw"])
def test_both_ends_have_the_scheme_and_the_path_is_the_listeners(scheme: str) -> None:
    tls = scheme == "wss"
    with Socket() as server, Socket() as client:
        listener = server.listen(f"{scheme}://127.0.0.1:0/a/b", listen_options() if tls else None)
        client.dial(listener.address, dial_options() if tls else None)
        server.wait_pipes(1, timeout=5)
        near, far = only_pipe(client), only_pipe(server)
        assert near.peer_address == far.local_address == listener.address
        assert near.local_address == far.peer_address
        assert near.local_address.startswith(f"{scheme}://127.0.0.1:") and near.local_address.count("/") == 2


def test_the_identity_is_the_streams() -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("wss://127.0.0.1:0/", listen_options(mutual=True))
        client.dial(listener.address, dial_options(client_certificate()))
        server.wait_pipes(1, timeout=5)
        for pipe in (only_pipe(server), only_pipe(client)):
            assert pipe.identity["certificate"]["subjectAltName"]
            assert pipe.identity["tls_version"] == "TLSv1.3"


# Bytes that came early


def test_bytes_that_came_early_are_read_first_in_pieces_of_the_size_asked_for() -> None:
    stream = FakeStream([b"from the stream"])
    connection = WSConnection.dialed(stream, "ws", "/", Options(), b"early", PLAIN)
    assert [connection.recv(2) for _ in range(4)] == [b"ea", b"rl", b"y", b"fr"]
    assert connection.recv(100) == b"om the stream"


def test_what_is_put_back_is_read_before_what_is_still_early() -> None:
    connection = WSConnection.dialed(FakeStream([b"last"]), "ws", "/", Options(), b"cd", PLAIN)
    connection.unread(b"ab")
    assert [connection.recv(3) for _ in range(3)] == [b"abc", b"d", b"las"]
    connection.unread(b"x")
    assert connection.recv(10) == b"x"


def test_early_bytes_are_gone_when_the_connection_is_closed() -> None:
    stream = FakeStream()
    connection = WSConnection.dialed(stream, "ws", "/", Options(), b"early", PLAIN)
    connection.close()
    assert stream.closed
    with pytest.raises(OSError):
        connection.recv(10)


def test_what_is_written_goes_to_the_stream_as_it_is() -> None:
    stream = FakeStream()
    connection = WSConnection.dialed(stream, "ws", "/", Options(), b"", PLAIN)
    connection.send(b"one")
    connection.sendmsg([b"two", b"three"])
    connection.wait_writable()
    connection.shutdown_write()
    assert bytes(stream.sent) == b"onetwothree" and stream.write_ended


def test_an_abandoned_connection_says_nothing() -> None:
    stream = FakeStream()
    accepted(stream).abandon()
    assert stream.abandoned and not stream.sent


# What a dialer and a listener agree upon


def test_a_dialer_masks_its_frames_and_keeps_the_limit_of_its_options() -> None:
    options = Options({"connector.pipe.max_recv_content_length": 77})
    codec = WSConnection.dialed(FakeStream(), "ws", "/", options, b"", PLAIN).codec
    assert isinstance(codec, ClientFrames)
    assert codec.max_content == 77 and codec.whole
    assert not WSConnection.dialed(FakeStream(), "ws.rw", "/", options, b"", PLAIN).codec.whole


@pytest.mark.parametrize(
    ("interval", "timeout", "keepalive"), [(20.0, 20.0, (20.0, 40.0)), (3.0, 0.0, (3.0, 0.0)), (0.0, 5.0, (0.0, 5.0))]
)
def test_the_time_for_an_answer_begins_with_the_ping(
    interval: float, timeout: float, keepalive: tuple[float, float]
) -> None:
    options = Options({"transport.ws.ping_interval": interval, "transport.ws.ping_timeout": timeout})
    assert WSConnection(FakeStream(), "ws", "/", options, b"").keepalive == keepalive


# Requests


def let_in(connection: AcceptedWS) -> None:
    """Do all that an accepted connection needs before it may be a pipe, as the core does."""
    connection.handshake()
    connection.decide()
    connection.confirm()


def test_a_request_that_is_accepted_is_answered_once_and_its_early_frames_are_kept() -> None:
    stream = FakeStream()
    connection = accepted(stream, early=frame(Opcode.BINARY, HELLO))
    assert connection.needs_handshake
    let_in(connection)
    answer = bytes(stream.sent)
    assert answer.startswith(b"HTTP/1.1 101 ") and answer.endswith(b"\r\n\r\n")
    assert connection.codec.feed(connection.recv(1000)) == [HELLO]
    connection.close()
    assert bytes(stream.sent) == answer and stream.closed


def test_a_request_that_nobody_answered_is_refused_when_its_connection_is_closed() -> None:
    stream = FakeStream()
    connection = accepted(stream)
    connection.close()
    connection.close()
    assert stream.sent.startswith(b"HTTP/1.1 503 ") and stream.sent.count(b"HTTP/1.1") == 1
    assert stream.write_ended and stream.closed


def test_a_request_is_refused_once_and_nothing_is_left_to_answer() -> None:
    stream = FakeStream()
    connection = accepted(stream, {"transport.ws.listener.authorize": lambda request: 401})
    with pytest.raises(RequestRefused) as caught:
        let_in(connection)
    assert caught.value.status == 401
    connection.refuse(RequestRefused(500, "again"))
    connection.close()
    assert stream.sent.startswith(b"HTTP/1.1 401 ") and stream.sent.count(b"HTTP/1.1") == 1


def test_a_request_whose_peer_has_gone_is_refused_without_an_error() -> None:
    stream = FakeStream(takes=[BrokenPipeError(32, "broken")])
    connection = accepted(stream, changes={"Sec-WebSocket-Key": "short"})
    with pytest.raises(RequestRefused):
        let_in(connection)
    connection.close()
    assert stream.closed


def test_where_a_server_answers_itself_nothing_is_written_here() -> None:
    stream = FakeStream()
    answers: list[Response] = []
    environ = {"wsgi.url_scheme": "http"}
    seen: list[object] = []
    options = {"transport.ws.listener.authorize": lambda request: seen.append(request.environ)}
    connection = accepted(stream, options, respond=answers.append, environ=environ)
    let_in(connection)
    assert [answer.status_code for answer in answers] == [101]
    assert seen == [environ]
    connection.close()
    refused = accepted(stream, respond=answers.append, changes={"Sec-WebSocket-Key": "short"})
    with pytest.raises(RequestRefused):
        let_in(refused)
    refused.close()
    assert len(answers) == 1 and not stream.sent


def test_what_authorize_returns_is_the_identity_after_the_handshake() -> None:
    connection = accepted(FakeStream(), {"transport.ws.listener.authorize": lambda request: {"user": "ann"}})
    assert connection.identity == {}
    let_in(connection)
    assert connection.identity == {"user": "ann"}
