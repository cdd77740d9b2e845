"""Pipeline: one Push hands out to 4 who take, by tcp, from the first send until all of it has come."""

from __future__ import annotations

from functools import partial

from . import takers
from .contestants.protocols import load
from .harness import Entry, Outcome, Row, Scale

__all__ = ["rows"]

_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green", "pynng")
_SIZE = 64
_TAKERS = 4
_BURSTS = 5


def rows() -> list[Row]:
    """Return the rows of this work."""
    entries = [Entry(name, partial(_run, name), name) for name in _CONTESTANTS]
    return [Row("pipeline", "Push {size} to 4 who take, by tcp", "messages/s", True, entries, repeats=3)]


def _run(contestant: str, scale: Scale) -> Outcome:
    burst = scale.count(20_000, 200)
    arguments = {"contestant": contestant, "burst": burst}
    seconds, size = takers.run(
        scale, "pipeline:push", arguments, kind=takers.PULL, peers=_TAKERS, patterns=0, burst=burst // _TAKERS
    )  # fmt: skip
    return Outcome(burst * _BURSTS / seconds, size)


def push(contestant: str, burst: int) -> None:
    """Hand out (worker)."""
    peer = load(contestant)
    address = peer.listen_push()
    push = peer.push
    content = b"x" * _SIZE

    def push_burst() -> None:
        for _ in range(burst):
            push(content)

    takers.hand_out(peer, address, peer.work_size(_SIZE), lambda: peer.wait_takers(_TAKERS), push_burst, _BURSTS)
