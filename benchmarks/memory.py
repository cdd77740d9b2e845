"""What an idle peer costs the server: resident memory with many of them, less that without, by their number."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .contestants import load
from .contestants.base import FAN_OUT
from .harness import Entry, Figure, Outcome, Row, Scale, address_of, started
from .worker import hear, say

__all__ = ["rows"]

#: Fewer where a handshake takes its time: what each of them costs is the same.
_PEERS = {"tcp": 10_000, "ws": 1_000, "tls+tcp": 1_000}
_CONTESTANTS = {
    "tcp": ("gmultisocket", "pyzmq", "zmq.green", "pynng", "gevent"),
    "ws": ("gmultisocket",),
    "tls+tcp": ("gmultisocket", "gevent.ssl"),
}
_MOUNTED = "gmultisocket in gunicorn"
#: How long the server is left alone before it is measured, in seconds.
REST = 0.5


def rows() -> list[Row]:
    """Return the rows of this work."""
    ws = [Figure("gmultisocket", limit=16.0), Figure(_MOUNTED, limit=32.0)]
    return [
        _row("memory-tcp", "tcp", [Figure("gmultisocket", limit=12.0)]),
        _row("memory-ws", "ws", ws, [Entry(_MOUNTED, _run_in_gunicorn, _MOUNTED)]),
        _row("memory-tls", "tls+tcp", []),
    ]


def _row(name: str, transport: str, figures: list[Figure], others: Sequence[Entry] = ()) -> Row:
    entries = [Entry(each, partial(_run, each, transport), each) for each in _CONTESTANTS[transport]]
    title = f"memory of an idle {transport} peer on the server, {_PEERS[transport]:,} peers"
    # The same every time but for a page or two: three runs say it.
    return Row(name, title, "KiB", False, [*entries, *others], figures, repeats=3, seconds=60)


def _run(contestant: str, transport: str, scale: Scale) -> Outcome:
    with address_of(transport) as address:
        return _measure(scale, transport, "memory:serve", contestant=contestant, address=address)


def _run_in_gunicorn(scale: Scale) -> Outcome:
    return _measure(scale, "ws", "mounted:serve")


def _measure(scale: Scale, transport: str, task: str, **arguments: str) -> Outcome:
    peers = scale.count(_PEERS[transport], 200)
    with started(scale) as start:
        server = start(task, peers=peers, **arguments)
        clients = start("drain:drain")
        clients.tell(**server.hear(), acks=0, peers=peers, stuck=0)
        clients.hear()
        return Outcome(server.hear()["kib"] / peers)


def serve(contestant: str, address: str, peers: int) -> None:
    """Accept, let everything settle, and compare (worker)."""
    peer = load(contestant)
    address = peer.listen(FAN_OUT, address)
    before = resident_kib()
    say(address=address, handshake=peer.handshake)
    peer.wait_peers(peers)
    if peer.green:
        from gevent import sleep

        sleep(REST)
    else:
        time.sleep(REST)
    say(kib=resident_kib() - before)
    hear()


def resident_kib() -> int:
    """Return the memory that this process holds, without what it could give back at once."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("the kernel does not tell")
