"""What peers can get into a log: no secret of others, and no byte that acts on a terminal or begins a line."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from websockets.frames import Close, Opcode

from gmultisocket import Address, Message, Socket, Switch, options
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import (
    AddressError,
    BadOptionValue,
    HandlerFailed,
    HandshakeFailed,
    MultiSocketError,
    RequestRefused,
    hide_values,
    printable,
    snippet,
)
from gmultisocket.options import Option, define
from gmultisocket.protocol import Pub, Rep, Req, Respondent, Stream
from gmultisocket.testing import wait_until
from gmultisocket.transport.wshandshake import UpgradeRequest
from gmultisocket.wire import CONTROL, TO_ALL
from tests.certificates import dial_options, listen_options
from tests.faults.peers import connected, listening, read_until_closed
from tests.faults.peers import frame as message_frame
from tests.transport.wspeers import RawPeer, frame, request

SECRET = "hunter2-geheim"
#: ESC, BEL, DEL, CSI of one character, signs that turn the direction, isolate or mark text, line ends, a zero-width
#: space, and a tag character.
EVIL = "\x1b]0;owned\x07\x1b[2J\x7f\x9b1m\u202eevil\u2066\u200f\u2028\u0085\r\n2000-01-01 ERROR forged\u200b\U000e0041"
EVIL_BYTES = EVIL.encode()


class Records(logging.Handler):
    """Every record of the library, as a program would write it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(self.format(record))


@pytest.fixture
def records() -> Iterator[Records]:
    """Collect all records at DEBUG, and check them when the test is done."""
    found = Records()
    logger = logging.getLogger("gmultisocket")
    level = logger.level
    logger.addHandler(found)
    logger.setLevel(logging.DEBUG)
    try:
        yield found
        # Records of the core are handled by a greenlet of their own.
        gevent.idle()
    finally:
        logger.setLevel(level)
        logger.removeHandler(found)
    for text in found.written:
        assert SECRET not in text
        lines = text.split("\n")
        assert [line for line in lines if not line.isprintable()] == []
        assert [line for line in lines if line.startswith("2000-01-01")] == []


# WebSocket handshakes

SECRETS = {"Authorization": f"Bearer {SECRET}", "Cookie": f"session={SECRET}", "Proxy-Authorization": SECRET}
REQUESTS = [
    request("/ws", SECRETS),
    request(f"/ws?token={SECRET}", SECRETS),
    request(f"/elsewhere?token={SECRET}", SECRETS),
    request("/ws", {**SECRETS, "Origin": f"http://user:{SECRET}@evil.example"}),
    request("/ws", {**SECRETS, "Sec-WebSocket-Version": "7"}),
    request("/ws", {**SECRETS, "Sec-WebSocket-Protocol": "none"}),
    request("/ws", SECRETS, method="POST"),
    request("/ws", {**SECRETS, "X": EVIL}),
    *(request("/ws", {name: f"{EVIL[:-20]}\u202ex"})
      for name in ("Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Host", "Origin")),
    *(request("/ws", {name: "\u202e\u2066\u0085"})
      for name in ("Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Host", "Origin")),
    b"GET /ws\x1b[2J HTTP/1.1\r\n\r\n",
    b"GET /ws HTTP/1.1\r\n" + EVIL_BYTES + b": x\r\n\r\n",
    b"\x1b" + EVIL_BYTES,
    EVIL_BYTES,
]  # fmt: skip


def talk(address: str, data: bytes) -> None:
    """Send a request, answer a 101 with evil frames, and wait until the other side closes."""
    with RawPeer(address) as peer:
        try:
            peer.send(data)
            if b" 101 " in peer.read_head():
                peer.send(frame(Opcode.CLOSE, Close(1000, EVIL[:30]).serialize()))
            peer.sock.shutdown(1)
            peer.read_rest()
        except (ConnectionError, AssertionError):
            pass


@pytest.mark.parametrize("authorize", [None, lambda _: None, lambda _: 403, lambda _: 1 // 0, lambda r: fail(r)])
def test_requests_at_a_listener(records: Records, authorize: Callable[[Any], object] | None) -> None:
    with Socket({"transport.ws.listener.authorize": authorize}) as server:
        address = server.listen("ws://127.0.0.1:0/ws").address
        for data in REQUESTS:
            talk(address, data)
        wait_until(lambda: not server.pipes)
    assert records.written


def fail(request: UpgradeRequest) -> None:
    """A function of a program that does not think of logs; what it does with secrets is its own business."""
    raise ValueError(f"refused {request!r} {EVIL}")


@pytest.mark.parametrize("authorize", [None, lambda r: fail(r)])
def test_requests_at_a_mounted_listener(records: Records, authorize: Callable[[Any], object] | None) -> None:
    with Socket() as server:
        application = mount(server, "/ws", options={"transport.ws.listener.authorize": authorize})
        http = WSGIServer(("127.0.0.1", 0), application, log=None, error_log=io.StringIO())
        http.start()
        for data in REQUESTS:
            if data.startswith(b"GET"):
                talk(f"ws://127.0.0.1:{http.server_port}/ws", data)
        application.stop()
        http.stop(timeout=5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 " + EVIL_BYTES,
        b"HTTP/1.1 403 Forbidden\r\n\r\n" + EVIL_BYTES,
        b"HTTP/1.1 101 \x1b[2J\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: \xe2\x80\xae\r\n\r\n",
        b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \xc2\x9b\r\n\r\n",
        EVIL_BYTES,
        b"",
    ],
)
def test_answers_to_a_dialer(records: Records, answer: bytes) -> None:
    with listening() as (sock, address), Socket() as client:

        def serve() -> None:
            while True:
                peer, _ = sock.accept()
                with peer:
                    peer.recv(65536)
                    peer.sendall(answer)

        server = gevent.spawn(serve)
        dialed = {"transport.ws.headers": SECRETS}
        with pytest.raises(HandshakeFailed) as raised:
            client.dial(address.replace("tcp", "ws"), dialed)
        assert_safe(raised.value)
        # And in the background, where only the log says what went wrong.
        dialer = client.dial(address.replace("tcp", "ws"), {**dialed, "connector.dialer.dial_async": True})
        wait_until(lambda: dialer.last_error is not None)
        server.kill()
    assert any("dialing" in text for text in records.written)


def assert_safe(error: BaseException) -> None:
    """Check that an error and its causes could be printed."""
    while isinstance(error, MultiSocketError):
        assert str(error).isprintable() and SECRET not in str(error) and SECRET not in repr(error)
        if error.__cause__ is None:
            return
        error = error.__cause__


# Functions of the program that fail with words of a peer


def shout(*args: object) -> None:
    raise ValueError(f"do not like {EVIL}")


def test_a_negotiator(records: Records) -> None:
    with Socket() as server, Socket() as client:
        server.set_negotiator(shout)
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        wait_until(lambda: any("a negotiator failed" in text for text in records.written))


def test_a_middleware_a_callback_and_a_handler(records: Records) -> None:
    with Socket() as back, Socket() as front, Switch(back, front, shout) as switch, Rep(shout) as rep, Req() as req:
        front.on_pipe(shout)
        with connected(front.listen("tcp://127.0.0.1:0")) as peer:
            peer.sendall(message_frame(EVIL_BYTES))
            wait_until(lambda: switch.drops)
        rep.start()
        req.dial(rep.listen("inproc://hostile-logs").address)
        with pytest.raises(HandlerFailed):
            req.request(EVIL_BYTES, timeout=5)
    assert sum("do not like" in text for text in records.written) >= 3


@pytest.mark.parametrize("protocol", [Pub, Req, Rep, Respondent, Stream])
def test_garbage_at_a_protocol(records: Records, protocol: Callable[[], Any]) -> None:
    with protocol() as server, Socket() as peer:
        peer.dial(server.listen("tcp://127.0.0.1:0").address)
        for flags in (0, CONTROL, TO_ALL, TO_ALL | CONTROL):
            peer.send_msg(Message(flags, content=EVIL_BYTES))
            peer.send_msg(Message(flags, content=b"\x01" + EVIL_BYTES))
        wait_until(lambda: server.socket.counters.messages_received == 8)


@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp", "ws", "wss", "ipc"])
def test_garbage_at_a_listener(records: Records, scheme: str, tmp_path: Any) -> None:
    where = f"ipc://{tmp_path}/evil" if scheme == "ipc" else f"{scheme}://127.0.0.1:0"
    with Socket() as server:
        secure = scheme in ("tls+tcp", "wss")
        listener = server.listen(where, listen_options() if secure else None)
        plain = listener.address.replace(scheme, "tcp").removesuffix("/") if scheme != "ipc" else listener.address
        with connected(plain) as peer:
            peer.sendall(EVIL_BYTES * 20)
            peer.shutdown(1)
            read_until_closed(peer)
        wait_until(lambda: not server.pipes)


def test_what_comes_over_tls_is_logged_no_worse(records: Records) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("wss://127.0.0.1:0/ws", listen_options()).address,
                    {**dial_options(), "transport.ws.headers": SECRETS})  # fmt: skip
        client.send(EVIL_BYTES)
        assert server.recv(timeout=5) == EVIL_BYTES
    assert records.written


# Errors


def test_the_value_of_an_option_that_holds_secrets_is_not_repeated() -> None:
    for address in (
        f"wss://127.0.0.1:1/?transport.tls.password={SECRET}",
        f"wss://127.0.0.1:1/?Transport.Tls.Password={SECRET}",
        f"wss://127.0.0.1:1/?transport.ws.headers=Authorization:{SECRET}",
        f"wss://127.0.0.1:1/?transport.tls.keyfile={SECRET}%zz",
        f"wss://127.0.0.1:1/?transport.tls.keyfile={SECRET}&transport.tls.keyfile={SECRET}",
        f"wss://127.0.0.1:1/?transport.tls.keyfile={SECRET}&*=1",
        f"wss://127.0.0.1/ä?transport.tls.keyfile={SECRET}",
        f"tcp://127.0.0.1:0?transport.tls.keyfile={SECRET}#dial",
        f"tcp://127.0.0.1?transport.tls.keyfile={SECRET}#dial",
        f"tcp://127.0.0.1:1?transport.ws.listener.origins=https://user:{SECRET}@example.com/x",
        f"tcp://user:{SECRET}@127.0.0.1:1",
        f"tcp://127.0.0.1:1?unknown={SECRET}",
    ):
        with Socket() as sock, pytest.raises(MultiSocketError) as raised:
            sock.connect(address) if "#" in address else sock.dial(address)
        text = f"{raised.value} {raised.value!r} {raised.value.args} {vars(raised.value)}"
        assert SECRET not in text, address


@pytest.mark.parametrize("option", [options.transport.tls.password, options.transport.ws.headers])
def test_a_wrong_value_from_a_program_is_not_repeated_either(option: Option[Any]) -> None:
    for value in (SECRET, [SECRET], {"Authorization": f"{SECRET}\n"}):
        with pytest.raises(BadOptionValue) as raised:
            Socket({option: value})
        assert SECRET not in f"{raised.value} {raised.value!r}"


def test_neither_options_nor_requests_show_secrets() -> None:
    with Socket({"transport.ws.headers": SECRETS, "socket.send_ttl": 3}) as sock:
        assert SECRET not in repr(sock.options) and "'socket.send_ttl': 3" in repr(sock.options)


def test_an_option_of_another_library_may_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from gmultisocket.options import option as registry

    monkeypatch.setattr(registry, "_by_name", dict(registry._by_name))
    monkeypatch.setattr(registry, "_by_go_name", dict(registry._by_go_name))
    define("smoke.key", str, "", secret=True)
    address = Address.parse(f"tcp://127.0.0.1:1?smoke.key={SECRET}")
    assert address.options == {"smoke.key": SECRET}
    assert SECRET not in repr(address)


def test_a_cli_option_does_not_repeat_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    from gmultisocket.cli import main

    assert main(["recv", "-o", f"transport.tls.password={SECRET}", "--listen", "tcp://127.0.0.1:0"]) == 2
    assert SECRET not in capsys.readouterr().err


@pytest.mark.parametrize("text", [EVIL, "\ud800", "\x00", "\t", "\xa0", "ok\n", "\u061c", "\ufeff", "\U000e0001"])
def test_printable_escapes_everything_that_is_not_a_character_to_see(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()
    assert snippet(text, 10_000).isascii() and snippet(text, 10_000).isprintable()


def test_printable_leaves_texts_of_people_alone() -> None:
    for text in ("", "a plain text: 1 %", "/srv/größe/ключ.pem"):
        assert printable(text) == text


class _Rude:
    def __repr__(self) -> str:
        return EVIL


def test_a_snippet_of_any_object_is_printable() -> None:
    for value in (EVIL_BYTES, _Rude(), [EVIL], {EVIL: EVIL_BYTES}, 5, None):
        assert snippet(value).isascii() and snippet(value).isprintable()


def test_the_values_in_an_address_are_hidden_and_the_rest_is_not() -> None:
    assert hide_values("tcp://h:1/a=b?x.y=1&z#dial") == "tcp://h:1/a=b?x.y=***&z#dial"
    assert hide_values("tcp://h:1") == "tcp://h:1"
    assert AddressError("tcp://h:1?x=1", "no").address == "tcp://h:1?x=***"


def test_errors_with_words_of_a_peer_are_printable() -> None:
    for error in (RequestRefused(403, EVIL, address=EVIL), HandshakeFailed(EVIL, EVIL)):
        assert str(error).isprintable()
