"""The opening handshake: who is let in, and with which HTTP status the others are refused, before any 101."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from websockets.frames import Opcode

from gmultisocket import Message, Socket
from gmultisocket.errors import BadOptionValue, HandshakeFailed, PipeRefused, RequestRefused
from gmultisocket.options import Options
from gmultisocket.testing import FakeStream, wait_until
from gmultisocket.transport import wshandshake
from gmultisocket.transport.ws import UpgradeRequest
from gmultisocket.transport.wshandshake import MAX_HEAD, DialerHandshake, parse_request, read_head
from gmultisocket.wire import encode
from tests.cases import every_case
from tests.certificates import client_certificate, dial_options, listen_options
from tests.transport.wspeers import KEY, RawPeer, frame, request

WS = "ws://127.0.0.1:0/path"
LISTENER = "transport.ws.listener."
HELLO = encode(Message(content=b"hello"))


@pytest.fixture
def server() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock
        sock.close(linger=0)


def ask(server: Socket, data: bytes, options: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
    """Return status and all of the answer to a request."""
    listener = server.listeners[0] if server.listeners else server.listen(WS, options)
    with RawPeer(listener.address) as peer:
        peer.send(data)
        head = peer.read_head()
        status = int(head.split(b" ")[1])
        return status, head + b"\r\n\r\n" + (b"" if status == 101 else peer.read_rest())


def test_a_right_request_is_accepted(server: Socket) -> None:
    status, answer = ask(server, request("/path"))
    assert status == 101
    # From the RFC's own example: the tests' key is the same.
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer
    assert b"Sec-WebSocket-Protocol: multisocket.binary" in answer


WRONG_REQUESTS = {
    "no subprotocol": (request("/path", {"Sec-WebSocket-Protocol": None}), 400),
    "another subprotocol": (request("/path", {"Sec-WebSocket-Protocol": "chat, multisocket.other"}), 400),
    "no key": (request("/path", {"Sec-WebSocket-Key": None}), 400),
    "a short key": (request("/path", {"Sec-WebSocket-Key": "short"}), 400),
    "no version": (request("/path", {"Sec-WebSocket-Version": None}), 400),
    "no host": (request("/path", {"Host": None}), 400),
    "a body": (request("/path", {"Content-Length": "5"}), 400),
    "a header without a colon": (request("/path", {"no colon in this\r\nX": ""}), 400),
    "half a request line": (b"GET\r\n\r\n", 400),
    "too long a request line": (b"GET /path HTTP/1.1 more\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a frame of ours": (HELLO, 400),
    "another path": (request("/"), 404),
    "a path with a slash more": (request("/path/"), 404),
    "a path with a letter more": (request("/paths"), 404),
    "another path and no upgrade": (request("/nothing", {"Upgrade": None}), 404),
    "another method": (request("/path", method="POST"), 405),
    "http/2": (request("/path", method="PRI", version="HTTP/2.0"), 405),
    "no upgrade": (request("/path", {"Upgrade": None}), 426),
    "another upgrade": (request("/path", {"Upgrade": "h2c"}), 426),
    "no upgrade in the connection header": (request("/path", {"Connection": "keep-alive"}), 426),
    "an old version": (request("/path", {"Sec-WebSocket-Version": "7"}), 426),
    "a list of versions": (request("/path", {"Sec-WebSocket-Version": "8, 13"}), 426),
    "a long path": (request("/" + "a" * 9000), 414),
    "a long header": (request("/path", {"X": "a" * 9000}), 431),
    "long headers": (request("/path", {"X": "a" * 4000, "Y": "b" * 4000, "Z": "c" * 8100, "W": "d" * 400}), 431),
    "many headers": (request("/path", {f"X-{number}": "" for number in range(200)}), 431),
    "an endless header": (b"GET /path HTTP/1.1\r\nX: " + b"a" * 60_000, 431),
    "http/1.0": (request("/path", version="HTTP/1.0"), 505),
}


def test_a_wrong_request_is_refused_with_the_right_status(server: Socket) -> None:
    with every_case() as case:
        for name, (data, status) in WRONG_REQUESTS.items():
            with case(name):
                found, answer = ask(server, data)
                assert found == status
                head, _, body = answer.partition(b"\r\n\r\n")
                assert b"Connection: close" in head and b"Content-Type: text/plain" in head
                assert f"Content-Length: {len(body)}".encode() in head
                assert body.startswith(str(status).encode()) and len(body) < 600
                assert not server.pipes
                assert server.listeners[0].refused == server.listeners[0].accepted


def test_a_refused_version_or_method_is_told_what_would_be_right(server: Socket) -> None:
    assert b"Sec-WebSocket-Version: 13" in ask(server, request("/path", {"Sec-WebSocket-Version": "7"}))[1]
    assert b"Upgrade: websocket" in ask(server, request("/path", {"Upgrade": None}))[1]
    assert b"Allow: GET" in ask(server, request("/path", method="PUT"))[1]


def test_a_query_is_no_part_of_the_path(server: Socket) -> None:
    assert ask(server, request("/path?token=x"))[0] == 101


def test_compression_is_not_agreed_to(server: Socket) -> None:
    status, answer = ask(server, request("/path", {"Sec-WebSocket-Extensions": "permessage-deflate"}))
    assert status == 101 and b"permessage-deflate" not in answer


def test_what_a_request_holds_does_not_get_into_the_answer_as_it_is(server: Socket) -> None:
    status, answer = ask(server, request("/path", {"Upgrade": "<script>\x7f", "X": "y"}))
    assert status in (400, 426)
    assert b"\x7f" not in answer


# Origins

ORIGIN: dict[str, str | None] = {"Host": "example.com", "Origin": "http://example.com"}
HOSTS = {"hosts": ["example.com"]}


ORIGINS: list[tuple[dict[str, str | None], dict[str, Any], int]] = [
    ({}, {}, 101),
    (ORIGIN, HOSTS, 101),
    ({"Host": "Example.com:8080", "Origin": "https://example.com:8080"}, HOSTS, 101),
    ({"Host": "example.com", "Origin": "http://evil.example"}, {}, 403),
    ({"Host": "example.com", "Origin": "http://example.com.evil.example"}, {}, 403),
    ({"Host": "example.com", "Origin": "http://example.com:81"}, {}, 403),
    ({"Host": "example.com", "Origin": "null"}, {}, 403),
    ({"Host": "example.com", "Origin": ""}, {}, 403),
    ({"Host": "", "Origin": "null"}, {}, 403),
    ({"Origin": "http://evil.example"}, {"check_origin": True}, 403),
    ({"Origin": "http://evil.example"}, {"check_origin": False}, 101),
    ({"Origin": "http://Good.example"}, {"origins": ["http://good.example"]}, 101),
    ({"Origin": "http://good.example"}, {"origins": [re.compile("http://.*[.]example")]}, 101),
    ({"Origin": "http://good.example.evil"}, {"origins": ["http://good.example"]}, 403),
    (ORIGIN, {"origins": ["http://good.example"], **HOSTS}, 101),
    ({"Origin": "http://evil.example"}, {"origin_checker": lambda request: True}, 101),
    (ORIGIN, {"origin_checker": lambda request: False}, 403),
    ({}, {"origin_checker": lambda request: None}, 403),
    ({}, {"origin_checker": lambda request: 1 // 0}, 500),
    ({"Origin": "x"}, {"origin_checker": lambda request: False, "check_origin": False}, 101),
]


def test_a_page_may_connect_from_its_own_host_and_from_those_that_are_listed() -> None:
    with every_case() as case:
        for headers, options, status in ORIGINS:
            with case(f"{status} for {headers}, {options}"), Socket() as server:
                named = {LISTENER + name: value for name, value in options.items()}
                assert ask(server, request("/path", headers), named)[0] == status
                server.close(linger=0)


def test_origins_can_be_written_in_an_address() -> None:
    with Socket() as server:
        server.listen(WS + "?transport.ws.listener.origins=http://a.example,https://b.example:444")
        assert ask(server, request("/path", {"Origin": "https://b.example:444"}))[0] == 101
        assert ask(server, request("/path", {"Origin": "https://b.example"}))[0] == 403
        server.close(linger=0)


@pytest.mark.parametrize("value", ["http://a.example", ["a.example"], ["http://a.example/path"], [1], 5])
def test_wrong_origins_are_a_wrong_value(value: object) -> None:
    with pytest.raises(BadOptionValue):
        Socket({LISTENER + "origins": value})


def test_more_than_one_origin_is_refused(server: Socket) -> None:
    data = request("/path").replace(b"\r\n\r\n", b"\r\nOrigin: http://a\r\nOrigin: http://b\r\n\r\n")
    assert ask(server, data)[0] == 400


# Authorization


VERDICTS = [
    (None, 101),
    (True, 101),
    (False, 403),
    (401, 401),
    (503, 503),
    (200, 403),
    (101, 403),
    (999, 403),
    (RequestRefused(401, "no token", {"WWW-Authenticate": "Bearer", "X\r\nY": "z"}), 401),
    (PipeRefused("not you"), 403),
    (ZeroDivisionError("a bug"), 500),
    ({"user": "ann"}, 101),
    ("ann", 101),
]


def test_authorize_lets_in_or_refuses() -> None:
    with every_case() as case:
        for verdict, status in VERDICTS:
            with case(repr(verdict)), Socket() as server:
                check_verdict(server, verdict, status)
                server.close(linger=0)


def check_verdict(server: Socket, verdict: object, status: int) -> None:
    def authorize(request: UpgradeRequest) -> object:
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    found, answer = ask(server, request("/path"), {LISTENER + "authorize": authorize})
    assert found == status
    if status == 401 and isinstance(verdict, RequestRefused):
        assert b"WWW-Authenticate: Bearer\r\n" in answer and b"no token" in answer and b"Y: z" not in answer
    if status == 500:
        assert b"a bug" not in answer, "what went wrong in here is nobody else's business"


@pytest.mark.parametrize(("verdict", "shown"), [({"user": "ann", "admin": True}, {"user": "ann", "admin": True}),
                                               ("ann", {"user": "ann"}), (None, {})])  # fmt: skip
def test_an_identity_shows_on_the_pipe(server: Socket, verdict: object, shown: dict[str, object]) -> None:
    address = server.listen(WS, {LISTENER + "authorize": lambda request: verdict}).address
    with Socket() as client:
        client.dial(address)
        server.wait_pipes(1, timeout=5)
        (pipe,) = server.pipes.values()
        assert pipe.identity == shown


def test_a_certificate_is_known_to_authorize_and_stays_in_the_identity() -> None:
    seen: list[UpgradeRequest] = []

    def authorize(request: UpgradeRequest) -> dict[str, str]:
        seen.append(request)
        return {"user": "ann"}

    with Socket() as server, Socket() as client:
        options = {**listen_options(mutual=True), LISTENER + "authorize": authorize}
        client.dial(server.listen("wss://127.0.0.1:0/a/b", options).address, dial_options(client_certificate()))
        server.wait_pipes(1, timeout=5)
        (pipe,) = server.pipes.values()
        assert pipe.identity["certificate"]["subject"] and pipe.identity["user"] == "ann"
        assert seen[0].identity["certificate"] == pipe.identity["certificate"]


def test_authorize_sees_the_request(server: Socket) -> None:
    seen: list[UpgradeRequest] = []
    options = {LISTENER + "authorize": seen.append}
    ask(server, request("/path?a=b&c", {"Cookie": "session=1", "X-Token": "secret"}), options)
    (found,) = seen
    assert (found.path, found.query) == ("/path", "a=b&c")
    assert found.headers["cookie"] == "session=1" and found.headers.get("x-token") == "secret"
    assert found.peer_address.startswith("ws://127.0.0.1:") and not found.identity and not found.environ


def test_authorize_may_block_and_holds_up_nobody_else(server: Socket) -> None:
    def authorize(request: UpgradeRequest) -> None:
        if request.query == "slow":
            gevent.sleep(60)

    options = {LISTENER + "authorize": authorize, "connector.pipe.decide_timeout": 0.3}
    address = server.listen(WS, options).address
    with RawPeer(address) as slow:
        slow.send(request("/path?slow"))
        for _ in range(3):
            assert ask(server, request("/path"))[0] == 101
        assert slow.status() == 503
        assert slow.read_rest() != b""


def test_an_error_in_authorize_is_logged_with_its_traceback(server: Socket, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "gmultisocket"):
        ask(server, request("/path"), {LISTENER + "authorize": lambda request: 1 // 0})
    (record,) = caplog.records
    assert record.exc_info and record.exc_info[0] is ZeroDivisionError


# The pipe limit


def test_over_the_pipe_limit_a_request_waits_for_its_answer_or_is_refused() -> None:
    with Socket({"connector.pipe_limit": 1}) as server:
        address = server.listen(WS, {"connector.listener.handshake_timeout": 0.3}).address
        with RawPeer(address) as first, RawPeer(address) as second:
            first.send(request("/path"))
            assert first.status() == 101
            second.send(request("/path"))
            first.close()
            assert second.status() == 101
        server.close(linger=0)
    with Socket({"connector.pipe_limit": 1, "connector.listener.over_limit": "refuse"}) as server:
        address = server.listen(WS).address
        with RawPeer(address) as first, RawPeer(address) as second:
            first.send(request("/path"))
            assert first.status() == 101
            second.send(request("/path"))
            assert second.status() == 503
        server.close(linger=0)


# Heads


def test_a_head_may_come_byte_by_byte_and_what_follows_it_is_kept() -> None:
    head = request("/path")
    for step in (1, 2, 3, 7, len(head) - 1, len(head)):
        stream = FakeStream([head[start : start + step] for start in range(0, len(head), step)] + [b"rest"])
        assert read_head(stream) == (head, b"")
    assert read_head(FakeStream([head + b"rest"])) == (head, b"rest")
    assert parse_request(head).path == "/path"


def test_a_head_of_the_longest_kind_is_taken_and_a_longer_one_is_not() -> None:
    fits = b"GET / HTTP/1.1\r\nX: ".ljust(MAX_HEAD - 4, b"a") + b"\r\n\r\n"
    assert read_head(FakeStream([fits])) == (fits, b"")
    for data in (fits[:-4] + b"a\r\n\r\n", fits[:-4] + b"a" * 5):
        with pytest.raises(RequestRefused) as caught:
            read_head(FakeStream([data]))
        assert caught.value.status == 431


def test_nothing_of_the_handshake_is_kept_on_a_pipe(server: Socket) -> None:
    with RawPeer(server.listen(WS).address) as peer:
        peer.send(request("/path"))
        assert peer.status() == 101
        wait_until(lambda: server.pipes)
        (pipe,) = server.pipes.values()
        kept = [getattr(pipe._connection, name) for name in ("_request", "_respond", "_environ", "_early", "_identity")]
        assert not any(kept)
        peer.send(frame(Opcode.BINARY, HELLO))
        assert server.recv(timeout=5) == b"hello"


# The dialing side


def answered(changes: Mapping[str, str | None] | None = None) -> bool:
    """Give a dialer an answer that is right but for some headers. Return whether the subprotocol is text."""
    handshake = DialerHandshake("ws://peer/", "peer", 80, False, "/", {"Sec-WebSocket-Key": KEY}, Options())
    handshake._protocol.key = KEY
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "Sec-WebSocket-Protocol": "multisocket.binary",
        **(changes or {}),
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return handshake.finish("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()).text


def test_a_dialer_needs_an_answer_to_its_own_key_with_a_subprotocol_that_it_has_offered() -> None:
    assert answered() is False
    assert answered({"Sec-WebSocket-Protocol": "multisocket.text"}) is True
    neither = "the peer accepted none of the subprotocols: multisocket.binary multisocket.text"
    for changes, why in (
        ({"Sec-WebSocket-Protocol": None}, neither),
        ({"Sec-WebSocket-Accept": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, "Sec-WebSocket-Accept"),
        ({"Sec-WebSocket-Accept": None}, "Sec-WebSocket-Accept"),
        ({"Upgrade": None}, "Upgrade"),
        ({"Sec-WebSocket-Protocol": "chat"}, "chat"),
    ):
        with pytest.raises(HandshakeFailed) as caught:
            answered(changes)
        assert type(caught.value) is HandshakeFailed and why in caught.value.why


# In the greenlet of another server


@pytest.mark.parametrize("error", [gevent.GreenletExit(), gevent.Timeout(1)], ids=["stop", "timeout"])
def test_what_another_server_raises_in_its_greenlet_passes_through_the_programs_functions(error: BaseException) -> None:
    def function(request: object) -> None:
        raise error

    served = SimpleNamespace(environ={"REQUEST_METHOD": "GET"}, peer_address="a peer")
    own = SimpleNamespace(environ={}, peer_address="a peer")
    with pytest.raises(type(error)) as caught:
        wshandshake._call("authorize", function, served, Options())  # type: ignore[arg-type]
    assert caught.value is error
    with pytest.raises(RequestRefused) as refused:
        wshandshake._call("authorize", function, own, Options())  # type: ignore[arg-type]
    assert refused.value.status == 500
