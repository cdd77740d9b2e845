"""One peer floods a server: how much later does it answer the others? ``python3 -m benchmarks.floods [KIND...]``

For each kind of flood, one process floods a server at 4 MB/s, and another one sends an honest request every 5 ms. The
table has the delay until the server's handler has such a request (from the client's time stamp; both clocks are the
machine's), and how late a 10 ms timer of the server is. Milliseconds; all sockets are on the loopback.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS = 3.0
#: Bytes a second of the flooder.
RATE = 4_000_000
CHUNK = 65536

KINDS = ("none", "tcp pings", "tls pings", "ws pongs", "ws fragments", "pub toggles", "pub garbage")


def frame(flags: int, content: bytes) -> bytes:
    """Return a frame without paths."""
    return struct.pack(">BBBBI", flags, 16, 0, 0, len(content)) + content


def ws_frame(first: int, payload: bytes = b"") -> bytes:
    """Return a client's frame with a mask of zeros."""
    return bytes([first, 0x80 | len(payload)]) + bytes(4) + payload


def flood_of(kind: str) -> bytes:
    """Return about CHUNK bytes of a flood."""
    if kind.endswith("pings"):
        unit = frame(0x04, b"\x01")
    elif kind == "ws pongs":
        unit = ws_frame(0x8A)
    elif kind == "ws fragments":
        unit = ws_frame(0x02, b"x") + ws_frame(0x00) * 10000 + ws_frame(0x80)
    elif kind == "pub toggles":
        unit = frame(0x21, b"\x01a.b") + frame(0x21, b"\x00a.b")
    else:
        unit = frame(0x21, b"\x09garbage")
    return unit * max(1, CHUNK // len(unit))


def connect(kind: str, port: int) -> Any:
    """Return a connection that is ready for the flood."""
    sock: Any = socket.create_connection(("127.0.0.1", port))
    if kind.startswith("tls"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    elif kind.startswith("ws"):
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: multisocket.binary\r\n\r\n".encode()
        )
        answer = sock.recv(4096)
        assert b" 101 " in answer, answer
    return sock


def flooder(kind: str, port: int) -> None:
    """Flood until the time is over or the server closes the connection. Answers are read and dropped."""
    sock = connect(kind, port)
    data = flood_of(kind)
    begin = time.monotonic()
    sent = 0
    sock.settimeout(0.0 if not kind.startswith("tls") else 5.0)
    while time.monotonic() - begin < SECONDS + 1:
        if sent > (time.monotonic() - begin) * RATE:
            time.sleep(0.002)
            continue
        rest = memoryview(data)
        while rest and time.monotonic() - begin < SECONDS + 1:
            try:
                taken = sock.send(rest)
                rest = rest[taken:]
                sent += taken
            except (BlockingIOError, ssl.SSLWantWriteError):
                time.sleep(0.001)
            if not kind.startswith("tls"):
                try:
                    sock.recv(1 << 20)
                except BlockingIOError:
                    pass
    print(f"{sent / 1e6:.1f} MB")


def client(port: int) -> None:
    """Send honest requests."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        sock.sendall(frame(0x01, struct.pack(">d", time.monotonic())))
        time.sleep(0.005)


def server(kind: str) -> None:
    """Serve the flooder at one port, the honest client at another one, and print the figures."""
    import gevent

    from gmultisocket import Socket
    from gmultisocket.protocol import Pub

    protocol = Pub() if kind.startswith("pub") else None
    flooded = protocol.socket if protocol is not None else Socket({"socket.recv_queue_size": 100})
    honest = Socket()
    options: dict[str, Any] = {}
    scheme = {"tls": "tls+tcp", "ws": "ws"}.get(kind.split()[0], "tcp")
    if scheme == "tls+tcp":
        from benchmarks.certificate import write_certificate

        file = Path(tempfile.mkdtemp()) / "certificate.pem"
        write_certificate(file)
        options = {"transport.tls.certfile": str(file), "transport.tls.keyfile": str(file)}
    ports = []
    for sock, where, given in ((flooded, f"{scheme}://127.0.0.1:0", options), (honest, "tcp://127.0.0.1:0", {})):
        ports.append(sock.listen(where, given).address.rpartition(":")[2].split("/")[0])
    print(*ports, flush=True)
    delays: list[float] = []
    lateness: list[float] = []

    def receive() -> None:
        while True:
            (sent,) = struct.unpack(">d", honest.recv())
            delays.append((time.monotonic() - sent) * 1000)

    def drain() -> None:
        while True:
            flooded.recv()

    def tick() -> None:
        while True:
            before = time.monotonic()
            gevent.sleep(0.01)
            lateness.append((time.monotonic() - before - 0.01) * 1000)

    workers = [gevent.spawn(receive), gevent.spawn(tick)]
    if protocol is None:
        workers.append(gevent.spawn(drain))
    gevent.sleep(SECONDS)
    gevent.killall(workers)
    delays.sort()
    lateness.sort()

    def percentile(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(len(values) * share))]

    print(
        f"{len(delays):6d}", *(f"{percentile(delays, share):8.2f}" for share in (0.5, 0.99, 1.0)),
        *(f"{percentile(lateness, share):8.2f}" for share in (0.5, 0.99, 1.0)),
    )  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


def run(kind: str) -> str:
    """Measure one kind, and return its row."""
    me = [sys.executable, "-m", "benchmarks.floods"]
    serving = subprocess.Popen([*me, "server", kind], stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    flooded, honest = serving.stdout.readline().split()
    others = [subprocess.Popen([*me, "client", honest], stderr=subprocess.DEVNULL)]
    if kind != "none":
        others.append(
            subprocess.Popen([*me, "flooder", kind, flooded], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
    row = serving.stdout.readline().rstrip()
    for other in others:
        other.kill()
        other.wait()
    serving.wait()
    return f"{kind:14}{row}"


def main(arguments: list[str]) -> None:
    """Run one role, or measure the given kinds."""
    if arguments[:1] == ["server"]:
        server(arguments[1])
    elif arguments[:1] == ["flooder"]:
        flooder(arguments[1], int(arguments[2]))
    elif arguments[:1] == ["client"]:
        client(int(arguments[1]))
    else:
        print(f"{'':14}{'':6} {'request':>8} {'p99':>8} {'max':>8} {'timer':>8} {'p99':>8} {'max':>8}")
        for kind in arguments or KINDS:
            print(run(kind), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
