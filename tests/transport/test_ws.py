"""ws and wss: the transport's own checks, other people's peers, and what a peer is told when it closes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import subprocess
from gevent.event import Event
from websockets.frames import Opcode

from gmultisocket import Message, Socket
from gmultisocket.address import Address
from gmultisocket.errors import AddressError, AddressInUse, Closed, HandshakeFailed, RequestRefused
from gmultisocket.options import Options
from gmultisocket.testing import PacketTransportChecks, wait_until
from gmultisocket.transport import ws, wshandshake, wsport
from gmultisocket.transport.base import StreamConnection
from gmultisocket.transport.tcp import TCPConnection
from gmultisocket.transport.wshandshake import parse_request, read_head
from gmultisocket.wire import Decoder, encode
from tests.addresses import plain_listener
from tests.certificates import TLS, dial_options, listen_options, write_authority
from tests.transport.wspeers import RawPeer, frame, request, upgraded

WS = "ws://127.0.0.1:0"
HELLO = encode(Message(content=b"hello"))
MODES = pytest.mark.parametrize("subprotocol", ["multisocket.binary", "multisocket.text"])


class TestWs(PacketTransportChecks):
    address = "ws://127.0.0.1:0/some/path"
    bad_addresses = ("ws://", "ws:///path", "ws://:80/", "ws://127.0.0.1:65536/", "ws://::1:80/", "ws://127.0.0.1:80/ä")


class TestWsWithoutPath(PacketTransportChecks):
    address = "ws.sr://127.0.0.1:0"


class TestWsAsOneStream(PacketTransportChecks):
    address = "ws.rw://127.0.0.1:0/"


class TestWss(PacketTransportChecks):
    address = "wss://127.0.0.1:0/"
    bad_addresses = ("wss://", "wss://127.0.0.1:65536/")
    dial_options = dial_options()
    listen_options = listen_options()
    half_close = False


@pytest.fixture
def server() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock
        sock.close(linger=0)


def decoded(data: bytes) -> Message:
    (message,) = Decoder(1).feed(data)
    return message


# Other people's code. It blocks, and so it runs in a process of its own.

_WEBSOCKET_CLIENT = """
import json, ssl, sys, websocket
address, cafile, subprotocol, *frames = sys.argv[1:]
peer = websocket.create_connection(address, subprotocols=[subprotocol], timeout=20,
                                   sslopt={"ca_certs": cafile} if cafile else None)
send = peer.send_binary if subprotocol.endswith("binary") else lambda data: peer.send(data.decode())
received = []
for each in frames:
    send(bytes.fromhex(each))
    opcode, data = peer.recv_data()
    received.append([opcode, data.hex()])
peer.close()
print(json.dumps({"subprotocol": peer.subprotocol, "received": received}))
"""

_WEBSOCKETS = """
import json, ssl, sys
from websockets.sync.client import connect
address, cafile, subprotocol, *frames = sys.argv[1:]
context = ssl.create_default_context(cafile=cafile) if cafile else None
with connect(address, subprotocols=[subprotocol], ssl=context, open_timeout=20) as peer:
    received = []
    for each in frames:
        data = bytes.fromhex(each)
        peer.send(data if subprotocol.endswith("binary") else data.decode())
        answer = peer.recv(timeout=20)
        text = isinstance(answer, str)
        received.append([1 if text else 2, (answer.encode() if text else answer).hex()])
print(json.dumps({"subprotocol": peer.subprotocol, "received": received}))
"""


def run(program: str, *args: str) -> dict[str, object]:
    """Run a program of other people's in a process of its own, and return what it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = process.communicate(timeout=40)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0, err.decode()
    found: dict[str, object] = json.loads(out)
    return found


@MODES
@pytest.mark.parametrize("program", [_WEBSOCKET_CLIENT, _WEBSOCKETS], ids=["websocket-client", "websockets.sync"])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_other_peoples_clients_get_replies(
    server: Socket, tmp_path: Path, scheme: str, program: str, subprotocol: str
) -> None:
    options = listen_options() if scheme == "wss" else {}
    address = server.listen(f"{scheme}://127.0.0.1:0/chat", options).address
    contents = [b"", b"hello", b"x" * 100, b"y" * 60_000]
    if subprotocol.endswith("text"):
        # Its clients can send only headers that are UTF-8 themselves: lengths with bytes below 128.
        contents = [b"", b"hello", b"z" * 0x0101]
    cafile = write_authority(tmp_path)[TLS.cafile.name] if scheme == "wss" else ""
    frames = [encode(Message(content=content)).hex() for content in contents]
    client = gevent.spawn(run, program, address, cafile, subprotocol, *frames)
    try:
        for content in contents:
            message = server.recv_msg(timeout=30)
            assert message.content == content
            server.send_to(message.source, b"re: " + content)
        result = client.get(timeout=30)
    finally:
        client.kill()
    assert result["subprotocol"] == subprotocol
    replies = [decoded(bytes.fromhex(data)).content for _, data in result["received"]]  # type: ignore[attr-defined]
    assert replies == [b"re: " + content for content in contents]
    wait_until(lambda: not server.pipes)


_SERVER = """
import sys
from websockets.sync.server import serve

def echo(peer):
    for data in peer:
        peer.send(data)

with serve(echo, "127.0.0.1", 0, subprotocols=[sys.argv[1]]) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


@MODES
def test_a_server_made_of_websockets_can_be_dialed(subprotocol: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, subprotocol], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        port = int(process.stdout.readline())
        contents = [b"", b"hello", b"\xff" * 200, b"y" * 100_000]
        with Socket() as client:
            client.dial(f"ws://127.0.0.1:{port}/any/path")
            for content in contents:
                client.send(content)
                # The echo of a message to one is one too.
                assert client.recv(timeout=20) == content
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# What is on the wire


def test_a_message_is_one_binary_websocket_message_each_way(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        peer.send(frame(Opcode.BINARY, HELLO))
        message = server.recv_msg(timeout=5)
        assert message.content == b"hello" and message.hops == 1
        server.send_to(message.source, b"back")
        answer = peer.read_frame()
        assert (answer.opcode, answer.fin) == (Opcode.BINARY, True)
        assert decoded(answer.data).content == b"back"


def test_frames_right_behind_the_request_are_kept(server: Socket) -> None:
    data = frame(Opcode.BINARY, HELLO) * 2
    with upgraded(server.listen(WS).address, early=data[:-5]) as peer:
        assert server.recv(timeout=5) == b"hello"
        peer.send(data[-5:])
        assert server.recv(timeout=5) == b"hello"


def test_fragments_with_pings_between_them_are_one_message(server: Socket) -> None:
    with upgraded(server.listen(WS).address) as peer:
        peer.send(frame(Opcode.BINARY, HELLO[:3], fin=False) + frame(Opcode.PING, b"there?"))
        pong = peer.read_frame()
        assert (pong.opcode, pong.data) == (Opcode.PONG, b"there?")
        peer.send(frame(Opcode.CONT, b"", fin=False) + frame(Opcode.CONT, HELLO[3:]))
        assert server.recv(timeout=5) == b"hello"


def test_a_listener_prefers_binary(server: Socket) -> None:
    with RawPeer(server.listen(WS).address) as peer:
        peer.send(request("/", {"Sec-WebSocket-Protocol": "multisocket.text, multisocket.binary, other"}))
        assert b"Sec-WebSocket-Protocol: multisocket.binary" in peer.read_head()


def test_in_text_mode_headers_that_are_no_utf8_go_out_as_binary(server: Socket) -> None:
    with upgraded(server.listen(WS).address, "multisocket.text") as peer:
        peer.send(frame(Opcode.TEXT, HELLO))
        assert server.recv(timeout=5) == b"hello"
        server.send_all(b"a" * 100)
        server.send_all(b"b" * 200)
        kinds = [(found.opcode, decoded(found.data).content[:1]) for found in (peer.read_frame(), peer.read_frame())]
        assert kinds == [(Opcode.TEXT, b"a"), (Opcode.BINARY, b"b")]


def test_a_broadcast_reaches_binary_text_and_dialed_peers_alike(server: Socket) -> None:
    address = server.listen(WS).address
    with upgraded(address) as binary, upgraded(address, "multisocket.text") as text, Socket() as dialed:
        dialed.dial(address)
        server.wait_pipes(3, timeout=5)
        for number in range(100):
            server.send_all(b"%d" % number)
        for peer in (binary, text):
            assert [decoded(peer.read_frame().data).content for _ in range(100)] == [b"%d" % n for n in range(100)]
        assert [dialed.recv(timeout=5) for _ in range(100)] == [b"%d" % n for n in range(100)]


def test_under_rw_websocket_messages_are_pieces_of_one_stream(server: Socket) -> None:
    with upgraded(server.listen("ws.rw://127.0.0.1:0").address) as peer:
        data = HELLO * 3
        for start in range(0, len(data), 5):
            peer.send(frame(Opcode.BINARY, data[start : start + 5]))
        assert [server.recv(timeout=5) for _ in range(3)] == [b"hello"] * 3


# Ports and paths


def test_listeners_with_different_paths_share_a_port_across_sockets() -> None:
    with Socket() as one, Socket() as other, Socket() as client:
        first = one.listen("ws://127.0.0.1:0/one")
        port = first.address.rpartition("/")[0]
        other.listen(f"{port}/other")
        one.listen(f"{port}/third")
        for path, sock in (("one", one), ("other", other), ("third", one)):
            dialer = client.dial(f"{port}/{path}")
            client.send(path.encode())
            assert sock.recv(timeout=5) == path.encode()
            dialer.close()
            assert dialer.pipe is not None
            dialer.pipe.close()
        first.close()
        with pytest.raises(RequestRefused) as caught:
            client.dial(f"{port}/one")
        assert caught.value.status == 404
        client.dial(f"{port}/other")


def test_a_path_belongs_to_one_listener() -> None:
    with Socket() as one, Socket() as other:
        address = one.listen("ws://127.0.0.1:0/path").address
        with pytest.raises(AddressInUse):
            other.listen(address)
        one.stop_listen(address)
        assert other.listen(address).address == address


def test_with_port_0_each_listener_has_a_port_of_its_own() -> None:
    with Socket() as sock:
        assert sock.listen("ws://127.0.0.1:0/a").address[:-2] != sock.listen("ws://127.0.0.1:0/b").address[:-2]


def test_a_port_that_is_made_otherwise_cannot_be_joined() -> None:
    with Socket() as sock:
        port = sock.listen("ws://127.0.0.1:0/a").address[:-2]
        with pytest.raises(AddressInUse, match="no_delay"):
            sock.listen(f"{port}/b?transport.tcp.no_delay=false")
        with pytest.raises(AddressInUse):
            sock.listen(f"{port.replace('ws:', 'wss:')}/b", listen_options())
        with pytest.raises(AddressInUse):
            sock.listen(port.replace("ws:", "tcp:"))


def test_a_port_closes_with_its_last_listener() -> None:
    with Socket() as sock:
        first = sock.listen("ws://127.0.0.1:0/a")
        second = sock.listen(first.address[:-2] + "/b")
        first.close()
        assert wsport._ports
        second.close()
        assert not wsport._ports


# Options


def test_headers_go_with_the_request_and_may_be_made_anew_for_each() -> None:
    seen: list[str | None] = []
    numbers = iter(range(10))
    with Socket() as server, Socket() as client:
        authorize = {"transport.ws.listener.authorize": lambda request: seen.append(request.headers.get("X-Token"))}
        address = server.listen(WS, authorize).address
        client.dial(address, {"transport.ws.headers": {"X-Token": "fixed"}})
        client.dial(address, {"transport.ws.headers": lambda: {"X-Token": str(next(numbers))}})
        client.dial(address, {"transport.ws.headers": lambda: {"X-Token": str(next(numbers))}})
        assert seen == ["fixed", "0", "1"]


@pytest.mark.parametrize("headers", [lambda: {"X": "a\r\nY: b"}, lambda: 1 // 0, lambda: None])
def test_a_wrong_headers_function_fails_the_dial_and_nothing_else(server: Socket, headers: object) -> None:
    address = server.listen(WS).address
    with Socket() as client, pytest.raises(HandshakeFailed):
        client.dial(address, {"transport.ws.headers": headers})


def test_a_listener_off_loopback_warns_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ws, "_warned", False)
    with caplog.at_level(logging.WARNING, "gmultisocket"), Socket() as sock:
        sock.listen("ws://127.0.0.1:0")
        sock.listen("ws://[::1]:0")
        sock.listen("ws://localhost:0")
        assert not caplog.records
        sock.listen("ws://*:0")
        sock.listen("ws://*:0")
        wait_until(lambda: bool(caplog.records))
        assert [record.getMessage() for record in caplog.records if "not encrypted" in record.getMessage()] != []
        assert len(caplog.records) == 1


def test_a_dialer_takes_the_usual_port_where_none_is_written() -> None:
    with Socket() as client, pytest.raises(AddressError):
        client.listen("ws://127.0.0.1/path")
    for address, port in (("ws://localhost/x", 80), ("wss://[::1]", 443), ("ws://localhost:8080", 8080)):
        assert ws.WSDialer(Address.parse(address), Options())._port == port


# Answers of a server that a dialer cannot use


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nnot me", RequestRefused),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", RequestRefused),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", HandshakeFailed),
        (b"SSH-2.0-OpenSSH\r\n\r\n", HandshakeFailed),
        (b"\x00\x10\x00\x00\x00\x00\x00\x05hello", HandshakeFailed),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, HandshakeFailed),
        (b"", HandshakeFailed),
    ],
    ids=["403", "redirect", "no key", "no HTTP", "frames", "endless head", "hangs up"],
)
def test_a_wrong_answer_fails_the_dial(answer: bytes, error: type[HandshakeFailed]) -> None:
    listening, address = plain_listener()

    def serve() -> None:
        sock = listening.accept()[0]
        with sock:
            sock.recv(4096)
            sock.sendall(answer)

    serving = gevent.spawn(serve)
    with listening, Socket() as client:
        with pytest.raises(HandshakeFailed) as caught:
            client.dial(address.replace("tcp:", "ws:"))
        assert type(caught.value) is error
        assert caught.value.address == address.replace("tcp:", "ws:")
    serving.get(timeout=5)


def test_a_refusal_has_the_status_and_the_servers_own_words(server: Socket) -> None:
    refuse = {"transport.ws.listener.authorize": lambda request: 401}
    with Socket() as client, pytest.raises(RequestRefused) as caught:
        client.dial(server.listen(WS, refuse).address)
    assert caught.value.status == 401 and "401" in caught.value.why


@pytest.mark.parametrize("comes", [True, False], ids=["later", "never"])
def test_the_words_of_a_refusal_may_come_behind_its_head(comes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not comes:
        monkeypatch.setattr(wshandshake, "_WORDS_TIME", 0.01)
    head_was_read, refused = Event(), Event()

    def reading(stream: StreamConnection) -> tuple[bytes, bytes]:
        answer = read_head(stream)
        head_was_read.set()
        return answer

    monkeypatch.setattr(ws, "read_head", reading)
    listening, address = plain_listener()

    def serve() -> None:
        sock = listening.accept()[0]
        with sock:
            sock.recv(4096)
            sock.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 12\r\n\r\n")
            head_was_read.wait()
            sock.sendall(b"come " if comes else b"")
            sock.sendall(b"later!\n" if comes else b"")
            # The connection stays open, so only the length says where the words end.
            refused.wait()

    serving = gevent.spawn(serve)
    with listening, Socket() as client, pytest.raises(RequestRefused) as caught:
        client.dial(address.replace("tcp:", "ws:"))
    refused.set()
    serving.get(timeout=5)
    assert (caught.value.status, caught.value.why) == (503, "come later!" if comes else "")


# Negotiators, and servers that hand connections over


def test_negotiators_speak_in_packets_and_messages_follow_at_once() -> None:
    heard: list[bytes] = []
    with Socket() as server, Socket() as client:
        server.set_negotiator(lambda n: (heard.append(n.recv(4) + n.recv(6)), n.send(b"yes"))[0])

        def ask(negotiation: object) -> None:
            negotiation.send(b"please let ")  # type: ignore[attr-defined]
            assert negotiation.recv(3) == b"yes"  # type: ignore[attr-defined]

        client.set_negotiator(ask)
        client.dial(server.listen(WS).address)
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"
        assert heard == [b"please let"]


def test_frames_behind_a_negotiation_are_the_pipes(server: Socket) -> None:
    server.set_negotiator(lambda n: n.recv(5))
    data = frame(Opcode.BINARY, b"token") + frame(Opcode.PING, b"x") + frame(Opcode.BINARY, HELLO)
    with upgraded(server.listen(WS).address, early=data) as peer:
        assert server.recv(timeout=5) == b"hello"
        assert peer.read_frame().opcode is Opcode.PONG


def test_who_is_refused_by_a_negotiator_is_told_so(server: Socket) -> None:
    server.set_negotiator(lambda n: n.refuse("not you"))
    with upgraded(server.listen(WS).address) as peer:
        goodbye = peer.read_close()
        assert goodbye.code == 1008 and "not you" in goodbye.reason


def test_a_listener_with_external_listen_binds_nothing() -> None:
    with Socket() as sock:
        listener = sock.listen("ws://anything/path", {"transport.ws.listener.external_listen": True})
        assert not wsport._ports
        assert listener.address == "ws://anything/path"


def test_a_connection_can_be_served_in_the_greenlet_of_another_server(server: Socket) -> None:
    listener = server.listen("ws://anything", {"transport.ws.listener.external_listen": True})
    assert isinstance(listener.transport, ws.WSListener)
    listening, address = plain_listener()
    transport = listener.transport

    def serve() -> None:
        stream = TCPConnection(listening.accept()[0])
        head, early = read_head(stream)
        connection = transport.connection(
            stream, parse_request(head), early, respond=lambda answer: stream.write_all(answer.serialize()), environ={}
        )
        listener.serve(connection)

    with listening:
        serving = gevent.spawn(serve)
        with upgraded(address.replace("tcp:", "ws:")) as peer:
            peer.send(frame(Opcode.BINARY, HELLO))
            assert server.recv(timeout=5) == b"hello"
            assert not serving.ready()
        serving.get(timeout=5)
    assert (listener.accepted, listener.refused) == (1, 0)
    listener.close()
    with listening, pytest.raises(Closed):
        listener.serve(transport.connection(_Nothing(), None, b"", respond=print, environ={}))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["kill", "error", "timeout"])
def test_a_server_that_ends_the_greenlet_in_which_it_serves_a_connection_gets_its_way(server: Socket, how: str) -> None:
    """Otherwise the greenlet would go on with what the server does after a connection."""
    listener = server.listen("ws://anything", {"transport.ws.listener.external_listen": True})
    assert isinstance(listener.transport, ws.WSListener)
    listening, address = plain_listener()
    transport = listener.transport
    outcome: list[BaseException | None] = []

    def serve() -> None:
        stream = TCPConnection(listening.accept()[0])
        head, early = read_head(stream)
        connection = transport.connection(
            stream, parse_request(head), early, respond=lambda answer: stream.write_all(answer.serialize()), environ={}
        )
        try:
            listener.serve(connection)
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    with listening:
        serving = gevent.spawn(serve)
        with upgraded(address.replace("tcp:", "ws:")) as peer:
            server.wait_pipes(1, 5)
            (pipe,) = server.pipes.values()
            error = {"kill": gevent.GreenletExit, "error": ZeroDivisionError, "timeout": gevent.Timeout}[how]
            serving.kill(error, timeout=5)
            assert serving.dead and pipe.closed
            assert [type(each) for each in outcome] == [error]
            peer.read_rest()


class _Nothing:
    """A stream of nothing."""

    send = sendmsg = wait_writable = recv = None

    def close(self) -> None:
        pass


def test_messages_before_a_wrong_frame_arrive_whatever_is_between_them(server: Socket) -> None:
    """More frames than one call of the codec decodes, in one read."""
    address = server.listen(WS).address
    with upgraded(address) as peer:
        server.wait_pipes(1, timeout=5)
        peer.send(frame(Opcode.BINARY, HELLO) + frame(Opcode.PONG) * 600 + b"\x83\x80" + bytes(4))
        assert peer.read_close().code == 1002
        assert server.recv(timeout=5) == b"hello"
