"""What a service tells its supervisor (sd_notify), and restarts that refuse nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket.contrib.systemd import notify, service, watchdog_seconds
from tests.contrib.restarts import Activation, ReusedPort, run_clients


class Supervisor:
    """Receives what the program tells it."""

    def __init__(self, name: str) -> None:
        self._sock = gsocket.socket(gsocket.AF_UNIX, gsocket.SOCK_DGRAM)
        self._sock.bind(name)
        self._sock.settimeout(5)

    def heard(self) -> str:
        return self._sock.recv(4096).decode()

    def silent(self) -> bool:
        self._sock.setblocking(False)
        try:
            self._sock.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self._sock.settimeout(5)
        return False

    def close(self) -> None:
        self._sock.close()


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    path = tmp_path / "notify"
    found = Supervisor(str(path) if request.param == "path" else f"\0{path}")
    monkeypatch.setenv("NOTIFY_SOCKET", str(path) if request.param == "path" else f"@{path}")
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield found
    found.close()
    path.unlink(missing_ok=True)


def test_a_program_tells_what_it_does(supervisor: Supervisor) -> None:
    assert notify(READY=1, STATUS="12 peers")
    assert supervisor.heard() == "READY=1\nSTATUS=12 peers"
    # A text cannot become another field.
    notify(STATUS="bad\nSTOPPING=1")
    assert supervisor.heard() == "STATUS=bad STOPPING=1"
    notify(RELOADING=1)
    first, second = supervisor.heard().split("\n")
    assert first == "RELOADING=1" and int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_a_service_is_ready_and_then_stops(supervisor: Supervisor) -> None:
    with service():
        assert supervisor.heard() == "READY=1"
    assert supervisor.heard() == "STOPPING=1"
    with pytest.raises(ValueError), service():
        raise ValueError
    assert [supervisor.heard() for _ in range(2)] == ["READY=1", "STOPPING=1"]
    assert supervisor.silent()


def test_the_watchdog_is_fed_while_the_program_is_healthy(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    healthy = [True, False, ValueError(), True]
    asked: list[object] = []

    def is_healthy() -> bool:
        answer = healthy[min(len(asked), 3)]
        asked.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    with service(is_healthy):
        assert supervisor.heard() == "READY=1"
        assert supervisor.heard() == "WATCHDOG=1" and len(asked) == 1
        # The second and third answer were no.
        assert supervisor.heard() == "WATCHDOG=1" and len(asked) == 4
    while (last := supervisor.heard()) == "WATCHDOG=1":
        pass
    assert last == "STOPPING=1"
    gevent.sleep(0.03)
    assert supervisor.silent()


def test_without_a_supervisor_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify(READY=1) is False
    with service():
        pass


def test_a_supervisor_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert notify(READY=1) is False
    assert "could not be told READY" in caplog.text


def test_a_supervisor_that_receives_nothing_does_not_stop_the_loop(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmultisocket.contrib.systemd._TIMEOUT", 0.01)
    ran: list[int] = []
    gevent.spawn_later(0, ran.append, 1)
    while notify(STATUS="x" * 1000):
        pass
    gevent.sleep(0)
    assert ran


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("2500000", "mine", 2.5), ("2500000", None, 2.5), ("2500000", "1", 0.0), (None, None, 0.0), ("x", None, 0.0)],
)
def test_the_environment_says_how_often_the_watchdog_is_fed(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float
) -> None:
    values = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": str(os.getpid()) if pid == "mine" else pid}
    for name, value in values.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
@pytest.mark.parametrize("kind", [Activation, ReusedPort])
@pytest.mark.timeout(120)
def test_a_restart_refuses_nobody(kind: type[Activation | ReusedPort], scheme: str) -> None:
    """Clients connect all the time while the service is restarted; ``python -m tests.contrib.restarts`` does more."""
    with kind(scheme) as service:
        with run_clients(service, 20) as clients:
            for _ in range(2):
                service.restart()
                clients.wait_served(20)
        assert clients.refused == 0 and clients.errors == []
        assert clients.served >= 40
