"""Pipeline: one Push hands out to 4 takers over tcp.

The clock runs from the first send until all messages have arrived.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from . import takers
from .contestants.protocols import load
from .harness import Entry, Outcome, Plan, Round, Row

__all__ = ["rows"]

_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green", "pynng")
_SIZE = 64
_TAKERS = 4


def rows() -> list[Row]:
    """Return the rows of this work."""
    entries = [Entry(name, partial(_run, name), name) for name in _CONTESTANTS]
    return [Row("pipeline", "Push {size} to 4 takers, by tcp", "messages/s", True, entries, repeats=3)]


@contextmanager
def _run(contestant: str, plan: Plan) -> Iterator[Round]:
    burst = plan.count(20_000, part=10_000, quick=200)
    bursts = plan.count(5, part=3, quick=5)
    arguments = {"contestant": contestant, "burst": burst, "bursts": bursts}
    with takers.handing_out(
        plan, "pipeline:push", arguments, kind=takers.PULL, peers=_TAKERS, patterns=0, burst=burst // _TAKERS
    ) as push_round:

        def measure() -> Outcome:
            seconds, size = push_round()
            return Outcome(burst * bursts / seconds, size)

        yield measure


def push(contestant: str, burst: int, bursts: int) -> None:
    """Send bursts of work, and wait until the takers have each of them (worker)."""
    peer = load(contestant)
    address = peer.listen_push()
    push = peer.push
    content = b"x" * _SIZE

    def push_burst() -> None:
        for _ in range(burst):
            push(content)

    takers.hand_out(peer, address, peer.work_size(_SIZE), lambda: peer.wait_takers(_TAKERS), push_burst, bursts)
