"""How long a vanished peer is not missed: ``python3 -m benchmarks.vanished [seconds between heartbeats]``.

With 0 seconds the options are the defaults.

In a network namespace of its own (it needs ``unshare`` and ``iptables``) every packet is dropped, both ways and in the
middle of the traffic. Printed are the seconds until each end closes its pipe, for connections that are idle, on which
one end sends and the other only receives, and on which one end asks and the other answers. All are busy from the start,
except for the idle ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from benchmarks.certificate import write_certificate
from gmultisocket import PipeEvent, Socket

TRANSPORTS = ("tcp", "tls+tcp", "ws", "wss")
#: Seconds of traffic before all packets are dropped.
TRAFFIC = 2.5
PAUSE = 0.01

Closed = dict[tuple[str, str, str], tuple[float, str]]


def sends(sender: Socket, receiver: Socket) -> None:
    """Send in one direction for ever."""
    gevent.spawn(lambda: [receiver.recv() for _ in iter(int, 1)])
    while True:
        sender.send_all(b"x" * 100)
        gevent.sleep(PAUSE)


def asks(asker: Socket, answerer: Socket) -> None:
    """Ask for ever, each time after the answer."""

    def answer() -> None:
        while True:
            message = answerer.recv_msg()
            answerer.send_to(message.source, message.content)

    gevent.spawn(answer)
    while True:
        asker.send(b"x" * 100)
        asker.recv()


ROLES: dict[str, tuple[tuple[str, str], Callable[[Socket, Socket], None] | None]] = {
    "idle": (("dialer", "listener"), None),
    "one way": (("sender", "receiver"), sends),
    "asking": (("asker", "answerer"), asks),
}


def run(interval: float, patience: float) -> None:
    """Make all connections, drop everything, and print when each end has closed."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    closed: Closed = {}
    began = 0.0
    sockets: list[Socket] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "certificate.pem"
        write_certificate(file)
        options: dict[str, Any] = {"connector.pipe.heartbeat_interval": interval} if interval else {}
        for transport in TRANSPORTS:
            for role, (ends, traffic) in ROLES.items():
                pair = Socket(options), Socket(options)
                sockets += pair
                dialing = {"connector.dialer.reconnect": False, "transport.tls.cafile": str(file)}
                if transport in ("tcp", "ws"):
                    del dialing["transport.tls.cafile"]
                listening = {"transport.tls.certfile": str(file)} if transport in ("tls+tcp", "wss") else {}
                pair[0].dial(pair[1].listen(f"{transport}://127.0.0.1:0", listening).address, dialing)
                pair[1].wait_pipes(1, timeout=10)
                for end, sock in zip(ends, pair, strict=True):

                    def removed(event: PipeEvent, key: tuple[str, str, str] = (transport, role, end)) -> None:
                        if event.kind == "remove":
                            closed[key] = time.monotonic() - began, event.reason

                    sock.on_pipe(removed)
                if traffic is not None:
                    gevent.spawn(traffic, *pair)
        gevent.sleep(TRAFFIC)
        subprocess.run(["iptables", "-A", "INPUT", "-i", "lo", "-j", "DROP"], check=True)
        began = time.monotonic()
        total = len(sockets)
        while len(closed) < total and time.monotonic() - began < patience:
            gevent.sleep(0.05)
        for transport in TRANSPORTS:
            for role, (ends, _) in ROLES.items():
                for end in ends:
                    seconds, reason = closed.get((transport, role, end), (0.0, ""))
                    shown = f"{seconds:6.1f} s  {reason}" if reason else f"not in {patience:.0f} s"
                    print(f"{transport:8} {role:8} {end:9} {shown}", flush=True)
        os._exit(0)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--inside" in arguments:
        run(float(arguments[0]), float(arguments[2]))
    chosen = arguments[0] if arguments else "1"
    limit = arguments[1] if len(arguments) > 1 else ("30" if float(chosen) else "200")
    command = [sys.executable, "-m", "benchmarks.vanished", chosen, "--inside", limit]
    raise SystemExit(subprocess.run(["unshare", "-rn", *command]).returncode)
