from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.address import Address
from gmultisocket.errors import (
    AddressError,
    AddressInUse,
    BadOptionValue,
    ConnectionFailed,
    ConnectionRefused,
)
from gmultisocket.options import Options
from gmultisocket.testing import StreamTransportChecks, wait_until
from gmultisocket.transport import Connection, TransportDialer, TransportListener, ipc
from gmultisocket.transport.ipc import TRANSPORT

BAD = ("ipc://@", "ipc:///" + "x" * 107, "ipc://" + "ä" * 54)


class TestIpc(StreamTransportChecks):
    bad_addresses = BAD

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def make_address(self) -> str:
        return f"ipc://{self.path}/socket"


class TestIpcByAbstractName(StreamTransportChecks):
    address = f"ipc://@gmultisocket-checks-{os.getpid()}"


def make_dialer(address: str) -> TransportDialer:
    return TRANSPORT.dialer(Address.parse(address), Options())


def make_listener(address: str, options: dict[str, Any] | None = None) -> TransportListener:
    parsed = Address.parse(address)
    return TRANSPORT.listener(parsed, Options(parsed.merged(options)))


@contextmanager
def listening(address: str, options: dict[str, Any] | None = None) -> Iterator[TransportListener]:
    listener = make_listener(address, options)
    try:
        listener.listen()
        yield listener
    finally:
        listener.close()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Paths and names


def test_a_socket_file_is_there_while_somebody_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Socket() as sock:
        listener = sock.listen(f"ipc://{path}")
        assert stat.S_ISSOCK(path.lstat().st_mode)
        listener.close()
        assert not os.listdir(tmp_path)


def test_nothing_but_the_socket_file_is_ever_left_in_its_folder(tmp_path: Path) -> None:
    with listening(f"ipc://{tmp_path}/socket"):
        assert os.listdir(tmp_path) == ["socket"]
    assert os.listdir(tmp_path) == []


def test_a_relative_path_starts_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for address, path in (("ipc://socket", "socket"), ("ipc://run/socket", "run/socket")):
        with Socket() as server, Socket() as client:
            assert server.listen(address).address == address
            assert stat.S_ISSOCK((tmp_path / path).lstat().st_mode)
            client.dial(address)
            client.send(b"near")
            assert server.recv(timeout=5) == b"near"


def test_a_path_is_taken_as_it_is_written(tmp_path: Path) -> None:
    for name in ("100%25", "a:b@c", "ünïcode"):
        with Socket() as server, Socket() as client:
            client.dial(server.listen(f"ipc://{tmp_path}/{name}").address)
            assert os.listdir(tmp_path) == [name]


def test_an_abstract_name_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Socket() as server, Socket() as client:
        client.dial(server.listen(f"ipc://@test-{os.getpid()}/with/slashes").address)
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ipc://@", "the name after the @ is missing"),
        ("ipc:///" + "x" * 107, "the path has 108 bytes; a unix socket's has at most 107"),
        ("ipc://@" + "x" * 107, "the path has 108 bytes"),
    ],
)
def test_a_name_that_no_unix_socket_can_have_is_an_address_error(address: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        make_dialer(address)


def test_the_longest_path_works(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path)) - 1
    address = f"ipc://{tmp_path}/{'x' * room}"
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address).address)
        assert os.listdir(tmp_path) == ["x" * room]


def test_a_missing_folder_is_a_failed_listen(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="no such file or directory"):
        make_listener(f"ipc://{tmp_path}/missing/socket").listen()


def test_a_missing_file_is_a_refused_dial(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefused, match="nobody listens there"):
        make_dialer(f"ipc://{tmp_path}/missing").connect()


def test_a_taken_path_and_a_taken_name_are_in_use(tmp_path: Path) -> None:
    for address in (f"ipc://{tmp_path}/socket", f"ipc://@test-{os.getpid()}"):
        with listening(address):
            with pytest.raises(AddressInUse):
                make_listener(address).listen()
            make_dialer(address).connect().close()


# Permissions and credentials


def test_only_the_owner_may_connect_unless_the_mode_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(f"ipc://{path}"):
        assert mode_of(path) == 0o600
    with listening(f"ipc://{path}", {"transport.ipc.mode": 0o660}):
        assert mode_of(path) == 0o660
    with listening(f"ipc://{path}?transport.ipc.mode=0666"):
        assert mode_of(path) == 0o666


def test_the_umask_takes_nothing_from_the_mode(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        with listening(f"ipc://{tmp_path}/socket", {"transport.ipc.mode": 0o666}):
            assert mode_of(tmp_path / "socket") == 0o666
    finally:
        os.umask(before)


def test_the_peer_is_known_by_its_credentials(tmp_path: Path) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen(f"ipc://{tmp_path}/socket").address)
        server.wait_pipes(1, 5)
        for sock in (server, client):
            (pipe,) = sock.pipes.values()
            assert pipe.identity == {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}


def test_users_that_are_not_allowed_are_turned_away_and_others_come_in(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/socket"
    with Socket() as server, Socket() as client:
        listener = server.listen(address, {"transport.ipc.allow_uids": [os.getuid() + 1]})
        stranger = make_dialer(address).connect()
        try:
            assert stranger.recv(1) == b"", "the stranger is still connected"  # type: ignore[attr-defined]
        finally:
            stranger.close()
        assert not server.pipes
        listener.close()
        server.listen(f"{address}?transport.ipc.allow_uids={os.getuid()},{os.getuid() + 1}")
        client.dial(address)
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"


def test_a_user_that_is_not_allowed_is_a_failed_accept_as_any_other(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/socket"
    with listening(address, {"transport.ipc.allow_uids": [os.getuid() + 1]}) as listener:
        stranger = make_dialer(address).connect()
        try:
            with pytest.raises(ConnectionAbortedError, match=f"user {os.getuid()} is not in transport.ipc.allow_uids"):
                listener.accept()
        finally:
            stranger.close()


def test_what_a_system_cannot_do_is_refused_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ipc, "_PEERCRED", None)
        with pytest.raises(BadOptionValue, match="does not tell a peer's user"):
            make_listener(f"ipc://{tmp_path}/socket", {"transport.ipc.allow_uids": [0]})
        patched.setattr("sys.platform", "darwin")
        with pytest.raises(AddressError, match="only Linux has abstract names"):
            make_dialer("ipc://@name")


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(BadOptionValue):
        make_listener("ipc://socket?transport.ipc.mode=rw")


# A full backlog


def test_dials_wait_while_the_backlog_is_full(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/socket"
    with listening(address, {"connector.listener.backlog": 1}) as listener:
        connections: list[Connection] = []
        dialing = gevent.spawn(lambda: [connections.append(make_dialer(address).connect()) for _ in range(5)])
        try:
            wait_until(lambda: len(connections) >= 2)
            gevent.sleep(0.02)
            assert not dialing.ready(), "all five fit into a backlog of one"
            for _ in range(5):
                connections.append(listener.accept())
            dialing.get(timeout=5)
        finally:
            dialing.kill()
            for connection in connections:
                connection.close()


def test_a_dial_behind_a_full_backlog_ends_with_the_dial_timeout(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/socket"
    with listening(address, {"connector.listener.backlog": 1}), Socket() as sock:
        waiting = [make_dialer(address).connect() for _ in range(2)]
        try:
            with pytest.raises(ConnectionFailed, match=r"no connection within 0\.05 s"):
                sock.dial(address, {"connector.dialer.dial_timeout": 0.05})
        finally:
            for connection in waiting:
                connection.close()
