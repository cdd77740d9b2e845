"""How long strangers keep honest peers out: ``python3 -m benchmarks.silent``.

Printed are the seconds until an honest peer is in beside 2,000 connections that say nothing (or half a TLS hello), what
those cost in memory, and how many of 400 peers are in after 30 s if deciding about each takes 2 s. Peers and listener
are in one process; all sockets are on the loopback.
"""

from __future__ import annotations

import ssl
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import gevent
from gevent import socket

from benchmarks.certificate import write_certificate
from gmultisocket import Socket

SILENT = 2000
PATIENCE = 30.0
PEERS = 400
DECISION = 2.0
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@cache
def context_of(file: Path) -> ssl.SSLContext:
    """Return the context of all dialers."""
    return ssl.create_default_context(cafile=str(file))


def options(file: Path, secure: bool, dials: bool) -> dict[str, Any]:
    """Return the options of a dialer or listener."""
    if not secure:
        return {"connector.listener.backlog": 4096}
    if dials:
        # One for all: to make one takes 0.1 s.
        return {"transport.tls.context": context_of(file)}
    return {"transport.tls.certfile": str(file), "connector.listener.backlog": 4096}


def resident() -> float:
    """Return the MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def beside_silent_peers(file: Path, scheme: str, negotiator: Callable[[Any], object] | None, data: bytes) -> str:
    """Return how long an honest peer takes beside silent ones."""
    secure = scheme in ("tls+tcp", "wss")
    with Socket() as server, Socket() as client, ExitStack() as stack:
        if negotiator is not None:
            server.set_negotiator(negotiator)
            client.set_negotiator(lambda negotiation: negotiation.send(b"x"))
        listener = server.listen(f"{scheme}://127.0.0.1:0", options(file, secure, False))
        where = "127.0.0.1", int(listener.address.partition("://")[2].partition("/")[0].rpartition(":")[2])
        before = resident()
        for _ in range(SILENT):
            stack.enter_context(socket.create_connection(where)).sendall(data)
        began = time.monotonic()
        dialing = {**options(file, secure, True), "connector.dialer.dial_timeout": PATIENCE}
        try:
            with gevent.Timeout(PATIENCE):
                client.dial(listener.address, dialing)
                client.send(b"x")
                server.recv()
            answer = f"{time.monotonic() - began:6.2f} s"
        except (Exception, gevent.Timeout) as error:
            answer = f"not in {PATIENCE:.0f} s ({type(error).__name__})"
        return f"{answer}, {resident() - before:4.0f} MiB"


def with_slow_decisions(file: Path, scheme: str) -> str:
    """Return how many peers are in after a while if a function needs long for each."""
    calls = ended = 0

    def decide(question: object) -> None:
        nonlocal calls, ended
        calls += 1
        gevent.sleep(DECISION)
        ended += 1

    with Socket() as server:
        values = options(file, scheme == "wss", False)
        if scheme == "tcp":
            server.set_negotiator(decide)
        else:
            values["transport.ws.listener.authorize"] = decide
        listener = server.listen(f"{scheme}://127.0.0.1:0", values)
        clients = [Socket() for _ in range(PEERS)]
        began = time.monotonic()
        for client in clients:
            client.dial(listener.address, {**options(file, scheme == "wss", True), "connector.dialer.dial_async": True})
        while len(server.pipes) < PEERS and time.monotonic() - began < PATIENCE:
            gevent.sleep(0.05)
        answer = f"{len(server.pipes):4} in after {time.monotonic() - began:5.1f} s, {calls} calls, {ended} ended"
        for client in clients:
            client.close(linger=0)
        server.close(linger=0)
        return answer


def main() -> None:
    file = Path(tempfile.mkdtemp()) / "certificate.pem"
    write_certificate(file)
    kinds: list[tuple[str, str, Callable[[Any], object] | None, bytes]] = [
        ("tls+tcp, silent", "tls+tcp", None, b""),
        ("tls+tcp, half a hello", "tls+tcp", None, HALF_HELLO),
        ("tcp with a negotiator, silent", "tcp", lambda negotiation: negotiation.recv(1), b""),
        ("wss, silent", "wss", None, b""),
    ]
    for name, scheme, negotiator, data in kinds:
        print(f"{name:32} {beside_silent_peers(file, scheme, negotiator, data)}", flush=True)
    for scheme in ("ws", "wss", "tcp"):
        print(f"{'slow decisions, ' + scheme:32} {with_slow_decisions(file, scheme)}", flush=True)


if __name__ == "__main__":
    main()
