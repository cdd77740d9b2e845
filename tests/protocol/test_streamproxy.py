"""The proxy: real services through streams and switches, and what becomes of one side when the other breaks."""

from __future__ import annotations

import errno
import http.client
import logging
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import pywsgi, subprocess
from gevent import socket as gsocket
from gevent.server import StreamServer

from gmultisocket import Socket, Switch
from gmultisocket.errors import AddressInUse, StreamReset
from gmultisocket.protocol import Stream, StreamProxy
from gmultisocket.protocol.streamproxy import _Copy
from gmultisocket.testing import wait_until
from tests.addresses import plain_connection

LONG = 20.0
MIB = 1 << 20
ANY_PORT = "tcp://127.0.0.1:0"


@contextmanager
def two_switches_between(transport: Callable[[], str] = lambda: ANY_PORT) -> Iterator[tuple[Stream, Stream]]:
    """Two Streams with two switches between them."""
    with ExitStack() as stack:
        far = stack.enter_context(Stream())
        address = far.listen(transport()).address
        for _ in range(2):
            back, front = stack.enter_context(Socket()), stack.enter_context(Socket())
            stack.enter_context(Switch(back, front))
            back.dial(address)
            address = front.listen(transport()).address
        near = stack.enter_context(Stream())
        near.dial(address)
        yield near, far


@contextmanager
def tunnel(service: str, **options: Any) -> Iterator[tuple[StreamProxy, StreamProxy]]:
    """A tunnel through two switches to a plain service: its two proxies, that where clients come first."""
    with two_switches_between() as (near, far):
        with StreamProxy(ANY_PORT, near, **options) as entrance, StreamProxy(far, service, **options) as way_out:
            yield entrance, way_out


@contextmanager
def service(handle: Callable[[gsocket.socket], object]) -> Iterator[str]:
    """A plain TCP service; its address."""

    def serve(client: gsocket.socket, _: object) -> None:
        with client:
            client.settimeout(LONG)
            handle(client)

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    try:
        yield f"tcp://127.0.0.1:{server.server_port}"
    finally:
        server.stop()


def echo(client: gsocket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


def read_to_end(client: gsocket.socket) -> bytes:
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def test_bytes_and_both_ends_of_data_go_through_two_switches() -> None:
    with service(echo) as address, tunnel(address) as (entrance, way_out):
        sent = bytes(range(256)) * 4096
        with plain_connection(entrance.address) as client:
            sending = gevent.spawn(lambda: (client.sendall(sent), client.shutdown(gsocket.SHUT_WR)))
            assert read_to_end(client) == sent
            sending.get(timeout=LONG)
        wait_until(lambda: entrance.connections == way_out.connections == 0)
        assert (entrance.joined, way_out.joined, entrance.failed, way_out.failed) == (1, 1, 0, 0)


def test_many_clients_at_once_get_their_own_bytes() -> None:
    with service(echo) as address, tunnel(address) as (entrance, _):

        def talk(number: int) -> bool:
            sent = struct.pack(">I", number) * 10_000
            with plain_connection(entrance.address) as client:
                sending = gevent.spawn(lambda: (client.sendall(sent), client.shutdown(gsocket.SHUT_WR)))
                received = read_to_end(client)
                sending.get(timeout=LONG)
            return received == sent

        talks = [gevent.spawn(talk, number) for number in range(30)]
        assert all(talk.get(timeout=LONG) for talk in talks)


def test_an_http_server_is_reached_through_two_switches() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return [environ["PATH_INFO"].encode(), b" ", body]

    server = pywsgi.WSGIServer(("127.0.0.1", 0), application, log=None)
    server.start()
    try:
        with tunnel(f"tcp://127.0.0.1:{server.server_port}") as (entrance, _):
            browser = http.client.HTTPConnection("127.0.0.1", timeout=LONG)
            plain: Any = plain_connection(entrance.address)
            browser.sock = plain
            for number, size in enumerate((0, 10, 2 * MIB)):
                browser.request("POST", f"/{number}", bytes(size))
                response = browser.getresponse()
                assert response.status == 200
                assert response.read() == b"/%d " % number + bytes(size)
            browser.close()
    finally:
        server.stop()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """A redis server of the test's own; its address."""
    if not shutil.which("redis-server") or not shutil.which("redis-cli"):
        pytest.skip("redis-server and redis-cli are not installed")
    place = tmp_path / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(place), "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(place.exists, LONG)
        yield f"ipc://{place}"
    finally:
        server.terminate()
        assert server.wait(LONG) == 0


def test_redis_is_reached_through_two_switches_by_its_own_client(redis: str) -> None:
    with tunnel(redis) as (entrance, _):
        port = entrance.address.rpartition(":")[2]

        def cli(*words: str, stdin: bytes = b"") -> bytes:
            command = ["redis-cli", "-h", "127.0.0.1", "-p", port, *words]
            client = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, timeout=LONG, check=True)
            return bytes(client.stdout)

        assert cli("ping") == b"PONG\n"
        assert cli("set", "key", "value") == b"OK\n"
        assert cli("get", "key") == b"value\n"
        value = b"x" * MIB
        assert cli("-x", "set", "large", stdin=value) == b"OK\n"
        assert cli("get", "large") == value + b"\n"
        commands = b"".join(b"incr counter\n" for _ in range(1000))
        assert cli(stdin=commands).split() == [b"%d" % number for number in range(1, 1001)]


def test_redis_publishes_through_the_tunnel_while_others_use_it(redis: str) -> None:
    with tunnel(redis) as (entrance, _), plain_connection(entrance.address) as listener:
        listener.sendall(b"SUBSCRIBE news\r\n")
        assert listener.recv(1000) == b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
        with plain_connection(entrance.address) as publisher:
            for number in range(20):
                publisher.sendall(b"PUBLISH news %02d\r\n" % number)
                assert publisher.recv(1000) == b":1\r\n"
                assert listener.recv(1000) == b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$2\r\n%02d\r\n" % number


def test_streams_are_joined_with_streams() -> None:
    with Stream() as outer, Stream() as inner, Stream() as client, Stream() as server:
        client.dial(outer.listen(ANY_PORT).address)
        inner.dial(server.listen(ANY_PORT).address)
        with StreamProxy(outer, inner) as proxy:
            one, other = client.connect(LONG), server.accept(LONG)
            one.settimeout(LONG)
            other.settimeout(LONG)
            one.sendall(b"there")
            assert other.recv(100) == b"there"
            other.sendall(b"and back")
            assert one.recv(100) == b"and back"
            one.close()
            assert other.recv(100) == b""
            other.close()
            wait_until(lambda: proxy.connections == 0)


def test_a_client_that_does_not_read_holds_up_itself_only() -> None:
    def flood(client: gsocket.socket) -> None:
        asked = client.recv(1)
        client.sendall(bytes(64 * MIB) if asked == b"f" else b"quick answer")

    with service(flood) as address, tunnel(address) as (entrance, _):
        with plain_connection(entrance.address) as stuck:
            stuck.sendall(b"f")
            assert stuck.recv(10, gsocket.MSG_PEEK)
            for _ in range(5):
                with plain_connection(entrance.address) as quick:
                    quick.sendall(b"q")
                    assert read_to_end(quick) == b"quick answer"
            assert len(read_to_end(stuck)) == 64 * MIB


# Breaks


def test_a_client_that_breaks_off_is_seen_by_the_service() -> None:
    outcomes: list[object] = []

    def wait_for_end(client: gsocket.socket) -> None:
        try:
            outcomes.append(read_to_end(client))
        except OSError as error:
            outcomes.append(error.errno)

    with service(wait_for_end) as address, tunnel(address) as (entrance, way_out):
        client = plain_connection(entrance.address)
        client.sendall(b"half a requ")
        wait_until(lambda: way_out.joined == 1)
        client.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_until(lambda: len(outcomes) == 1)
        assert outcomes[0] in (b"half a requ", b"", errno.ECONNRESET)
        wait_until(lambda: entrance.connections == way_out.connections == 0)


def test_a_service_that_is_not_there_is_a_connection_that_ends(caplog: pytest.LogCaptureFixture) -> None:
    with gsocket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    with caplog.at_level(logging.WARNING, "gmultisocket"), tunnel(nobody) as (entrance, way_out):
        for _ in range(2):
            with plain_connection(entrance.address) as client:
                try:
                    assert client.recv(100) == b""
                except ConnectionResetError:
                    pass
        wait_until(lambda: way_out.failed == 2 and not way_out.connections)
        assert len([record for record in caplog.records if "nobody listens there" in record.getMessage()]) == 1


def test_a_net_that_is_not_there_is_a_connection_that_ends() -> None:
    with Stream() as lonely, StreamProxy(ANY_PORT, lonely, timeout=0.05) as proxy:
        with plain_connection(proxy.address) as client:
            assert client.recv(100) == b""
        wait_until(lambda: (proxy.failed, proxy.joined, proxy.connections) == (1, 0, 0))


def test_a_stream_that_is_reset_ends_the_plain_connection() -> None:
    with Stream() as near, Stream() as far:
        near.dial(far.listen(ANY_PORT).address)
        with StreamProxy(ANY_PORT, near) as proxy, plain_connection(proxy.address) as client:
            other = far.accept(LONG)
            other.sendall(b"first")
            assert client.recv(100) == b"first"
            other.abort()
            assert client.recv(100) == b""
            wait_until(lambda: proxy.connections == 0)


def test_a_plain_connection_that_is_reset_resets_the_stream() -> None:
    with Stream() as near, Stream() as far:
        near.dial(far.listen(ANY_PORT).address)
        with StreamProxy(ANY_PORT, near) as proxy:
            client = plain_connection(proxy.address)
            other = far.accept(LONG)
            other.settimeout(LONG)
            client.sendall(b"x")
            assert other.recv(1) == b"x"
            client.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            with pytest.raises(StreamReset):
                other.recv(1)
            other.close()


# Its life


def test_stop_ends_what_it_has_joined_and_it_can_be_started_again() -> None:
    with service(echo) as address, two_switches_between() as (near, far), StreamProxy(far, address) as way_out:
        entrance = StreamProxy(ANY_PORT, near)
        assert entrance.address == ""
        for _ in range(2):
            entrance.start()
            entrance.start()
            with plain_connection(entrance.address) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
                place = entrance.address
                entrance.stop()
                entrance.stop()
                assert entrance.connections == 0
                assert client.recv(100) == b""
            with pytest.raises(ConnectionRefusedError):
                plain_connection(place)
            wait_until(lambda: way_out.connections == 0)


def test_no_more_connections_than_allowed_are_taken_at_once() -> None:
    with service(echo) as address, tunnel(address, limit=1) as (entrance, _):
        with plain_connection(entrance.address) as first, plain_connection(entrance.address) as second:
            second.sendall(b"second")
            first.sendall(b"first")
            assert first.recv(100) == b"first"
            assert entrance.connections == 1
            first.close()
            assert second.recv(100) == b"second"


def test_a_proxy_ends_with_its_front_stream() -> None:
    with Stream() as front, Stream() as back:
        proxy = StreamProxy(front, back)
        proxy.start()
        assert not proxy.join(0)
        front.close()
        assert proxy.join(LONG)
        proxy.stop()


def test_an_address_that_is_taken_is_an_error_at_once() -> None:
    with Stream() as stream, StreamProxy(ANY_PORT, stream) as proxy:
        other = StreamProxy(proxy.address, stream)
        with pytest.raises(AddressInUse):
            other.start()
        other.stop()


def test_a_transport_without_plain_bytes_is_refused() -> None:
    with Stream() as near, Stream() as far, StreamProxy(near, "inproc://service") as proxy:
        far.dial(near.listen(ANY_PORT).address)
        with Socket() as listening:
            listening.listen("inproc://service")
            connection = far.connect(LONG)
            connection.settimeout(LONG)
            with pytest.raises(StreamReset):
                connection.recv(1)
            connection.close()
            wait_until(lambda: proxy.failed == 1)


def test_an_unexpected_error_ends_its_connection_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def connect(self: StreamProxy) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(StreamProxy, "_connect_back", connect)
    with StreamProxy("tcp://127.0.0.1:0", "tcp://127.0.0.1:1") as proxy:
        for _ in range(3):
            with plain_connection(proxy.address) as client:
                assert client.recv(1) == b""
        assert proxy.failed == 3
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


def test_a_proxy_ends_with_a_front_stream_that_takes_no_connections() -> None:
    with Stream({"protocol.stream.acceptable": False}) as front, Stream() as back:
        proxy = StreamProxy(front, back)
        proxy.start()
        assert proxy.join(LONG)
        assert proxy.failed == 0
        proxy.stop()


class Ready:
    """A side that never makes its user wait."""

    def __init__(self, pieces: int = 0) -> None:
        self.pieces = pieces
        self.taken = 0

    def recv(self, size: int) -> bytes:
        self.pieces -= 1
        return b"x" * size if self.pieces >= 0 else b""

    def sendall(self, data: bytes) -> None:
        self.taken += len(data)

    def shutdown(self, how: int) -> None:
        pass


def test_a_copy_between_sides_that_are_always_ready_lets_others_run() -> None:
    source, target = Ready(500), Ready()
    turns = 0

    def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    worker = gevent.spawn(others)
    copy = _Copy(source, target)  # type: ignore[arg-type]
    assert copy.greenlet.get(timeout=LONG) is True
    worker.kill()
    assert target.taken == copy.copied >= 500 * 1024
    assert turns > 5
