"""What runs out: descriptors, places in a backlog. Nothing spins, nothing leaks, and all goes on when there is more."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from gevent import socket

from gmultisocket import Socket
from gmultisocket.errors import ConnectionFailed
from gmultisocket.testing import wait_until
from tests.faults.peers import listening
from tests.faults.process import cpu_time, descriptors_exhausted

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_dialing_without_a_descriptor_left_is_an_error_with_a_name(scheme: str, tmp_path: Path) -> None:
    address = {"tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{tmp_path}/socket"}[scheme]
    with Socket() as server, Socket() as client:
        listener = server.listen(address)
        with descriptors_exhausted(), pytest.raises(ConnectionFailed, match="too many open files"):
            client.dial(listener.address)
        client.dial(listener.address)
        client.send(b"and now it goes")
        assert server.recv(timeout=5) == b"and now it goes"


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_dialer_that_finds_no_descriptor_tries_until_there_is_one(scheme: str, tmp_path: Path) -> None:
    address = {"tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{tmp_path}/socket"}[scheme]
    with Socket() as server, Socket(QUICKLY) as client:
        listener = server.listen(address)
        with descriptors_exhausted():
            dialer = client.dial(listener.address, {"connector.dialer.dial_async": True})
            wait_until(lambda: dialer.attempts > 3)
            assert "too many open files" in str(dialer.last_error)
        client.send(b"at last", timeout=5)
        assert server.recv(timeout=5) == b"at last"


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
