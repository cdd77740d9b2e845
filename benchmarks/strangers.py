"""What one hostile peer costs a server: memory and stalls. ``python3 benchmarks/strangers.py [KIND...]``

Another process is the peer; it writes frames to a tcp port by hand. Printed are the memory that the server has more
than before, in MB, the drops that it has counted, and how late its 10 ms timer is at the worst. Run as a file, it
measures the gmultisocket that PYTHONPATH names.

* ``replies``: 1,000 requests whose replies have 128 KB, and reads nothing.
* ``streams``: 50,000 openings to a Stream that accepts all.
* ``patterns``: 16,384 subscriptions of 64 tokens; then the peer hangs up.
* ``publish``: subscribes to a topic of 14 tokens in all 2^14 ways, and then toggles one of them; the figure is the mean
  time of a publish under that topic, in ms.
"""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
import sys
import time
from typing import Any

import gevent

from gmultisocket.protocol import Pub, Rep, Stream

KINDS = ("replies", "streams", "patterns", "publish")
TOPIC = ".".join(f"t{number}" for number in range(14))
QUIET = 1.0


def frame(flags: int, content: bytes, source: int = 0) -> bytes:
    """Return a frame, with one id as its source or none."""
    header = struct.pack(">BBBBI", flags, 16, 1 if source else 0, 0, len(content))
    return header + (struct.pack(">I", source) if source else b"") + content


def subscription(kind: bytes, pattern: str) -> bytes:
    return frame(0x21, kind + pattern.encode())


def attack(kind: str, port: int) -> None:
    """Run the peer."""
    sock = socket.create_connection(("127.0.0.1", port))
    if kind == "replies":
        sock.sendall(b"".join(frame(0, struct.pack(">I", number) + b"x") for number in range(1000)))
    elif kind == "streams":
        for start in range(1, 50_001, 500):
            sock.sendall(b"".join(frame(0x20, b"\0", number) for number in range(start, start + 500)))
            sock.setblocking(False)
            try:
                while sock.recv(1 << 20):
                    pass
            except BlockingIOError:
                pass
            sock.setblocking(True)
            time.sleep(0.05)
    elif kind == "patterns":
        tokens = ".".join("t" * 63)
        for number in range(16384):
            sock.sendall(subscription(b"\1", f"p{number}.{tokens}"))
    else:
        forms = itertools.product(*[(token, "*") for token in TOPIC.split(".")])
        sock.sendall(b"".join(subscription(b"\1", ".".join(form)) for form in forms))
        toggles = (subscription(b"\0", TOPIC) + subscription(b"\1", TOPIC)) * 10
        sys.stdin.readline()
        while True:
            sock.sendall(toggles)
            time.sleep(0.01)
    sys.stdin.readline()


class Timer:
    """A 10 ms timer, and how late it was at the worst, in ms."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            before = time.monotonic()
            gevent.sleep(0.01)
            self.worst = max(self.worst, (time.monotonic() - before - 0.01) * 1e3)


def memory() -> float:
    """Return the resident memory of this process, in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def serve(kind: str) -> Any:
    """Return the server that a kind of peer attacks, listening."""
    if kind == "replies":
        server: Any = Rep(lambda content: b"x" * 131_000)
        server.start()
    elif kind == "streams":
        server = Stream()
        gevent.spawn(lambda: server.kept.extend(server))
        server.kept = []
    else:
        server = Pub()
    server.listen("tcp://127.0.0.1:0")
    return server


def settle(server: Any) -> None:
    """Block until the server has received nothing for a while."""
    before = -1
    while before != (before := server.counters.messages_received):
        gevent.sleep(QUIET)


def measure(kind: str) -> None:
    server = serve(kind)
    port = int(server.socket.listeners[0].address.rpartition(":")[2])
    base = memory()
    timer = Timer()
    peer = subprocess.Popen([sys.executable, __file__, "attack", kind, str(port)], stdin=subprocess.PIPE)
    assert peer.stdin is not None
    server.wait_pipes(1, 10)
    settle(server)
    print(f"{kind:10} +{memory() - base:6.1f} MB, timer late {timer.worst:7.1f} ms, drops {server.counters.drops}")
    if kind == "publish":
        first = time.perf_counter()
        server.publish(TOPIC, b"x")
        gevent.sleep(QUIET)
        print(f"{'':10} the first publish {(time.perf_counter() - first - QUIET) * 1e3:.2f} ms more")
        peer.stdin.write(b"\n")
        peer.stdin.flush()
        spent = []
        for _ in range(200):
            gevent.sleep(0.01)
            before = time.perf_counter()
            server.publish(TOPIC, b"x")
            spent.append(time.perf_counter() - before)
        print(f"{'':10} publish while it toggles: {sum(spent) / len(spent) * 1e3:.3f} ms")
    timer.worst = 0.0
    gevent.sleep(0.1)
    peer.kill()
    peer.wait()
    gevent.sleep(QUIET)
    print(f"{'':10} timer late {timer.worst:.1f} ms when the peer has gone")
    timer.greenlet.kill()
    server.close(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        attack(sys.argv[2], int(sys.argv[3]))
    elif len(sys.argv) == 2:
        measure(sys.argv[1])
    else:
        # A process for each: what one has left does not disturb the next.
        for name in sys.argv[1:] or KINDS:
            subprocess.run([sys.executable, __file__, name], check=True)
