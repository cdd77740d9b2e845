"""Request and reply, one at a time: how long a client waits for its reply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from .contestants import load
from .contestants.base import ECHO
from .harness import Entry, Figure, Outcome, Plan, Round, Row, address_of, started
from .worker import hear, say

__all__ = ["rows"]

_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green", "pynng", "gevent")
_SIZE = 64
_WARM_UP = 100
_OURS_BY_TCP = "gmultisocket by tcp"
_BARE_BY_TCP = "gevent by tcp"
_FIGURES = {
    "tcp": (Figure("gmultisocket", "gevent", at_most=1.6), Figure("gmultisocket", "zmq.green", at_most=0.5)),
    "ipc": (Figure("gmultisocket", _OURS_BY_TCP, at_most=1),),
}


def rows() -> list[Row]:
    """Return the rows of this work."""
    return [_row("tcp"), _row("ipc"), _ws()]


def _row(transport: str) -> Row:
    entries = [Entry(name, partial(_run, name, transport), name) for name in _CONTESTANTS]
    if transport == "ipc":
        by_tcp = partial(_run, "gmultisocket", "tcp")
        entries.insert(1, Entry(_OURS_BY_TCP, by_tcp, "gmultisocket", reference=True))
    title = f"{transport} request and reply, {{size}}, one at a time"
    return Row(f"roundtrip-{transport}", title, "µs", False, entries, _FIGURES[transport])


def _ws() -> Row:
    entries = [
        Entry("gmultisocket", partial(_run, "gmultisocket", "ws"), "gmultisocket"),
        Entry(_BARE_BY_TCP, partial(_run, "gevent", "tcp"), "gevent"),
    ]
    figure = Figure("gmultisocket", _BARE_BY_TCP, at_most=2)
    return Row("roundtrip-ws", "ws request and reply, {size}, one at a time", "µs", False, entries, [figure])


@contextmanager
def _run(contestant: str, transport: str, plan: Plan) -> Iterator[Round]:
    count = plan.count(3000, part=500, quick=100)
    with address_of(transport) as address, started(plan) as start:
        server = start("roundtrip:serve", contestant=contestant, address=address)
        client = start("roundtrip:ask", contestant=contestant, count=count)
        client.tell(address=server.hear()["address"])
        client.hear()

        def measure() -> Outcome:
            client.tell()
            answered = client.hear()
            return Outcome(answered["seconds"] / count * 1e6, answered["size"])

        yield measure


def serve(contestant: str, address: str) -> None:
    """Send every message back (worker)."""
    peer = load(contestant)
    say(address=peer.listen(ECHO, address))
    peer.echo()


def ask(contestant: str, count: int) -> None:
    """Send a request and wait for the reply, ``count`` times a round (worker)."""
    peer = load(contestant)
    peer.dial(ECHO, hear()["address"])
    content = b"x" * _SIZE
    send, recv = peer.send, peer.recv
    for _ in range(_WARM_UP):
        send(content)
        size = len(recv())
    say(ready=True)
    while True:
        hear()
        begin = time.monotonic()
        for _ in range(count):
            send(content)
            recv()
        say(seconds=time.monotonic() - begin, size=size)
