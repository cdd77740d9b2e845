"""Fan-out: one publisher, many peers in one other process (``drain.py``), from a publish until all have it."""

from __future__ import annotations

import time
from functools import partial
from importlib import import_module
from typing import Any

from .contestants import load
from .contestants.base import FAN_OUT
from .harness import Entry, Figure, Outcome, Row, Scale, address_of, started
from .worker import hear, say

__all__ = ["rows"]

_SIZE = 64
_PEERS = 1000
_MANY_PEERS = 10_000
_BURST = 100
_STUCK = "gmultisocket, 1 stuck peer"
_OURS_BY_TCP = "gmultisocket by tcp"


def rows() -> list[Row]:
    """Return the rows of this work."""
    all_libraries = ("gmultisocket", "pyzmq", "zmq.green", "pynng", "gevent")
    single = Row(
        "fanout-single", "fan-out of {size} to 1,000 tcp peers, one publish at a time", "deliveries/s", True,
        [Entry(name, partial(_rate, name, 1, 0), name) for name in all_libraries],
        [Figure("gmultisocket", "gevent", at_least=0.85)],
        repeats=3,
    )  # fmt: skip
    burst = Row(
        "fanout-burst", "fan-out of {size} to 1,000 tcp peers, bursts of 100", "deliveries/s", True,
        [Entry(name, partial(_rate, name, _BURST, 0), name) for name in (*all_libraries, "gmultisocket, queue of 64")],
        [Figure("gmultisocket", "gevent", at_least=0.6), Figure("gmultisocket", "pyzmq", at_least=1)],
    )  # fmt: skip
    stuck = Row(
        "fanout-stuck", "the same bursts with one peer more that does not read", "deliveries/s", True,
        [Entry("gmultisocket", partial(_rate, "gmultisocket", _BURST, 0), "gmultisocket"),
         Entry(_STUCK, partial(_rate, "gmultisocket", _BURST, 1), "gmultisocket")],
        [Figure(_STUCK, "gmultisocket", at_least=0.9)],
    )  # fmt: skip
    return [single, burst, stuck, _many(), _ws()]


def _many() -> Row:
    entries = [
        Entry(f"{name}, {peers:,} peers", partial(_cost, name, peers), name)
        for name in ("gmultisocket", "gevent")
        for peers in (_PEERS, _MANY_PEERS)
    ]
    figure = Figure("gmultisocket, 10,000 peers", "gmultisocket, 1,000 peers", at_most=1.3)
    title = "a delivery of {size} at 10,000 tcp peers, one publish at a time"
    return Row("fanout-10000", title, "µs", False, entries, [figure], repeats=3, seconds=60)


def _ws() -> Row:
    entries = [
        Entry(name, partial(_rate, "gmultisocket", _BURST, 0, transport=transport), "gmultisocket")
        for name, transport in (("gmultisocket", "ws"), (_OURS_BY_TCP, "tcp"))
    ]
    figure = Figure("gmultisocket", _OURS_BY_TCP, at_least=0.7)
    title = "fan-out of {size} to 1,000 ws peers, bursts of 100"
    return Row("fanout-ws", title, "deliveries/s", True, entries, [figure], repeats=3)


def _rate(contestant: str, burst: int, stuck: int, scale: Scale, transport: str = "tcp") -> Outcome:
    peers = scale.count(_PEERS, 20)
    bursts = scale.count(max(5, 100 // burst), 2)
    seconds, size = _run(contestant, transport, scale, peers=peers, burst=burst, bursts=bursts, stuck=stuck)
    return Outcome(peers * burst * bursts / seconds, size)


def _cost(contestant: str, peers: int, scale: Scale) -> Outcome:
    bursts = scale.count(100_000 // peers, 2)
    peers = scale.count(peers, peers // 100)
    seconds, size = _run(contestant, "tcp", scale, peers=peers, burst=1, bursts=bursts, stuck=0)
    return Outcome(seconds / (peers * bursts) * 1e6, size)


def _run(contestant: str, transport: str, scale: Scale, **work: int) -> tuple[float, int]:
    with address_of(transport) as address, started(scale) as start:
        publisher = start("fanout:publish", contestant=contestant, address=address, **work)
        drain = start("drain:drain")
        drain.tell(**publisher.hear(), peers=work["peers"], stuck=work["stuck"], burst=work["burst"])
        drain.hear()
        size = drain.hear()["size"]
        return publisher.hear()["seconds"], int(size)


def publish(contestant: str, address: str, peers: int, burst: int, bursts: int, stuck: int) -> None:
    """Publish to all, and wait until all have it, again and again (worker)."""
    peer: Any = load(contestant)
    # A green publisher has to wait in its loop, so that this goes on with its work.
    socket: Any = import_module("gevent.socket" if peer.green else "socket")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = peer.listen(FAN_OUT, address)
    say(address=address, acks=listener.getsockname()[1], handshake=peer.handshake, frame_size=peer.frame_size(_SIZE))
    acks, _ = listener.accept()
    peer.wait_peers(peers + stuck)
    if stuck:
        peer.stuff()
    content = b"x" * _SIZE
    # The first burst warms up, and shows that everybody is connected.
    for number in range(bursts + 1):
        if number == 1:
            begin = time.monotonic()
        peer.burst(content, burst) if burst > 1 else peer.publish(content)
        if not acks.recv(1):
            raise ConnectionError("the receivers are gone")
    say(seconds=time.monotonic() - begin)
    hear()
