"""Publish and subscribe: one publisher, 1,000 tcp subscribers, from a publish until all whom it matches have it."""

from __future__ import annotations

from functools import partial
from itertools import cycle, islice

from . import takers
from .contestants.protocols import load
from .harness import Entry, Figure, Outcome, Row, Scale

__all__ = ["rows"]

_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green")
_SIZE = 64
_PEERS = 1000
#: To see that everything works: so many times fewer.
_QUICK = 50
_BURST = 100
_FEWER = "gmultisocket, 1,000 patterns"


def rows() -> list[Row]:
    """Return the rows of this work."""
    return [
        Row(
            "pubsub-1-pattern", "publish {size} to 1,000 tcp subscribers, bursts of 100", "deliveries/s", True,
            [Entry(name, partial(_rate, name), name) for name in _CONTESTANTS],
            [Figure("gmultisocket", "pyzmq", at_least=1)], repeats=3,
        ),
        Row(
            "pubsub-100-patterns", "publish {size} to 10 of 1,000 tcp subscribers, 100 patterns", "µs", False,
            [Entry(name, partial(_cost, name, 100), name) for name in _CONTESTANTS], repeats=3,
        ),
        Row(
            "pubsub-10000-patterns", "publish {size} to 1 of 1,000 tcp subscribers, 10,000 patterns", "µs", False,
            [*(Entry(name, partial(_cost, name, 10_000), name) for name in _CONTESTANTS),
             Entry(_FEWER, partial(_cost, "gmultisocket", 1000), "gmultisocket")],
            [Figure("gmultisocket", _FEWER, at_most=1.5)], repeats=3,
        ),
    ]  # fmt: skip


def _rate(contestant: str, scale: Scale) -> Outcome:
    bursts = scale.count(5, 2)
    peers = scale.count(_PEERS, _PEERS // _QUICK)
    seconds, size = _run(contestant, scale, peers, 1, _BURST, bursts)
    return Outcome(peers * _BURST * bursts / seconds, size)


def _cost(contestant: str, patterns: int, scale: Scale) -> Outcome:
    bursts = scale.count(10, 2)
    peers = scale.count(_PEERS, _PEERS // _QUICK)
    patterns = scale.count(patterns, patterns // _QUICK)
    seconds, size = _run(contestant, scale, peers, patterns, peers, bursts)
    return Outcome(seconds / (peers * bursts) * 1e6, size)


def _run(contestant: str, scale: Scale, peers: int, patterns: int, burst: int, bursts: int) -> tuple[float, int]:
    subscriptions = max(peers, patterns)
    work = {"patterns": patterns, "subscriptions": subscriptions, "burst": burst, "bursts": bursts}
    each = burst * (subscriptions // patterns) // peers
    arguments = {"contestant": contestant, **work}
    return takers.run(
        scale, "pubsub:publish", arguments, kind=takers.SUB, peers=peers, patterns=patterns, burst=each
    )  # fmt: skip


def publish(contestant: str, patterns: int, subscriptions: int, burst: int, bursts: int) -> None:
    """Publish under one topic after the other, and wait until all whom it concerns have it (worker)."""
    peer = load(contestant)
    address = peer.listen_pub()
    publish = peer.publish
    topics = cycle([takers.pattern(number) for number in range(patterns)])
    content = b"x" * _SIZE

    def publish_burst() -> None:
        for topic in islice(topics, burst):
            publish(topic, content)

    frame_size = peer.publication_size(takers.pattern(0), _SIZE)
    takers.hand_out(
        peer, address, frame_size, lambda: peer.wait_subscriptions(subscriptions), publish_burst, bursts
    )  # fmt: skip
