"""Fresh addresses of every transport: the one place in which the tests list them.

A test that takes the fixture ``address`` runs once for each transport, with an address that nobody listens at; one that
takes ``new_address`` too gets more of them from ``new_address()``, of the same transport. ``stream_address`` leaves out
the transports on which no bytes travel, for tests whose peer is a plain socket (:func:`plain_connection`).

This is a pytest plugin, loaded by ``tests/conftest.py``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gevent import socket as gsocket

from tests import certificates

_count = itertools.count()


def _unique() -> str:
    return f"test-{os.getpid()}-{next(_count)}"


#: Transport -> what makes an address, given a folder for its files. To add a transport, add a line.
TRANSPORTS: dict[str, Callable[[Path], str]] = {
    "tcp": lambda folder: "tcp://127.0.0.1:0",
    "tcp6": lambda folder: "tcp://[::1]:0",
    "tls": lambda folder: f"tls+tcp://127.0.0.1:0?{certificates.listen_query(folder)}",
    "ws": lambda folder: "ws://127.0.0.1:0",
    "wss": lambda folder: f"wss://127.0.0.1:0?{certificates.listen_query(folder)}",
    "ipc": lambda folder: f"ipc://{folder / _unique()}",
    "ipc-abstract": lambda folder: f"ipc://@{_unique()}",
    "inproc": lambda folder: f"inproc://{_unique()}",
}
#: Those whose connections are plain byte streams: a frame is on the wire as it is.
STREAMS = ("tcp", "tcp6", "ipc", "ipc-abstract")


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> str:
    """The name of a transport; the test runs once for each."""
    name: str = request.param
    return name


@pytest.fixture
def new_address(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Makes addresses of the test's transport that nobody listens at."""
    if transport in ("tls", "wss"):
        # What OpenSSL takes for the system's authorities: dialers trust the listeners without being told.
        monkeypatch.setenv("SSL_CERT_FILE", certificates.write_authority(tmp_path)[certificates.TLS.cafile.name])
    return lambda: TRANSPORTS[transport](tmp_path)


@pytest.fixture
def address(new_address: Callable[[], str]) -> str:
    """An address that nobody listens at; the test runs once for each transport."""
    return new_address()


@pytest.fixture(params=STREAMS)
def stream_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As ``address``, for the transports whose connections are plain byte streams."""
    return TRANSPORTS[request.param](tmp_path)


def plain_connection(address: str, timeout: float = 10.0) -> gsocket.socket:
    """Connect a plain socket to a listener of a stream transport, given its real address."""
    scheme, _, location = address.partition("://")
    if scheme == "ipc":
        sock = gsocket.socket(gsocket.AF_UNIX)
        name: object = "\0" + location[1:] if location.startswith("@") else location
    else:
        host, _, port = location.rpartition(":")
        sock = gsocket.socket(gsocket.AF_INET6 if host.startswith("[") else gsocket.AF_INET)
        name = (host.strip("[]"), int(port))
    sock.settimeout(timeout)
    try:
        sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


def plain_listener(backlog: int = 16, timeout: float = 10.0) -> tuple[gsocket.socket, str]:
    """Return a plain socket that listens on tcp, and its address."""
    # Not create_server(): without monkey patching that of gevent makes a socket that blocks the loop.
    sock = gsocket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(backlog)
    sock.settimeout(timeout)
    return sock, f"tcp://127.0.0.1:{sock.getsockname()[1]}"
