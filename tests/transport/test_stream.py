from __future__ import annotations

import ast
import errno
import socket as plain_socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

import gmultisocket.transport.stream
from gmultisocket.testing import wait_until
from gmultisocket.transport.stream import SocketConnection, abandon_socket, describe_os_error


class Connection(SocketConnection):
    __slots__ = ()

    local_address = peer_address = "test://socketpair"


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Any]]:
    """A connection, and the plain gevent socket at its other end."""
    one, other = gsocket.socketpair()
    connection = Connection(one)
    yield connection, other
    connection.close()
    other.close()


# What is used of gevent that its manual does not promise


def test_gevent_still_has_the_names_that_are_used_here() -> None:
    why = "gevent has changed: gmultisocket.transport.stream cannot work without this name"
    sock = gsocket.socket()
    try:
        assert isinstance(sock._sock, plain_socket.socket) or hasattr(sock._sock, "detach"), why
        for name in ("send", "sendmsg", "recv", "detach", "fileno"):
            assert callable(getattr(sock._sock, name, None)), f"_sock.{name}: {why}"
        assert sock._sock.gettimeout() == 0.0, f"the C socket must never wait: {why}"
        for name in ("_read_event", "_write_event"):
            watcher = getattr(sock, name, None)
            assert watcher is not None, f"{name}: {why}"
            for method in ("start", "stop"):
                assert callable(getattr(watcher, method, None)), f"{name}.{method}: {why}"
        assert callable(getattr(sock.hub, "wait", None)), f"hub.wait: {why}"
    finally:
        sock.close()
    assert sock._read_event is None and sock._write_event is None, f"close() lets go of the watchers: {why}"


def test_gevent_still_wakes_who_waits_for_a_watcher_of_a_socket_that_closes() -> None:
    for name in ("_read_event", "_write_event"):
        sock, other = gsocket.socketpair()
        if name == "_write_event":
            sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_SNDBUF, 4096)
            with pytest.raises(BlockingIOError):
                while True:
                    sock._sock.send(bytes(65536))
        waiting = gevent.spawn(wait_for, sock, getattr(sock, name))
        gevent.sleep(0)
        sock.close()
        error = waiting.get(timeout=5)
        assert isinstance(error, OSError) and error.errno == errno.EBADF, name
        other.close()


def wait_for(sock: Any, watcher: Any) -> object:
    try:
        return sock.hub.wait(watcher)
    except OSError as error:
        return error


def test_no_other_names_of_gevents_own_are_used() -> None:
    tree = ast.parse(Path(gmultisocket.transport.stream.__file__).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    assert used == {"_sock", "_read_event", "_write_event"}


# Reading


def test_a_read_that_filled_its_size_is_followed_by_another_without_a_wait(pair: tuple[Connection, Any]) -> None:
    connection, other = pair
    other.sendall(b"0123456789")
    assert [connection.recv(4) for _ in range(3)] == [b"0123", b"4567", b"89"]


def test_the_end_of_the_stream_is_seen_after_a_read_that_filled_its_size(pair: tuple[Connection, Any]) -> None:
    connection, other = pair
    other.sendall(b"0123")
    other.close()
    assert connection.recv(4) == b"0123"
    assert connection.recv(4) == b""


@pytest.fixture
def tcp_pair() -> Iterator[tuple[Connection, Any]]:
    """The same over TCP."""
    listener = gsocket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    other = gsocket.create_connection(listener.getsockname())
    connection = Connection(listener.accept()[0])
    listener.close()
    yield connection, other
    connection.close()
    other.close()


def test_a_reset_is_raised_once_what_came_before_is_read(tcp_pair: tuple[Connection, Any]) -> None:
    connection, other = tcp_pair
    other.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    other.close()
    with pytest.raises(ConnectionResetError):
        connection.recv(10)


def test_what_is_discarded_never_arrives(tcp_pair: tuple[Connection, Any]) -> None:
    connection, other = tcp_pair
    # More than the peer's kernel takes.
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += connection.send(bytes(1 << 16))
    connection.discard_unsent()
    connection.close()
    received = 0
    with pytest.raises(ConnectionResetError):
        while data := other.recv(1 << 16):
            received += len(data)
    assert received < sent


def test_discarding_for_a_closed_connection_is_harmless(pair: tuple[Connection, Any]) -> None:
    connection, _ = pair
    connection.close()
    connection.discard_unsent()


def test_a_closed_connection_is_not_read(pair: tuple[Connection, Any]) -> None:
    connection, other = pair
    other.sendall(b"too late")
    connection.close()
    with pytest.raises(OSError, match="the connection was closed"):
        connection.recv(10)
    with pytest.raises(OSError, match="the connection was closed"):
        connection.wait_writable()


def test_a_connection_that_closes_while_a_greenlet_waits_for_its_turn_is_not_used() -> None:
    for wait in (lambda one: one.recv(10), Connection.wait_readable, Connection.wait_writable):
        raw, other = gsocket.socketpair()
        connection = Connection(raw)
        other.sendall(b"too late")
        ready = connection._wait

        def close_in_between(watcher: Any, ready: Any = ready, connection: Connection = connection) -> bool:
            ready(watcher)
            connection.close()
            return True

        connection._wait = close_in_between
        with pytest.raises(OSError, match="the connection was closed"):
            wait(connection)
        other.close()


# Errors and forks


def test_an_os_error_is_told_in_words() -> None:
    assert describe_os_error(ConnectionResetError(errno.ECONNRESET, "whatever")) == "connection reset by peer"
    assert describe_os_error(OSError("Something Odd")) == "something odd"
    assert describe_os_error(OSError()) == ""
    unknown = gsocket.gaierror(gsocket.EAI_NONAME, "Name or service not known")
    assert describe_os_error(unknown) == "name or service not known"


def test_an_abandoned_socket_does_not_close_its_number_again() -> None:
    sock, other = gsocket.socketpair()
    number = sock.fileno()
    abandon_socket(sock)
    # The number is somebody else's now.
    again, third = gsocket.socketpair()
    assert number in (again.fileno(), third.fileno())
    sock.close()
    wait_until(lambda: sock.closed)
    again.sendall(b"alive")
    assert third.recv(5) == b"alive"
    for mine in (other, again, third):
        mine.close()


def test_abandoning_what_is_closed_already_is_harmless() -> None:
    sock, other = gsocket.socketpair()
    sock.close()
    abandon_socket(sock)
    assert sock.closed
    other.close()


def test_a_subclass_that_reads_in_its_own_way_is_read_in_no_other() -> None:
    class Upper(Connection):
        def recv(self, size: int, /) -> bytes:
            return super().recv(size).upper()

    class Both(Upper):
        pass

    class Knows(Connection):
        offers = True

        def recv(self, size: int, /) -> bytes:
            return super().recv(size)

    class Mixin:
        __slots__ = ()

        def recv(self, size: int, /) -> bytes:
            return b""

    class Mixed(Mixin, SocketConnection):
        __slots__ = ()

    class Asks(Connection):
        def recv(self, size: int, /) -> bytes:
            return super().recv(size)

        @property
        def offers(self) -> bool:  # type: ignore[override]
            return False

    class Again(Knows):
        def recv(self, size: int, /) -> bytes:
            return super().recv(size)

    class Likewise(Knows):
        reads_into = True

    assert (Again.offers, Again.reads_into, Likewise.offers, Likewise.reads_into) == (False, False, True, True)
    assert (Mixed.offers, Mixed.reads_into, Asks.reads_into) == (False,) * 3 and isinstance(Asks.offers, property)
    assert (Connection.offers, Connection.reads_into) == (True, True)
    assert (Upper.offers, Upper.reads_into, Both.offers, Both.reads_into) == (False,) * 4
    assert (Knows.offers, Knows.reads_into) == (True, False)
