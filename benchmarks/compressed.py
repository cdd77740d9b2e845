"""Compressed WebSocket messages: JSON to 1,000 peers, with and without ``transport.ws.compress_over``.

The peers are those of ``fanout.py``. They offer the compression that browsers offer, and count bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from .harness import Entry, Figure, Outcome, Plan, Round, Row, started
from .worker import burst_rounds, listen_for_acks, say

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
        [Entry(_PLAIN, partial(_rate, 0), "gmultisocket", reference=True),
         Entry(_COMPRESSED, partial(_rate, 256), "gmultisocket")],
        [Figure(_COMPRESSED, _PLAIN, at_least=0.7)],
        repeats=3,
    )  # fmt: skip
    size = Row(
        "fanout-ws-json-bytes", "bytes on the wire for {size} of JSON over ws", "bytes", False,
        [Entry(_PLAIN, partial(_bytes, 0), "gmultisocket", reference=True),
         Entry(_COMPRESSED, partial(_bytes, 256), "gmultisocket")],
        [Figure(_COMPRESSED, _PLAIN, at_most=0.5)],
        repeats=3, single_round=True,
    )  # fmt: skip
    return [deliveries, size]


@contextmanager
def _rate(over: int, plan: Plan) -> Iterator[Round]:
    peers = plan.count(_PEERS, part=_PEERS, quick=20)
    bursts = plan.count(5, part=2, quick=1)
    with started(plan) as start:
        publisher = start("compressed:publish", over=over, peers=peers, bursts=bursts)
        drain = start("drain:drain")
        drain.tell(**publisher.hear(), peers=peers, stuck=0, burst=1)
        drain.hear()
        drain.hear()

        def measure() -> Outcome:
            publisher.tell()
            return Outcome(peers * _BURST * bursts / publisher.hear()["seconds"], _SIZE)

        yield measure


@contextmanager
def _bytes(over: int, plan: Plan) -> Iterator[Round]:
    with started(plan) as start:
        publisher = start("compressed:weigh", over=over)
        yield lambda: Outcome(publisher.hear()["frame_size"] / _BURST, _SIZE)


def publish(over: int, peers: int, bursts: int) -> None:
    """Publish a burst and wait until all peers have it, ``bursts`` times a round (worker)."""
    server, address, frame_size = _server(over)
    listener = listen_for_acks()
    say(address=address, acks=listener.getsockname()[1], handshake="ws-deflate", frame_size=frame_size)
    acks, _ = listener.accept()
    server.wait_pipes(peers)
    contents = _contents()

    def burst() -> None:
        for content in contents:
            server.send_all(content)

    burst_rounds(acks, burst, bursts)


def weigh(over: int) -> None:
    """Tell the parent how many bytes a burst has on the wire (worker)."""
    _, _, frame_size = _server(over)
    say(frame_size=frame_size)


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


def _server(over: int) -> tuple[Any, str, int]:
    """Return a listening socket, its address, and how many bytes a burst has on the wire."""
    from gmultisocket import Socket

    options: dict[str, Any] = {"transport.ws.compress_over": over} if over else {}
    server = Socket({"socket.send_queue_size": 1000, **options})
    address = server.listen("ws://127.0.0.1:0/").address
    with Socket() as client:
        client.dial(address, options)
        server.wait_pipes(1)
        (pipe,) = server.pipes.values()
        for content in _contents():
            server.send_all(content)
            client.recv(timeout=10)
        return server, address, int(pipe.counters.bytes_sent)
