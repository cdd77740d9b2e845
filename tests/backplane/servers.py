"""Real servers of NATS and Redis: started on a free port of loopback, in a folder of the test, ended by their pid."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gmultisocket.testing.engines import ServerProcess
from tests.backplane.hubs import history_arguments
from tests.faults.peers import free_port

__all__ = ["SAVED", "BrokerServer", "HubServer", "JetStreamServer", "NatsServer", "RedisServer"]

#: Arguments of a Redis that has everything again after an end.
SAVED = ("--appendonly", "yes", "--appendfsync", "always")
#: Another program may take a port between the look and the start.
_ATTEMPTS = 3


class BrokerServer(ServerProcess):
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
        super().__init__([], lambda: self.ready in self.log(), 20, folder / f"{self.scheme}.log")
        self.folder = folder
        self.extra = [*extra]
        self.host = host
        self.port = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def url_with(self, login: str) -> str:
        """Return the URL with a user name and a password, or what else is in front of the @."""
        return f"{self.scheme}://{login}@{self.host}:{self.port}"

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def delete_data(self) -> None:
        """Delete what it has saved in files. It must not run."""

    def start(self) -> None:
        fixed = self.port
        for left in reversed(range(1 if fixed else _ATTEMPTS)):
            self.port = fixed or free_port()
            self._command = [self.program, *self.arguments(), *self.extra]
            try:
                super().start()
            except AssertionError:
                if not left:
                    raise
            else:
                return


class NatsServer(BrokerServer):
    """nats-server."""

    program = "nats-server"
    scheme = "nats"
    ready = "Server is ready"

    @classmethod
    def configured(cls, folder: Path, config: str, *extra: str) -> NatsServer:
        """Return a server with a configuration."""
        path = folder / "nats.conf"
        path.write_text(config)
        return cls(folder, ["-c", str(path), *extra])

    def arguments(self) -> list[str]:
        return ["-a", self.host, "-p", str(self.port)]


class JetStreamServer(NatsServer):
    """nats-server with JetStream, which keeps its files in the folder."""

    def arguments(self) -> list[str]:
        return [*super().arguments(), "-js", "-sd", str(self.folder / "jetstream")]

    def delete_data(self) -> None:
        shutil.rmtree(self.folder / "jetstream")


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

    def delete_data(self) -> None:
        for each in self.folder.glob("appendonlydir/*"):
            each.unlink()


class HubServer(BrokerServer):
    """The hub of this library.

    Args:
        folder: for its files.
        history: patterns of the topics whose history it keeps.
        host: where it listens.
    """

    program = sys.executable
    scheme = "tcp"
    ready = "listens"

    def __init__(self, folder: Path, history: Sequence[str] = (), *, host: str = "127.0.0.1") -> None:
        super().__init__(folder, history_arguments(history), host=host)

    def arguments(self) -> list[str]:
        return ["-m", "gmultisocket", "hub", self.url]
