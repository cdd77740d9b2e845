"""Compressed WebSocket messages: JSON to 1,000 peers, with and without ``transport.ws.compress_over``.

The peers are those of ``fanout.py``. They offer the compression that browsers offer, and count bytes.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from .harness import Entry, Figure, Outcome, Plan, Round, Row, started
from .worker import hear, say

__all__ = ["rows"]

_SIZE = 1024
_PEERS = 1000
#: Different messages: the library remembers the last one that it has compressed.
_BURST = 20
_PLAIN, _COMPRESSED = "gmultisocket", "gmultisocket, compressed"


def rows() -> list[Row]:
    """Return the rows of this work."""
    deliveries = Row(
        "fanout-ws-json", "fan-out of {size} of JSON to 1,000 ws peers, bursts of 20", "deliveries/s", True,
        [Entry(_PLAIN, partial(_run, 0, False), "gmultisocket", reference=True),
         Entry(_COMPRESSED, partial(_run, 256, False), "gmultisocket")],
        [Figure(_COMPRESSED, _PLAIN, at_least=0.7)],
        repeats=3,
    )  # fmt: skip
    size = Row(
        "fanout-ws-json-bytes", "bytes on the wire for {size} of JSON over ws", "bytes", False,
        [Entry(_PLAIN, partial(_run, 0, True), "gmultisocket", reference=True),
         Entry(_COMPRESSED, partial(_run, 256, True), "gmultisocket")],
        [Figure(_COMPRESSED, _PLAIN, at_most=0.5)],
        repeats=3, single_round=True,
    )  # fmt: skip
    return [deliveries, size]


@contextmanager
def _run(over: int, count_bytes: bool, plan: Plan) -> Iterator[Round]:
    peers = plan.count(1 if count_bytes else _PEERS, part=1 if count_bytes else _PEERS, quick=1 if count_bytes else 20)
    bursts = plan.count(5, part=2, quick=1)
    with started(plan) as start:
        publisher = start("compressed:publish", over=over, peers=peers, bursts=bursts)
        drain = start("drain:drain")
        heard = publisher.hear()
        drain.tell(**heard, peers=peers, stuck=0, burst=1)
        drain.hear()
        drain.hear()

        def measure() -> Outcome:
            publisher.tell()
            seconds = publisher.hear()["seconds"]
            value = heard["frame_size"] / _BURST if count_bytes else peers * _BURST * bursts / seconds
            return Outcome(value, _SIZE)

        yield measure


def publish(over: int, peers: int, bursts: int) -> None:
    """Publish a burst and wait until all peers have it, ``bursts`` times a round (worker)."""
    # The library of the tree that is measured.
    from gevent import socket

    from gmultisocket import Socket

    options: dict[str, Any] = {"transport.ws.compress_over": over} if over else {}
    server = Socket({"socket.send_queue_size": 1000, **options})
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = server.listen("ws://127.0.0.1:0/").address
    contents = _contents()
    frame_size = _bytes_of(server, address, contents, options)
    acknowledged = listener.getsockname()[1]
    say(address=address, acks=acknowledged, handshake="ws-deflate", frame_size=frame_size)
    acks, _ = listener.accept()
    server.wait_pipes(peers)

    def publish_bursts(count: int) -> None:
        for _ in range(count):
            for content in contents:
                server.send_all(content)
            if not acks.recv(1):
                raise ConnectionError("the receivers have ended")

    # The first burst warms up, and shows that all peers are connected.
    publish_bursts(1)
    while True:
        hear()
        begin = time.monotonic()
        publish_bursts(bursts)
        say(seconds=time.monotonic() - begin)


def _contents() -> list[bytes]:
    """Return messages as a feed of prices sends them."""
    rng = random.Random(1)
    found = []
    for _ in range(_BURST):
        text = ""
        ticks: list[dict[str, Any]] = []
        while len(text) < _SIZE:
            number = rng.randrange(10**6)
            ticks.append({"id": number, "symbol": rng.choice(["EURUSD", "GBPUSD", "USDJPY"]), "bid": rng.random()})
            text = json.dumps(ticks)
        found.append(text[:_SIZE].encode())
    return found


def _bytes_of(server: Any, address: str, contents: list[bytes], options: dict[str, Any]) -> int:
    """Return how many bytes the messages have on the wire, all together."""
    from gmultisocket import Socket

    with Socket() as client:
        client.dial(address, options)
        server.wait_pipes(1)
        (pipe,) = server.pipes.values()
        for content in contents:
            server.send_all(content)
            client.recv(timeout=10)
        return int(pipe.counters.bytes_sent)
