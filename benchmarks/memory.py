"""What an idle tcp peer costs the server: resident memory with 10,000 of them, less that without, by their number."""

from __future__ import annotations

import ctypes
import gc
import time
from functools import partial
from pathlib import Path

from .contestants import load
from .contestants.base import FAN_OUT
from .harness import Entry, Figure, Outcome, Row, Scale, started
from .worker import hear, say

__all__ = ["rows"]

_PEERS = 10_000
_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green", "pynng", "gevent")


def rows() -> list[Row]:
    """Return the rows of this work."""
    entries = [Entry(name, partial(_run, name), name) for name in _CONTESTANTS]
    figure = Figure("gmultisocket", limit=12.0)
    title = "memory of an idle tcp peer on the server, 10,000 peers"
    # The same every time but for a page or two: three runs say it.
    return [Row("memory", title, "KiB", False, entries, [figure], repeats=3, seconds=60)]


def _run(contestant: str, scale: Scale) -> Outcome:
    peers = scale.count(_PEERS, 200)
    with started(scale) as start:
        server = start("memory:serve", contestant=contestant, peers=peers)
        clients = start("drain:drain")
        clients.tell(**server.hear(), acks=0, peers=peers, stuck=0)
        clients.hear()
        return Outcome(server.hear()["kib"] / peers)


def serve(contestant: str, peers: int) -> None:
    """Accept, let everything settle, and compare (worker)."""
    peer = load(contestant)
    address = peer.listen(FAN_OUT, "tcp://127.0.0.1:0")
    before = _resident_kib()
    say(address=address, handshake=peer.handshake)
    peer.wait_peers(peers)
    if peer.green:
        from gevent import sleep

        sleep(0.5)
    else:
        time.sleep(0.5)
    say(kib=_resident_kib() - before)
    hear()


def _resident_kib() -> int:
    """Return the memory that this process holds, without what it could give back at once."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("the kernel does not tell")
