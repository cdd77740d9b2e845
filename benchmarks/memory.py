"""The memory of an idle peer on the server, of an idle socket, and of an idle connection inside one process.

Each value is the resident memory of a process with many of them, minus the memory without them, divided by their
number.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .contestants import load
from .contestants.base import FAN_OUT
from .harness import Entry, Figure, Outcome, Plan, Round, Row, Run, address_of, started
from .worker import hear, say

__all__ = ["rows"]

#: Transport -> peers, full and part. Where a handshake is slow there are fewer: the memory of each is the same.
_PEERS = {
    "tcp": (10_000, 2000),
    "ipc": (10_000, 1000),
    "ws": (1000, 300),
    "wss": (1000, 300),
    "tls+tcp": (1000, 300),
}
_CONTESTANTS = {
    "tcp": ("gmultisocket", "pyzmq", "zmq.green", "pynng", "gevent"),
    "ipc": ("gmultisocket",),
    "ws": ("gmultisocket", "python-socketio"),
    "wss": ("gmultisocket",),
    "tls+tcp": ("gmultisocket", "gevent.ssl"),
}
_MOUNTED = "gmultisocket in gunicorn"
_GUNICORN = "gunicorn alone"
_SOCKETS = 10_000
#: Seconds between the last connection and the measurement.
SETTLE_TIME = 0.5


def rows() -> list[Row]:
    """Return the rows of this work."""
    ws = [Figure("gmultisocket", limit=16.0), Figure(_MOUNTED, limit=32.0), Figure(_MOUNTED, _GUNICORN, at_most=1.3)]
    in_gunicorn = [
        Entry(_MOUNTED, partial(_run_in_gunicorn, False), _MOUNTED),
        Entry(_GUNICORN, partial(_run_in_gunicorn, True), _GUNICORN),
    ]
    return [
        _peer_row("memory-tcp", "tcp", [Figure("gmultisocket", limit=12.0)]),
        _peer_row("memory-ipc", "ipc", []),
        _peer_row("memory-ws", "ws", ws, in_gunicorn),
        _peer_row("memory-wss", "wss", []),
        _peer_row("memory-tls", "tls+tcp", []),
        _row("memory-socket", f"memory of an idle Socket, {_SOCKETS:,} of them", "sockets"),
        _row("memory-inproc", f"memory of an idle inproc connection, {_SOCKETS:,} of them", "inproc"),
    ]


def _peer_row(name: str, transport: str, figures: list[Figure], others: Sequence[Entry] = ()) -> Row:
    entries = [Entry(each, partial(_run, each, transport), each) for each in _CONTESTANTS[transport]]
    title = f"memory of an idle {transport} peer on the server, {_PEERS[transport][0]:,} peers"
    # Runs differ by a few pages only: three are enough.
    return Row(name, title, "KiB", False, [*entries, *others], figures, repeats=3, seconds=60, single_round=True)


def _row(name: str, title: str, task: str) -> Row:
    entry = Entry("gmultisocket", partial(_run_inside, task), "gmultisocket")
    return Row(name, title, "KiB", False, [entry], repeats=3, seconds=60, single_round=True)


@contextmanager
def _run(contestant: str, transport: str, plan: Plan) -> Iterator[Round]:
    with address_of(transport) as address:
        serving = _serving(plan, transport, "memory:serve", contestant=contestant, address=address)
        with serving as measure:
            yield measure


def _run_in_gunicorn(alone: bool, plan: Plan) -> Run:
    return _serving(plan, "ws", "mounted:serve", alone=alone)


@contextmanager
def _serving(plan: Plan, transport: str, task: str, **arguments: Any) -> Iterator[Round]:
    full, part = _PEERS[transport]
    peers = plan.count(full, part=part, quick=200)
    with started(plan) as start:
        server = start(task, peers=peers, **arguments)
        clients = start("drain:drain")
        clients.tell(**server.hear(), acks=0, peers=peers, stuck=0)
        clients.hear()
        kib = server.hear()["kib"]
        yield lambda: Outcome(kib / peers)


@contextmanager
def _run_inside(task: str, plan: Plan) -> Iterator[Round]:
    count = plan.count(_SOCKETS, part=_SOCKETS // 5, quick=200)
    with started(plan) as start:
        kib = start(f"memory:{task}", count=count).hear()["kib"]
        yield lambda: Outcome(kib / count)


def serve(contestant: str, address: str, peers: int) -> None:
    """Accept all peers, wait until they are idle, and measure (worker)."""
    peer = load(contestant)
    address = peer.listen(FAN_OUT, address)
    before = resident_kib()
    say(address=address, handshake=peer.handshake)
    peer.wait_peers(peers)
    if peer.green:
        from gevent import sleep

        sleep(SETTLE_TIME)
    else:
        time.sleep(SETTLE_TIME)
    say(kib=resident_kib() - before)
    hear()


def sockets(count: int) -> None:
    """Make sockets that are not connected, and measure (worker)."""
    from gmultisocket import Socket

    # The first one imports all modules that it needs.
    kept = [Socket()]
    before = resident_kib()
    kept += [Socket() for _ in range(count)]
    say(kib=resident_kib() - before)
    hear()


def inproc(count: int) -> None:
    """Connect each of many sockets with one server in this process, and measure the connections alone (worker).

    A connection is a dialer, and a pipe at each end.
    """
    from gevent import sleep

    from gmultisocket import Socket

    server = Socket()
    server.listen("inproc://crowd")
    first, *others = [Socket() for _ in range(1 + count)]
    first.dial("inproc://crowd")
    server.wait_pipes(1)
    before = resident_kib()
    for socket in others:
        socket.dial("inproc://crowd")
    server.wait_pipes(1 + count)
    sleep(SETTLE_TIME)
    say(kib=resident_kib() - before)
    hear()


def resident_kib() -> int:
    """Return this process's resident memory in KiB, without garbage and without free memory of the C library."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("/proc/self/status has no VmRSS")
