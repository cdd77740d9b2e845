"""Restarts of a service while clients connect: how many of them are refused?

``python3 -m tests.contrib.restarts`` does 20 restarts with 300 clients, by a socket that the service is given
(activation) and by a port that the old and the new process share (``transport.tcp.reuse_port``), over tcp and ws.
"""

from __future__ import annotations

import os
import signal
import socket as plain_socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import gevent
from gevent import socket as gsocket
from gevent import subprocess

from gmultisocket import Message
from gmultisocket.testing import wait_until
from gmultisocket.wire import encode
from tests.faults.process import ROOT
from tests.transport.wspeers import frame, request

__all__ = ["Activation", "Clients", "ReusedPort", "run_clients"]

#: The service of the documentation: the first program on its page.
_PAGE = (ROOT / "docs/service.rst").read_text()
_SERVICE = textwrap.dedent(_PAGE.partition(".. code-block:: python\n")[2].partition("\n``server.close`` sends")[0])


def _program(address: str) -> str:
    assert 'server.listen("fd://feed")' in _SERVICE
    # A tenth of the pause: these clients stay for a moment only.
    return _SERVICE.replace('"fd://feed"', repr(address)).replace("sleep(1)", "sleep(0.1)")


#: Seconds that a process may take to be ready.
_PATIENCE = 60.0


class _Service:
    """A service that is restarted.

    Args:
        scheme: tcp or ws.
        sock: has the port of the service, and belongs to this object from now on.
    """

    def __init__(self, scheme: str, sock: plain_socket.socket) -> None:
        self.scheme = scheme
        self._sock = sock
        self.port = sock.getsockname()[1]
        self._folder = TemporaryDirectory()
        self._process: Any = None
        self._told = gsocket.socket(gsocket.AF_UNIX, gsocket.SOCK_DGRAM)
        self._told.bind(f"{self._folder.name}/notify")
        self._told.settimeout(_PATIENCE)

    def _start(self, address: str, **more: Any) -> Any:
        """Start a process, and wait until it is ready."""
        environ = os.environ | {"NOTIFY_SOCKET": f"{self._folder.name}/notify"}
        process = subprocess.Popen([sys.executable, "-c", _program(address)], env=environ, **more)
        while self._told.recv(100) != b"READY=1":
            pass
        return process

    @staticmethod
    def _stop(process: Any) -> None:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=_PATIENCE)
        assert status == 0, f"the service ended with {status}"

    def restart(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self._process is not None:
            if kind is None:
                self._stop(self._process)
            elif self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._told.close()
        self._sock.close()
        self._folder.cleanup()


class Activation(_Service):
    """The socket is made here, as systemd makes it. The old process ends before the new one starts."""

    def __init__(self, scheme: str) -> None:
        super().__init__(scheme, plain_socket.create_server(("127.0.0.1", 0), backlog=4096))
        self._start_one()

    def _start_one(self) -> None:
        number = self._sock.fileno()
        address = f"{'ws+fd' if self.scheme == 'ws' else 'fd'}://{number}"
        self._process = self._start(address, pass_fds=[number])

    def restart(self) -> None:
        self._stop(self._process)
        self._start_one()


class ReusedPort(_Service):
    """The new process is ready before the old one ends."""

    def __init__(self, scheme: str) -> None:
        # Holds the port, and never listens.
        sock = plain_socket.socket()
        sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        super().__init__(scheme, sock)
        self._process = self._start_one()

    def _start_one(self) -> Any:
        return self._start(f"{self.scheme}://127.0.0.1:{self.port}?transport.tcp.reuse_port")

    def restart(self) -> None:
        old, self._process = self._process, self._start_one()
        self._stop(old)


class Clients:
    """Clients that connect, exchange one message, hang up, and connect again.

    Attributes:
        served: how many exchanges there were.
        refused: how many connections were refused.
        cut: how many were accepted by the kernel, and then ended or reset before the answer.
        errors: what else went wrong.
    """

    def __init__(self, service: _Service) -> None:
        self._service = service
        self.served = self.refused = self.cut = 0
        self.errors: list[BaseException] = []

    def run(self) -> None:
        while True:
            try:
                self._exchange()
                self.served += 1
            except ConnectionRefusedError:
                self.refused += 1
            except ConnectionError:
                self.cut += 1
            except Exception as error:
                self.errors.append(error)
            gevent.sleep(0.01)

    def _exchange(self) -> None:
        hello = encode(Message(content=b"hello"))
        with gsocket.create_connection(("127.0.0.1", self._service.port), timeout=_PATIENCE) as sock:
            if self._service.scheme == "ws":
                sock.sendall(request() + frame(2, hello))
            else:
                sock.sendall(hello)
            data = b""
            while not data.endswith(b"Hello, hello"):
                more = sock.recv(4096)
                if not more:
                    raise ConnectionResetError
                data += more

    def wait_served(self, count: int) -> None:
        """Block until there were so many exchanges more."""
        wanted = self.served + count
        wait_until(lambda: self.served >= wanted, timeout=_PATIENCE)


@contextmanager
def run_clients(service: _Service, count: int) -> Iterator[Clients]:
    """Run clients while the body runs."""
    clients = Clients(service)
    greenlets = [gevent.spawn(clients.run) for _ in range(count)]
    try:
        clients.wait_served(count)
        yield clients
    finally:
        gevent.killall(greenlets)


def main() -> int:
    failed = False
    for scheme in "tcp", "ws":
        for kind in Activation, ReusedPort:
            with kind(scheme) as service, run_clients(service, 300) as clients:
                for _ in range(20):
                    service.restart()
                    clients.wait_served(300)
            print(
                f"{scheme} {kind.__name__}: 20 restarts, {clients.served} exchanges, {clients.refused} refused, "
                f"{clients.cut} cut off before the answer, {len(clients.errors)} other errors",
                flush=True,
            )
            failed = failed or bool(clients.refused or clients.errors)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
