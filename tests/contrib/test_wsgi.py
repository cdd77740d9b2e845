"""What a mount does with requests and pipes, inside of gevent.pywsgi, plain and with TLS."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer
from websockets.frames import Opcode

from gmultisocket import Message, Socket
from gmultisocket.contrib.wsgi import Mount, mount, mounts
from gmultisocket.errors import ForkedSocketError, UnknownOption
from gmultisocket.loop import owner
from gmultisocket.testing import wait_until
from gmultisocket.wire import Decoder, encode
from tests.certificates import authority, dial_options, server_certificate
from tests.contrib.environs import call, gunicorn
from tests.transport.wspeers import RawPeer, frame, request, upgraded

HELLO = encode(Message(content=b"hello"))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the application at ", environ["PATH_INFO"].encode()]


class Served:
    """A pywsgi server in this process."""

    def __init__(self, mounted: Mount, tls: bool) -> None:
        self.log, self.errors = io.StringIO(), io.StringIO()
        context = {"ssl_context": self._context()} if tls else {}
        # Only a server with a pool ends its requests when it stops.
        self.server = WSGIServer(
            ("127.0.0.1", 0), mounted, log=self.log, error_log=self.errors, spawn=Pool(), **context
        )
        self.server.start()
        self.scheme = "wss" if tls else "ws"
        self.address = f"{self.scheme}://127.0.0.1:{self.server.server_port}/ws"
        self.tls = tls

    @staticmethod
    def _context() -> gssl.SSLContext:
        # Of gevent's own kind: pywsgi wraps its sockets by what it is given.
        context = gssl.SSLContext(gssl.PROTOCOL_TLS_SERVER)
        server_certificate().configure_cert(context)
        return context

    def peer(self, data: bytes) -> RawPeer:
        peer = RawPeer(self.address)
        if self.tls:
            context = gssl.SSLContext(gssl.PROTOCOL_TLS_CLIENT)
            authority().configure_trust(context)
            peer.sock = context.wrap_socket(peer.sock, server_hostname="127.0.0.1")
        peer.send(data)
        return peer


@contextmanager
def serving(mounted: Mount, tls: bool = False) -> Iterator[Served]:
    """Serve, and check that the server has nothing to complain of."""
    served = Served(mounted, tls)
    try:
        yield served
    finally:
        served.server.stop(timeout=5)
    assert served.errors.getvalue() == ""


@pytest.fixture
def sock() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock
        sock.close(linger=0)


TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@TLS
def test_a_socket_dials_one_that_is_mounted(sock: Socket, tls: bool) -> None:
    with serving(mount(sock), tls) as served, Socket() as client:
        client.dial(served.address, dial_options() if tls else None)
        sock.wait_pipes(1, timeout=5)
        (pipe,) = sock.pipes.values()
        assert pipe.local_address == served.address and pipe.peer_address.startswith(f"{served.scheme}://127.0.0.1:")
        assert ("tls_version" in pipe.identity) is tls
        for number in range(50):
            client.send(b"%d" % number)
            message = sock.recv_msg(timeout=5)
            sock.send_to(message.source, b"re: " + message.content)
            assert client.recv(timeout=5) == b"re: %d" % number
        client.close()
        wait_until(lambda: not sock.pipes)
    assert '"GET /ws HTTP/1.1" 101' in served.log.getvalue()
    assert served.log.getvalue().count("\n") == 1


@TLS
@pytest.mark.parametrize("connection", ["Upgrade", "keep-alive, Upgrade"])
def test_frames_behind_the_request_are_kept(sock: Socket, tls: bool, connection: str) -> None:
    data = request("/ws", {"Connection": connection}) + frame(Opcode.BINARY, HELLO) * 3
    with serving(mount(sock), tls) as served, served.peer(data) as peer:
        assert peer.status() == 101
        assert [sock.recv(timeout=5) for _ in range(3)] == [b"hello"] * 3
        peer.send(frame(Opcode.BINARY, HELLO))
        assert sock.recv(timeout=5) == b"hello"
        peer.send(frame(Opcode.CLOSE, b"\x03\xe8"))
        assert peer.read_close().code == 1000
        assert peer.read_rest() == b""


@TLS
def test_a_closed_socket_tells_the_peers_and_frees_the_server(tls: bool) -> None:
    with Socket() as sock, serving(mount(sock), tls) as served, served.peer(request("/ws")) as peer:
        assert peer.status() == 101
        sock.wait_pipes(1, timeout=5)
        closing = gevent.spawn(sock.close)
        assert peer.read_close().code == 1001
        peer.send(frame(Opcode.CLOSE, b"\x03\xe9"))
        assert peer.read_rest() == b""
        assert closing.get(timeout=5) == 0


@TLS
def test_a_peer_that_breaks_a_rule_is_told_so(sock: Socket, tls: bool) -> None:
    with serving(mount(sock), tls) as served, served.peer(request("/ws")) as peer:
        assert peer.status() == 101
        peer.send(frame(Opcode.BINARY, HELLO, masked=False))
        assert peer.read_close().code == 1002
        assert peer.read_rest() == b""


@TLS
def test_what_comes_behind_the_end_is_not_taken_for_a_request(sock: Socket, tls: bool) -> None:
    with serving(mount(sock), tls) as served, served.peer(request("/ws")) as peer:
        assert peer.status() == 101
        peer.send(frame(Opcode.CLOSE, b"\x03\xe8") + b"junk " * 100_000)
        assert peer.read_close().code == 1000
        peer.read_rest()
        wait_until(lambda: '" 101 ' in served.log.getvalue())
    assert served.log.getvalue().count("\n") == 1


def test_a_peer_that_vanishes_leaves_nothing(sock: Socket) -> None:
    with serving(mount(sock)) as served:
        with served.peer(request("/ws")) as peer:
            assert peer.status() == 101
            sock.wait_pipes(1, timeout=5)
        wait_until(lambda: not sock.pipes)


def test_everything_else_goes_to_the_application(sock: Socket) -> None:
    with serving(mount(sock, "/ws", app)) as served:
        for path, changes in (("/", {}), ("/ws/", {}), ("/ws", {"Upgrade": None}), ("/ws", {"Upgrade": "h2c"})):
            with served.peer(request(path, {**changes, "Connection": "close"})) as peer:
                assert peer.status() == 200
                assert b"the application at" in peer.read_rest()


def test_without_an_application_everything_else_is_not_found(sock: Socket) -> None:
    with serving(mount(sock)) as served, served.peer(request("/", {"Connection": "close"})) as peer:
        assert peer.status() == 404


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec-WebSocket-Protocol": None}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Connection": "close"}, 426),
        ({"Origin": "http://evil.example"}, 403),
        ({"X": "a\x1b[2Jb"}, 400),
    ],
)
def test_a_wrong_request_is_refused_as_by_a_listener_of_our_own(
    sock: Socket, changes: dict[str, str | None], status: int
) -> None:
    with serving(mount(sock)) as served, served.peer(request("/ws", changes)) as peer:
        assert peer.status() == status
        assert not sock.pipes


def test_a_request_with_a_body_is_refused(sock: Socket) -> None:
    with serving(mount(sock)) as served, served.peer(request("/ws", {"Content-Length": "1"}) + b"x") as peer:
        assert peer.status() == 400


def test_a_post_is_refused(sock: Socket) -> None:
    with serving(mount(sock)) as served, served.peer(request("/ws", {"Content-Length": "0"}, method="POST")) as peer:
        assert peer.status() == 405


def test_authorize_sees_what_the_server_says(sock: Socket) -> None:
    seen: list[Any] = []

    def authorize(request: Any) -> object:
        seen.append(request)
        return 401 if request.query == "no" else {"user": "ann"}

    mounted = mount(sock, options={"transport.ws.listener.authorize": authorize})
    with serving(mounted) as served:
        with served.peer(request("/ws?no")) as peer:
            assert peer.status() == 401
        with served.peer(request("/ws?yes", {"Cookie": "a=b"})) as peer:
            assert peer.status() == 101
            sock.wait_pipes(1, timeout=5)
            (pipe,) = sock.pipes.values()
            assert pipe.identity == {"user": "ann"} and not pipe.dialed
            assert seen[1].environ["REMOTE_ADDR"] == "127.0.0.1" and seen[1].headers["cookie"] == "a=b"


def test_over_the_pipe_limit_a_peer_is_refused(sock: Socket) -> None:
    sock.set_option("connector.pipe_limit", 1)
    with serving(mount(sock)) as served, served.peer(request("/ws")) as first:
        assert first.status() == 101
        with served.peer(request("/ws")) as second:
            assert second.status() == 503


@pytest.mark.parametrize("limit", ["max_per_address", "max_per_identity"])
def test_a_peer_with_too_many_connections_is_told_that_it_has(sock: Socket, limit: str) -> None:
    options = {f"connector.listener.{limit}": 1, "transport.ws.listener.authorize": lambda request: "anna"}
    with serving(mount(sock, options=options)) as served, served.peer(request("/ws")) as first:
        assert first.status() == 101
        with served.peer(request("/ws")) as second:
            assert second.status() == 429


def test_who_a_negotiator_refuses_is_told_after_the_101(sock: Socket) -> None:
    sock.set_negotiator(lambda negotiation: negotiation.refuse("not you"))
    with serving(mount(sock)) as served, served.peer(request("/ws")) as peer:
        assert peer.status() == 101
        assert peer.read_close().code == 1008


def test_a_stopped_mount_closes_its_pipes_and_no_others(sock: Socket) -> None:
    mounted = mount(sock)
    with serving(mounted) as served, upgraded(sock.listen("ws://127.0.0.1:0").address) as other:
        with served.peer(request("/ws")) as peer:
            assert peer.status() == 101
            sock.wait_pipes(2, timeout=5)
            mounted.stop()
            goodbye = peer.read_close()
            assert goodbye.code == 1001 and "stopping" in goodbye.reason
        with served.peer(request("/ws")) as late:
            assert late.status() == 503
        wait_until(lambda: len(sock.pipes) == 1)
        other.send(frame(Opcode.BINARY, HELLO))
        assert sock.recv(timeout=5) == b"hello"


def test_who_is_being_authorized_when_a_mount_stops_stays_outside(sock: Socket) -> None:
    asked, go_on = Event(), Event()

    def authorize(request: Any) -> None:
        asked.set()
        go_on.wait()

    mounted = mount(sock, options={"transport.ws.listener.authorize": authorize})
    with serving(mounted) as served, served.peer(request("/ws")) as peer:
        asked.wait()
        mounted.stop()
        go_on.set()
        assert peer.status() == 503
        assert not sock.pipes


@TLS
def test_a_server_that_stops_by_itself_tells_the_peers(sock: Socket, tls: bool) -> None:
    with serving(mount(sock), tls) as served, served.peer(request("/ws")) as peer:
        assert peer.status() == 101
        sock.wait_pipes(1, timeout=5)
        stopping = gevent.spawn(served.server.stop, 0.01)
        assert peer.read_close().code == 1001
        peer.send(frame(Opcode.CLOSE, b"\x03\xe9"))
        assert peer.read_rest() == b""
        stopping.get(timeout=5)
        assert not sock.pipes


def test_a_function_that_takes_its_time_makes_one_socket_for_all() -> None:
    called, go_on = Event(), Event()
    made: list[Socket] = []

    def make() -> Socket:
        called.set()
        go_on.wait()
        made.append(Socket())
        return made[0]

    with serving(mount(make)) as served, served.peer(request("/ws")) as first, served.peer(request("/ws")) as second:
        called.wait()
        gevent.sleep(0)
        go_on.set()
        assert first.status() == second.status() == 101
        (sock,) = made
        sock.wait_pipes(2, timeout=5)
        sock.close(linger=0)


def test_a_function_makes_the_socket_at_the_first_request() -> None:
    made: list[Socket] = []

    def make() -> Socket:
        made.append(Socket())
        return made[0]

    mounted = mount(make)
    assert not made and mounted.listener is None and mounted in mounts()
    with serving(mounted) as served:
        for _ in range(2):
            with served.peer(request("/ws") + frame(Opcode.BINARY, HELLO)) as peer:
                assert peer.status() == 101
                assert made[0].recv(timeout=5) == b"hello"
        assert len(made) == 1
        made[0].close(linger=0)


@pytest.mark.parametrize("path", ["ws", "", "/ws?a=b"])
def test_a_wrong_path_is_wrong_at_once(sock: Socket, path: str) -> None:
    with pytest.raises(ValueError, match="a path starts with a slash"):
        mount(sock, path)


def test_a_wrong_option_is_wrong_at_once(sock: Socket) -> None:
    with pytest.raises(UnknownOption):
        mount(sock, options={"transport.ws.nothing": 1})


def test_many_clients_exchange_messages_both_ways(sock: Socket) -> None:
    def client(number: int) -> bytes:
        with Socket() as client:
            client.dial(served.address)
            client.send(b"%d" % number)
            return client.recv(timeout=10)

    def answer() -> None:
        for message in sock:
            sock.send_to(message.source, b"re: " + message.content)

    with serving(mount(sock)) as served:
        answering = gevent.spawn(answer)
        clients = [gevent.spawn(client, number) for number in range(100)]
        assert [each.get(timeout=20) for each in clients] == [b"re: %d" % number for number in range(100)]
        sock.close()
        answering.join()


def test_http_2_is_not_upgraded(sock: Socket) -> None:
    assert call(mount(sock), SERVER_PROTOCOL="HTTP/2")[0] == 426


def test_a_socket_of_before_a_fork_is_an_error_for_the_server_to_log(
    sock: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gsocket.socket() as one, monkeypatch.context() as forked:
        forked.setattr(sock, "_thread", owner.FORKED)
        with pytest.raises(ForkedSocketError):
            call(mount(sock), **gunicorn(one))


def test_a_closed_socket_takes_nobody_in() -> None:
    sock = Socket()
    sock.close()
    with gsocket.socket() as one:
        assert call(mount(sock), **gunicorn(one))[0] == 503


def test_what_a_mounted_pipe_sends_is_what_a_listeners_sends(sock: Socket) -> None:
    with serving(mount(sock)) as served, served.peer(request("/ws")) as peer:
        assert peer.status() == 101
        sock.wait_pipes(1, timeout=5)
        sock.send_all(b"news")
        (message,) = Decoder(1).feed(peer.read_frame().data)
        assert message.content == b"news"
