"""What runs out: descriptors, places in a backlog. Nothing spins, nothing leaks, and all goes on when there is more."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from gmultisocket import Socket
from gmultisocket.errors import ConnectionFailed
from gmultisocket.testing import wait_until
from tests.certificates import dial_options, listen_options, write_authority
from tests.faults.peers import listening
from tests.faults.process import cpu_time, descriptors_exhausted

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}


#: Transports whose dialers need a descriptor.
KERNEL = ("tcp", "tcp6", "tls", "ws", "wss", "ipc", "ipc-abstract")


@pytest.fixture(params=KERNEL)
def transport(request: pytest.FixtureRequest) -> str:
    """The name of a transport that dials by the kernel; the test runs once for each."""
    name: str = request.param
    return name


@pytest.fixture
def trusting(transport: str) -> dict[str, Any]:
    """What a dialer needs beside the address."""
    return dial_options() if transport in ("tls", "wss") else {}


def test_dialing_without_a_descriptor_left_is_an_error_with_a_name(address: str, trusting: dict[str, Any]) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(address)
        with descriptors_exhausted(), pytest.raises(ConnectionFailed, match="too many open files"):
            client.dial(listener.address, trusting)
        client.dial(listener.address, trusting)
        client.send(b"and now it goes")
        assert server.recv(timeout=5) == b"and now it goes"


@pytest.mark.parametrize("spare", [0, 1])
def test_a_dialer_that_finds_no_descriptor_tries_until_there_is_one(
    address: str, trusting: dict[str, Any], spare: int
) -> None:
    """With one to spare the dialer gets its own, and the listener has none to accept with."""
    options = {**QUICKLY, "connector.dialer.dial_timeout": 0.2}
    with Socket() as server, Socket(options) as client:
        listener = server.listen(address)
        before = cpu_time()
        with descriptors_exhausted(spare):
            dialer = client.dial(listener.address, {"connector.dialer.dial_async": True, **trusting})
            if spare:
                wait_until(lambda: dialer.attempts > 0)
                assert not server.pipes
            else:
                wait_until(lambda: dialer.attempts > 3)
                assert "too many open files" in str(dialer.last_error)
                assert cpu_time() - before < 1
        client.send(b"at last", timeout=10)
        assert server.recv(timeout=10) == b"at last"
        assert len(client.pipes) == 1


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("scheme", ["tls+tcp", "wss"])
def test_a_dialer_that_was_made_without_a_descriptor_trusts_the_systems_authorities_later(
    scheme: str, spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", write_authority(tmp_path)["transport.tls.cafile"])
    with Socket() as server, Socket({**QUICKLY, "connector.dialer.dial_timeout": 0.2}) as client:
        address = server.listen(f"{scheme}://127.0.0.1:0", listen_options()).address
        with descriptors_exhausted():
            dialer = client.dial(address, {"connector.dialer.dial_async": True})
        # One descriptor is for the socket, and none is left for the file.
        with descriptors_exhausted(spare):
            attempts = dialer.attempts
            wait_until(lambda: dialer.attempts > attempts + 1)
            assert "too many open files" in str(dialer.last_error)
        client.send(b"trusted", timeout=5)
        assert server.recv(timeout=5) == b"trusted"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_whatever_the_kernel_lacks_for_a_socket_is_a_failed_attempt_and_no_more(
    address: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = True
    real = socket.socket.__init__

    def make(self: socket.socket, *arguments: Any, **options: Any) -> None:
        if lacking and not options.get("fileno"):
            raise OSError(number, os.strerror(number))
        real(self, *arguments, **options)

    with Socket() as server, Socket(QUICKLY) as client:
        listener = server.listen(address)
        monkeypatch.setattr(socket.socket, "__init__", make)
        with pytest.raises(ConnectionFailed, match=os.strerror(number).lower()):
            client.dial(listener.address)
        dialer = client.dial(listener.address, {"connector.dialer.dial_async": True})
        wait_until(lambda: dialer.attempts > 3)
        lacking = False
        client.send(b"at last", timeout=10)
        assert server.recv(timeout=10) == b"at last"


def test_dialing_a_full_ipc_backlog_waits_for_room_without_spinning(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first, Socket() as client:
        full.bind(path)
        full.listen(0)
        first.connect(path)
        before = cpu_time()
        with pytest.raises(ConnectionFailed, match="within 1.0 s"):
            client.dial(f"ipc://{path}", {"connector.dialer.dial_timeout": 1.0})
        assert cpu_time() - before < 0.5
        dial = gevent.spawn(client.dial, f"ipc://{path}")
        gevent.sleep(0)
        assert not dial.ready()
        full.accept()[0].close()
        dial.get(timeout=5)
        full.accept()[0].close()
        client.close()
        Path(path).unlink()


def test_an_ip_address_needs_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolver_is_busy(*_: object) -> list[object]:
        raise socket.gaierror(socket.EAI_AGAIN, "all its threads wait for a name server")

    monkeypatch.setattr(socket, "getaddrinfo", resolver_is_busy)
    with Socket() as client, Socket() as server, listening() as (_, address):
        client.dial(address)
        client.dial(server.listen("tcp://[::1]:0").address)
        with pytest.raises(ConnectionFailed, match="cannot be resolved: all its threads wait"):
            client.dial("tcp://localhost:80")
