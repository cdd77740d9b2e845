"""Real servers of NATS and Redis: started on a free port of loopback, in a folder of the test, ended by their pid."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess

from gmultisocket.testing import wait_until
from tests.faults.peers import free_port

__all__ = ["BrokerServer", "HubServer", "NatsServer", "RedisServer"]

#: Another program may take a port between the look and the start.
_ATTEMPTS = 10


class BrokerServer:
    """A server in a process of its own. It keeps its port over restarts.

    Args:
        folder: for its files.
        extra: more arguments.
        host: where it listens.
    """

    program = ""
    scheme = ""
    #: What it writes to its log when it accepts connections.
    ready = ""

    def __init__(self, folder: Path, extra: Sequence[str] = (), *, host: str = "127.0.0.1") -> None:
        if shutil.which(self.program) is None:
            pytest.skip(f"{self.program} is not installed")
        self.folder = folder
        self.extra = [*extra]
        self.host = host
        self.port = 0
        self.process: Any = None
        self._stopped = False
        self._log = folder / f"{self.scheme}.log"

    @property
    def pid(self) -> int:
        """Its process, 0 if there is none."""
        return 0 if self.process is None or self.process.poll() is not None else self.process.pid

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        for _ in range(_ATTEMPTS):
            if not self.port or self.process is None:
                self.port = free_port()
            if self._start():
                return
            if self._started_before:
                break
            self.process = None
        raise AssertionError(f"{self.program} does not start: {self._log.read_text()[-2000:]}")

    _started_before = False

    def _start(self) -> bool:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [self.program, *self.arguments(), *self.extra],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        process = self.process
        wait_until(lambda: process.poll() is not None or self.ready in self._log.read_text(), 20, "the server is ready")
        if process.poll() is not None:
            return False
        self._started_before = True
        return True

    def log(self) -> str:
        """Return what it has written."""
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End it as a service manager does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it: the kernel still accepts connections for it."""
        self.process.send_signal(signal.SIGSTOP)
        self._stopped = True
        # It may have done some more work before.
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="the server stands still")

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self._stopped = False

    def close(self) -> None:
        """Be sure that it has ended."""
        if self.pid:
            self.kill()

    def _end(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            if self._stopped:
                self.resume()
        self.process.wait()


class NatsServer(BrokerServer):
    """nats-server."""

    program = "nats-server"
    scheme = "nats"
    ready = "Server is ready"

    def arguments(self) -> list[str]:
        return ["-a", self.host, "-p", str(self.port)]


class RedisServer(BrokerServer):
    """redis-server, without files."""

    program = "redis-server"
    scheme = "redis"
    ready = "eady to accept connections"

    def arguments(self) -> list[str]:
        return [
            "--bind", self.host, "--port", str(self.port), "--save", "", "--appendonly", "no", "--protected-mode", "no",
            "--dir", str(self.folder),
        ]  # fmt: skip


class HubServer(BrokerServer):
    """The hub of this library."""

    program = sys.executable
    scheme = "tcp"
    ready = "listens"

    def arguments(self) -> list[str]:
        return ["-m", "gmultisocket", "hub", self.url]
